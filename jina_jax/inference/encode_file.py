"""A file of texts in, a file of embeddings out: in bounded memory, and resumed after a kill."""

import io
import json
import os
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from jina_jax.config import SourceConfig
from jina_jax.errors import UserError
from jina_jax.inference.embedder import TEXTS_AT_ONCE, Embedder
from jina_jax.sources.lines import Damage, read_lines
from jina_jax.sources.read import read_source
from jina_jax.system.atomic import write_atomically
from jina_jax.system.terminal import track
from jina_jax.system.workspace import check_writable, workspace
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


def embed_to_file(
    embedder: Embedder,
    texts_from: Callable[[int], Iterable[str]],
    count: int,
    path: Path,
    marker: Path,
    *,
    prompt: str | None = None,
    header: bytes = b"",
    dtype: Literal["float32", "float16"] = "float32",
    progress: bool = False,
) -> np.ndarray:
    """Embeds texts into a file, from where an earlier process was stopped.

    Args:
      embedder: the same in every process that writes this file.
      texts_from: gives the texts from a number on, 0 ≤ number < count.
      count: of texts.
      path: file for the vectors.
      marker: file that says how many of them are on the disk; its name is shown.
      prompt: as for `Embedder.encode`.
      header: what the file begins with.
      dtype: of the file.
      progress: show it on standard error.
    Returns: [count, D], memory-mapped.
    """
    width = embedder.dimensions * np.dtype(dtype).itemsize
    done = int(marker.read_text()) if marker.is_file() else 0
    left = embedder.stream(texts_from(done), prompt) if done < count else iter(())
    shown = track(
        left, f"embed {marker.name}", unit="blocks", total=-(-(count - done) // TEXTS_AT_ONCE),
        records=len, enabled=progress and done < count,
    )  # fmt: skip
    with path.open("r+b" if done else "wb") as file:
        file.truncate(len(header) + done * width if done else 0)
        file.seek(0, os.SEEK_END)
        file.write(b"" if done else header)
        for z_ND in shown:
            file.write(np.ascontiguousarray(z_ND, dtype).tobytes())
            file.flush()
            os.fsync(file.fileno())
            done += len(z_ND)
            write_atomically(marker, str(done).encode())
    shape = (count, embedder.dimensions)
    if not count:
        return np.zeros(shape, dtype)
    return np.memmap(path, dtype, "r", offset=len(header), shape=shape)


_ENDINGS = (".npy", ".parquet", ".safetensors")


def check_output(path: Path) -> None:
    """Refuses an output that could not be written, before a model is opened."""
    if path.suffix not in _ENDINGS:
        raise UserError(f"{path}: embeddings are written as {', '.join(_ENDINGS)}")
    if not path.absolute().parent.is_dir():
        raise UserError(f"{path}: the folder {path.absolute().parent} does not exist")
    if path.is_dir():
        raise UserError(f"{path} is a folder; name a file")
    check_writable(path.absolute().parent)


def count_texts(path: Path, field: str, *, progress: bool = True) -> int:
    """Reads a file of texts once; arguments and errors are those of `stream_texts`."""
    return sum(1 for _ in track(stream_texts(path, field), "read", unit="texts", enabled=progress))


def encode_file(
    embedder: Embedder,
    texts: Path,
    count: int,
    output: Path,
    *,
    field: str = "text",
    prompt: str | None = None,
    dtype: Literal["float32", "float16"] = "float32",
    progress: bool = True,
) -> None:
    """Embeds the texts of a file.

    Beside the output grows a hidden folder; the output appears when it is whole. A process that is
    killed loses at most one block, and the same call goes on to the same bytes; another text file,
    model or option begins anew.

    Args:
      embedder: the model.
      texts: as `stream_texts` reads them.
      count: of the texts, by `count_texts`.
      output: .npy, .safetensors (tensor `embeddings`) or .parquet (columns text, embedding).
      field: field or column that holds the text.
      prompt: as for `Embedder.encode`.
      dtype: of the numbers in the file.
      progress: show it on standard error.
    Raises: UserError naming what cannot be read or written; what is embedded stays.
    """
    check_output(output)
    header = {".npy": _npy_header, ".safetensors": _safetensors_header}.get(output.suffix)
    with workspace(output, _identity(embedder, texts, field, prompt, dtype), is_file=True) as space:
        z_ND = embed_to_file(
            embedder, lambda first: islice(stream_texts(texts, field), first, None), count,
            space.result if header else space.work / "embeddings", space.markers / "embeddings",
            prompt=prompt, dtype=dtype, progress=progress,
            header=header((count, embedder.dimensions), dtype) if header else b"",
        )  # fmt: skip
        if not header:
            _write_parquet(z_ND, stream_texts(texts, field), space.result)


def _identity(embedder: Embedder, texts: Path, field: str, prompt: str | None, dtype: str) -> str:
    state = texts.stat()
    values = [str(texts.absolute()), state.st_size, state.st_mtime_ns, field, prompt, dtype]
    return json.dumps([embedder.identity(), TEXTS_AT_ONCE, *values])


def _npy_header(shape: tuple[int, int], dtype: str) -> bytes:
    header = io.BytesIO()
    values = {"descr": np.dtype(dtype).newbyteorder("<").str, "fortran_order": False}
    np.lib.format.write_array_header_1_0(header, values | {"shape": shape})
    return header.getvalue()


def _safetensors_header(shape: tuple[int, int], dtype: str) -> bytes:
    """Source: https://huggingface.co/docs/safetensors/index, "Format"."""
    kind, size = {"float32": ("F32", 4), "float16": ("F16", 2)}[dtype]
    tensor = {"dtype": kind, "shape": shape, "data_offsets": [0, shape[0] * shape[1] * size]}
    header = json.dumps({"embeddings": tensor}).encode()
    header += b" " * (-len(header) % 8)
    return len(header).to_bytes(8, "little") + header


def _write_parquet(z_ND: np.ndarray, texts: Iterator[str], path: Path) -> None:
    kind = pa.list_(pa.from_numpy_dtype(z_ND.dtype), z_ND.shape[1])
    schema = pa.schema([("text", pa.string()), ("embedding", kind)])
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        for first in range(0, len(z_ND), TEXTS_AT_ONCE):
            block_ND = np.asarray(z_ND[first : first + TEXTS_AT_ONCE])
            vectors = pa.FixedSizeListArray.from_arrays(pa.array(block_ND.reshape(-1)), type=kind)
            columns = [list(islice(texts, len(block_ND))), vectors]
            writer.write_table(pa.table(columns, schema=schema))
