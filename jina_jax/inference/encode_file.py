"""A file of texts in, a file of embeddings out: in bounded memory, and resumed after a kill."""

import io
import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from jina_jax.errors import UserError
from jina_jax.inference.embedder import TEXTS_AT_ONCE, Embedder
from jina_jax.inference.embeddings import embed_to_file
from jina_jax.inference.texts import stream_texts
from jina_jax.system.atomic import sync
from jina_jax.system.progress import track
from jina_jax.system.workspace import file_workspace

_ENDINGS = (".npy", ".parquet", ".safetensors")


def check_output(path: Path) -> None:
    """Refuses an output that could not be written, before a model is opened."""
    if path.suffix not in _ENDINGS:
        raise UserError(f"{path}: embeddings are written as {', '.join(_ENDINGS)}")
    if not path.absolute().parent.is_dir():
        raise UserError(f"{path}: the folder {path.absolute().parent} does not exist")
    if path.is_dir():
        raise UserError(f"{path} is a folder; name a file")


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
      dtype: of the numbers in the file.
      progress: show it on standard error.
    Raises: UserError naming what cannot be read or written; what is embedded stays.
    """
    check_output(output)
    with file_workspace(output, _identity(embedder, texts, field, dtype)) as folder:
        vectors, marker = folder / "embeddings", folder / "embedded"
        shape = (count, embedder.dimensions)
        header = {".npy": _npy_header, ".safetensors": _safetensors_header}.get(output.suffix)
        z_ND = embed_to_file(
            embedder, lambda first: islice(stream_texts(texts, field), first, None), count,
            vectors, marker,
            header=header(shape, dtype) if header else b"", dtype=dtype, progress=progress,
        )  # fmt: skip
        if not header:
            vectors = folder / "table"
            _write_parquet(z_ND, stream_texts(texts, field), vectors)
        marker.unlink()
        vectors.replace(output)


def _identity(embedder: Embedder, texts: Path, field: str, dtype: str) -> str:
    state = texts.stat()
    values = [str(texts.absolute()), state.st_size, state.st_mtime_ns, field, dtype]
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
    sync(path)
