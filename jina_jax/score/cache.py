"""Arrays on disk under the name of what they were computed from.

A file is named by a hash of everything its numbers depend on: the model's key, the raw texts (not
their text hashes, which fold case and whitespace that a model may see) and the settings that enter
the numbers. Thresholds do not enter them, so a changed threshold finds the same files. Files appear
whole or not at all.
"""

import os
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import xxhash
from numpy.typing import DTypeLike


def content_key(parts: Iterable[str | bytes]) -> str:
    """A name for what is computed from `parts`.

    Args:
      parts: in order; any number.
    Returns: 32 hexadecimal digits. ("ab", "c") and ("a", "bc") have different keys, as each part
      is hashed with its length.
    """
    digest = xxhash.xxh3_128()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        digest.update(len(data).to_bytes(8, "little"))
        digest.update(data)
    return digest.hexdigest()


@contextmanager
def new_array(path: Path, shape: tuple[int, ...], dtype: DTypeLike) -> Iterator[np.ndarray]:
    """Gives an array to fill, which becomes the file `path` when the block ends well.

    The array is memory-mapped, so that it may be larger than memory. Whoever is killed leaves a
    file that ends in `.partial` and is never read. When two processes write the same path, the
    last one's file stays whole.

    Args:
      path: of a .npy file; its folder is made if there is none.
      shape: of the array, which starts as zeros.
      dtype: of the array.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}.partial")
    try:
        array = np.lib.format.open_memmap(partial, "w+", dtype, shape)
        yield array
        array.flush()
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def open_array(path: Path) -> np.ndarray:
    """Memory-maps a file that `new_array` wrote."""
    return np.load(path, mmap_mode="r", allow_pickle=False)
