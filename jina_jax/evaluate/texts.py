"""Files of texts in, files of embeddings out."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from jina_jax.config import SourceConfig
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


def read_texts(path: Path, field: str) -> list[str]:
    """Reads the texts of a file, in order.

    Args:
      path: .txt (one text a line), .jsonl (.gz, .zst), .csv, .tsv or .parquet.
      field: field or column that holds the text; not used for .txt.
    Raises: UserError naming the first record that cannot be read; none is skipped, since the
      embeddings are matched to the texts by position.
    """
    if path.suffix == ".txt":
        return _read_lines(path)
    source = file_source(path, (field, field))
    texts = []
    for record in read_source(source):
        if isinstance(record, BadRecord):
            raise UserError(f"{record.origin.file}:{record.origin.row}: {record.detail}")
        texts.append(record.query)
    return texts


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


def _read_lines(path: Path) -> list[str]:
    try:
        texts = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 (byte {error.start}); convert it first") from error
    if not texts:
        raise UserError(f"{path} is empty")
    return texts


def check_output(path: Path) -> None:
    """Refuses an output that could not be written, before the work is done."""
    if path.suffix not in (".npy", ".parquet"):
        raise UserError(f"{path}: embeddings are written as .npy or .parquet")
    if not path.absolute().parent.is_dir():
        raise UserError(f"{path}: the folder {path.absolute().parent} does not exist")


def write_embeddings(path: Path, texts: Sequence[str], embeddings_ND: np.ndarray) -> None:
    """Writes .npy (float32 [N, D]) or .parquet (text, embedding), whole or not at all."""
    temporary = path.with_name(f".{path.name}.tmp")
    if path.suffix == ".npy":
        with temporary.open("wb") as file:
            np.save(file, embeddings_ND)
    else:
        vectors = pa.FixedSizeListArray.from_arrays(
            pa.array(embeddings_ND.reshape(-1)), embeddings_ND.shape[1]
        )
        pq.write_table(pa.table({"text": list(texts), "embedding": vectors}), temporary)
    temporary.replace(path)
