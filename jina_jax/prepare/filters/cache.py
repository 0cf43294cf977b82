"""Arrays on disk under the name of what they were computed from.

A file is named by a hash of everything its numbers depend on: the model's key and the texts as they
are (not their text hashes, which fold case and whitespace that a model may see).
"""

from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import xxhash

from jina_jax.system.atomic import atomic_file


def contents_key(parts: Iterable[str]) -> str:
    """A name for what is computed from `parts`.

    Args:
      parts: in order; any number.
    Returns: 32 hexadecimal digits. ("ab", "c") and ("a", "bc") have different keys, as each part
      is hashed with its length.
    """
    digest = xxhash.xxh3_128()
    for part in parts:
        data = part.encode("utf-8", "surrogatepass")
        digest.update(len(data).to_bytes(8, "little"))
        digest.update(data)
    return digest.hexdigest()


def cached_array(path: Path, compute: Callable[[], np.ndarray]) -> np.ndarray:
    """The array of a .npy file, which is made when there is none; memory-mapped.

    Whoever is killed while writing leaves nothing under the name. When two processes write the
    same path, the last one's file stays whole.

    Args:
      path: of the file; its folder exists.
      compute: gives the array.
    """
    if not path.exists():
        with atomic_file(path) as part, part.open("wb") as file:
            np.save(file, compute(), allow_pickle=False)
    return np.load(path, mmap_mode="r", allow_pickle=False)
