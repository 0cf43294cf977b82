"""Embeddings of any number of texts, in a file that grows."""

import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Literal

import numpy as np

from jina_jax.inference.embedder import TEXTS_AT_ONCE, Embedder
from jina_jax.system.atomic import write_atomically
from jina_jax.system.progress import track


def embed_to_file(
    embedder: Embedder,
    texts_from: Callable[[int], Iterable[str]],
    count: int,
    path: Path,
    marker: Path,
    *,
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
      marker: file that says how many of them are on the disk.
      header: what the file begins with.
      dtype: of the file.
      progress: show it on standard error.
    Returns: [count, D], unit vectors, memory-mapped.
    """
    width = embedder.dimensions * np.dtype(dtype).itemsize
    done = int(marker.read_text()) if marker.is_file() else 0
    left = embedder.stream(texts_from(done)) if done < count else iter(())
    shown = track(
        left, f"embed {path.stem}", unit="blocks", total=-(-(count - done) // TEXTS_AT_ONCE),
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
