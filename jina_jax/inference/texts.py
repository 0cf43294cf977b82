"""Texts of a file, one by one."""

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from jina_jax.config import SourceConfig
from jina_jax.errors import UserError
from jina_jax.sources.lines import Damage, read_lines
from jina_jax.sources.read import read_source
from jina_jax.types import BadRecord

_KINDS: dict[str, Literal["jsonl", "csv", "tsv", "parquet"]] = {
    ".jsonl": "jsonl",
    ".jsonl.gz": "jsonl",
    ".jsonl.zst": "jsonl",
    ".csv": "csv",
    ".tsv": "tsv",
    ".parquet": "parquet",
}
_LINES = (".txt", ".txt.gz", ".txt.zst")


def stream_texts(path: Path, field: str) -> Iterator[str]:
    """Reads the texts of a file, in order, and holds some thousand at most.

    Args:
      path: .txt (one text a line), .jsonl (both also .gz and .zst), .csv, .tsv or .parquet.
      field: field or column that holds the text; not used for .txt.
    Raises: UserError naming the first record that cannot be read; none is skipped, since the
      embeddings are matched to the texts by position.
    """
    if path.name.endswith(_LINES):
        yield from _read_lines(path)
        return
    source = SourceConfig(
        "texts", file_kind(path), (str(path),), query_field=field, positive_field=field
    )
    for record in read_source(source):
        if isinstance(record, BadRecord):
            hint = "; name the one to read with --field" if record.reason == "missing_field" else ""
            raise UserError(f"{record.origin.file}:{record.origin.row}: {record.detail}{hint}")
        yield record.query


def file_kind(path: Path) -> Literal["jsonl", "csv", "tsv", "parquet"]:
    """The format that a file's ending names.

    Raises: UserError for another ending.
    """
    kind = next((k for ending, k in _KINDS.items() if path.name.endswith(ending)), None)
    if kind is None:
        raise UserError(f"{path}: unknown ending; use .txt for texts, or {', '.join(_KINDS)}")
    return kind


def _read_lines(path: Path) -> Iterator[str]:
    number = 0
    try:
        for number, line in read_lines(str(path)):
            if isinstance(line, Damage):
                raise UserError(f"{path}:{number}: {line.detail}")
            yield line.decode().removesuffix("\r")
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}:{number} is not UTF-8 ({error.reason}); convert it") from error
    if not number:
        raise UserError(f"{path} is empty")
