"""Embeddings of any number of texts, in a file that grows."""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np

from jina_jax.data.atomic import write_atomically
from jina_jax.evaluate.embedder import Embedder
from jina_jax.progress import track

_TEXTS_AT_ONCE = 16_384


def embed_to_file(
    embedder: Embedder,
    read: Callable[[np.ndarray], list[str]],
    count: int,
    path: Path,
    marker: Path,
    *,
    progress: bool = False,
) -> np.ndarray:
    """Embeds texts into a file, from where an earlier process was stopped.

    Args:
      embedder: the same in every process that writes this file.
      read: gives the texts of some numbers, 0 ≤ number < count.
      count: of texts.
      path: file for the vectors.
      marker: file that says how many of them are on the disk.
      progress: show it on standard error.
    Returns: float32 [count, D], unit vectors, memory-mapped.
    """
    width = embedder.config.d_model
    done = int(marker.read_text()) if marker.is_file() else 0
    firsts = range(done, count, _TEXTS_AT_ONCE)
    with path.open("r+b" if done else "wb") as file:
        file.truncate(done * width * 4)
        file.seek(0, os.SEEK_END)
        shown = track(
            firsts, f"embed {path.stem}", unit="blocks", enabled=progress and done < count
        )
        for first in shown:
            end = min(first + _TEXTS_AT_ONCE, count)
            file.write(embedder.encode(read(np.arange(first, end))).tobytes())
            file.flush()
            os.fsync(file.fileno())
            write_atomically(marker, str(end).encode())
    return np.memmap(path, np.float32, "r", shape=(count, width))
