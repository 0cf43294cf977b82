"""A file of texts in, a file of embeddings out: in bounded memory, and resumed after a kill.

Several processes share the texts, and the first writes what all have encoded, front to back: so the
file may lie on any disk of that host, an object store that is mounted too, and what a kill leaves
is gone on with by any number of processes.
"""

import io
import json
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

from jina_jax.config import Precision, SourceConfig
from jina_jax.devices.distributed import (
    check_agreement,
    from_first,
    shared_problems,
    wait_for_all,
)
from jina_jax.errors import UserError
from jina_jax.inference.embedder import TEXTS_AT_ONCE, Embedder
from jina_jax.inference.quantised import IN_RANGES, quantize, ranges_of
from jina_jax.sources.lines import Damage, read_lines
from jina_jax.sources.read import read_source
from jina_jax.system.atomic import atomic_file, write_atomically
from jina_jax.system.terminal import track
from jina_jax.system.workspace import check_writable, places, workspace
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
) -> None:
    """Embeds texts into a file, from where an earlier process was stopped.

    Of several processes all call it, and the first writes.

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
    """
    width, is_writer = embedder.dimensions * np.dtype(dtype).itemsize, embedder.share.rank == 0
    done = from_first(lambda: int(marker.read_text()) if marker.is_file() else 0)
    left = embedder.stream(texts_from(done), prompt) if done < count else iter(())
    shown = track(
        left, f"embed {marker.name}", unit="blocks", total=-(-(count - done) // TEXTS_AT_ONCE),
        records=len, enabled=progress and is_writer and done < count,
    )  # fmt: skip
    if not is_writer:
        for _ in shown:
            pass
        return
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


def embedded(
    path: Path,
    shape: tuple[int, int],
    *,
    header: bytes = b"",
    dtype: Literal["float32", "float16"] = "float32",
) -> np.ndarray:
    """What `embed_to_file` wrote, memory-mapped.

    Args:
      path: as it was given.
      shape: [texts, D].
      header: as it was given.
      dtype: as it was given.
    """
    if not shape[0]:
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
    """Reads a file of texts once; arguments and errors are those of `stream_texts`.

    Raises: UserError too when another process reads other texts.
    """
    count, digest = 0, xxhash.xxh3_128()
    with shared_problems():
        for text in track(stream_texts(path, field), "read", unit="texts", enabled=progress):
            digest.update(f"{text}\0".encode("utf-8", "surrogatepass"))
            count += 1
    check_agreement(
        f"{count} {digest.hexdigest()}", f"other texts in {path}", "give every host the same file"
    )
    return count


def encode_file(
    embedder: Embedder,
    texts: Path,
    count: int,
    output: Path,
    *,
    field: str = "text",
    prompt: str | None = None,
    precision: Precision = "float32",
    ranges_2D: np.ndarray | None = None,
    progress: bool = True,
) -> Path | None:
    """Embeds the texts of a file.

    Beside the output grows a hidden folder; the output appears when it is whole. A process that is
    killed loses at most one block, and the same call goes on to the same bytes; another text file,
    model or option begins anew. Of several processes all call it, and the first alone writes.

    Args:
      embedder: the model.
      texts: as `stream_texts` reads them.
      count: of the texts, by `count_texts`.
      output: .npy, .safetensors (tensor `embeddings`) or .parquet (columns text, embedding).
      field: field or column that holds the text.
      prompt: as for `Embedder.encode`.
      precision: of the numbers in the file, as `quantised.quantize` describes it.
      ranges_2D: float32 [2, D], for int8 and uint8; by default those of these texts.
      progress: show it on standard error.
    Returns: where int8 and uint8 took the ranges of these texts, the file beside the output that
      has them; else None. In other processes than the first always None.
    Raises: UserError naming what cannot be read or written; what is embedded stays.
    """
    is_writer = embedder.share.rank == 0
    with shared_problems():
        if is_writer:
            check_output(output)
    if precision in IN_RANGES and ranges_2D is None and count == 1:
        raise UserError(
            f"--precision {precision} of one text alone has no range to divide: give --ranges, the "
            f"file that was written beside the embeddings of many"
        )
    options = [embedder.identity(), TEXTS_AT_ONCE, field, prompt, precision]
    options.append(None if ranges_2D is None else ranges_2D.tolist())
    check_agreement(json.dumps(options), "another model or other options")
    make_header = {".npy": _npy_header, ".safetensors": _safetensors_header}.get(output.suffix)
    is_float = precision in ("float32", "float16")
    dtype: Literal["float32", "float16"] = "float16" if precision == "float16" else "float32"
    # What is neither quantised nor written beside texts goes to its place at once.
    is_direct = is_float and make_header is not None
    shape = (count, embedder.dimensions)
    header = make_header(shape, dtype) if make_header and is_direct else b""
    with ExitStack() as stack:
        space = places(output)
        with shared_problems():
            if is_writer:
                stack.enter_context(workspace(output, _identity(options, texts), is_file=True))
        path = space.result if is_direct else space.work / "embeddings"
        embed_to_file(
            embedder, lambda first: islice(stream_texts(texts, field), first, None), count,
            path, space.markers / "embeddings", prompt=prompt, header=header, dtype=dtype,
            progress=progress,
        )  # fmt: skip
        kept = None
        if is_writer:
            z_ND = embedded(path, shape, header=header, dtype=dtype)
            if precision in IN_RANGES and ranges_2D is None:
                ranges_2D = _ranges(z_ND)
                kept = ranges_path(output)
                with atomic_file(kept) as part, part.open("wb") as file:
                    np.save(file, ranges_2D)
            blocks = (quantize(block_ND, precision, ranges_2D) for block_ND in _blocks(z_ND))
            kind = quantize(z_ND[:1], precision, ranges_2D)  # One row, for its type and width.
            if make_header is None:
                _write_parquet(blocks, kind, stream_texts(texts, field), space.result)
            elif not is_direct:
                with space.result.open("wb") as file:
                    file.write(make_header((count, kind.shape[1]), kind.dtype.name))
                    file.writelines(block_NX.tobytes() for block_NX in blocks)
    wait_for_all()  # Whoever leaves before the first is done would take its coordinator for lost.
    return kept


def ranges_path(output: Path) -> Path:
    """Where the ranges of int8 and uint8 embeddings lie: beside them."""
    return output.with_name(f"{output.stem}.ranges.npy")


def read_ranges(path: Path, dimensions: int) -> np.ndarray:
    """Reads what `encode_file` wrote beside an output.

    Args:
      path: of the file.
      dimensions: of the model.
    Returns: float32 [2, D].
    Raises: UserError when it is missing, damaged or of another model.
    """
    try:
        found = np.load(path, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise UserError(f"--ranges {path} cannot be read: {error}") from error
    shape = (2, dimensions)
    if not isinstance(found, np.ndarray) or found.shape != shape or found.dtype.kind != "f":
        raise UserError(
            f"--ranges {path} must hold the least and the largest value of each of the model's "
            f"{dimensions} dimensions, as {shape} floats; it has {getattr(found, 'shape', '')} "
            f"{getattr(found, 'dtype', type(found).__name__)}"
        )
    if not np.isfinite(found).all() or (found[0] > found[1]).any():
        raise UserError(f"--ranges {path}: the least value of a dimension is above the largest")
    return found.astype(np.float32)


def _blocks(z_ND: np.ndarray) -> Iterator[np.ndarray]:
    for first in range(0, len(z_ND), TEXTS_AT_ONCE):
        yield np.asarray(z_ND[first : first + TEXTS_AT_ONCE])


def _ranges(z_ND: np.ndarray) -> np.ndarray:
    of_blocks = np.stack([ranges_of(block_ND) for block_ND in _blocks(z_ND)])
    return np.stack([of_blocks[:, 0].min(axis=0), of_blocks[:, 1].max(axis=0)])


def _identity(options: list[Any], texts: Path) -> str:
    state = texts.stat()
    return json.dumps([*options, str(texts.absolute()), state.st_size, state.st_mtime_ns])


def _npy_header(shape: tuple[int, int], dtype: str) -> bytes:
    header = io.BytesIO()
    values = {"descr": np.dtype(dtype).newbyteorder("<").str, "fortran_order": False}
    np.lib.format.write_array_header_1_0(header, values | {"shape": shape})
    return header.getvalue()


def _safetensors_header(shape: tuple[int, int], dtype: str) -> bytes:
    """Source: https://huggingface.co/docs/safetensors/index, "Format"."""
    kinds = {"float32": "F32", "float16": "F16", "int8": "I8", "uint8": "U8"}
    kind, size = kinds[dtype], np.dtype(dtype).itemsize
    tensor = {"dtype": kind, "shape": shape, "data_offsets": [0, shape[0] * shape[1] * size]}
    header = json.dumps({"embeddings": tensor}).encode()
    header += b" " * (-len(header) % 8)
    return len(header).to_bytes(8, "little") + header


def _write_parquet(
    blocks: Iterator[np.ndarray], like: np.ndarray, texts: Iterator[str], path: Path
) -> None:
    kind = pa.list_(pa.from_numpy_dtype(like.dtype), like.shape[1])
    schema = pa.schema([("text", pa.string()), ("embedding", kind)])
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        for block_NX in blocks:
            vectors = pa.FixedSizeListArray.from_arrays(pa.array(block_NX.reshape(-1)), type=kind)
            columns = [list(islice(texts, len(block_NX))), vectors]
            writer.write_table(pa.table(columns, schema=schema))
