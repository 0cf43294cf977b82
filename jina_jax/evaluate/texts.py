"""Texts of a file, one by one."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from jina_jax.config import SourceConfig
from jina_jax.data.lines import Damage, read_lines
from jina_jax.data.sources import read_source
from jina_jax.errors import UserError
from jina_jax.types import BadRecord

_KINDS = {
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
    for record in read_source(file_source(path, (field, field))):
        if isinstance(record, BadRecord):
            raise UserError(f"{record.origin.file}:{record.origin.row}: {record.detail}")
        yield record.query


def file_source(path: Path, fields: Sequence[str]) -> SourceConfig:
    """A file as a source of pairs or triplets.

    Args:
      path: .jsonl (.gz, .zst), .csv, .tsv or .parquet.
      fields: of the query, the positive and, for triplets, the negative.
    Raises: UserError for another ending.
    """
    kind = next((k for ending, k in _KINDS.items() if path.name.endswith(ending)), None)
    if kind is None:
        raise UserError(f"{path}: unknown ending; use .txt for texts, or {', '.join(_KINDS)}")
    query, positive, *negative = fields
    return SourceConfig(
        "texts", kind, (str(path),), query_field=query,  # type: ignore[arg-type]
        positive_field=positive, negative_field=negative[0] if negative else "",
    )  # fmt: skip


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
