"""What a machine computes with, as far as it decides what preparation writes."""

import functools
import platform
from importlib.metadata import version
from pathlib import Path

from jina_jax.data.engine import content_key
from jina_jax.data.files import file_xxh3

_DECIDING = ("array-record", "numpy", "pyarrow", "sentencepiece", "tokenizers", "xxhash")
"""Another version of these may write other bytes."""


@functools.cache
def environment_key() -> str:
    """A hash of this package's files and of the versions that decide the bytes of a shard.

    Equal on two machines where the same task writes the same bytes.
    """
    versions = {name: version(name) for name in _DECIDING}
    return content_key(package_key(), versions, platform.python_version_tuple()[:2])


@functools.cache
def package_key() -> str:
    """A hash of this package's files."""
    root = Path(__file__).parents[1]
    return content_key(
        {str(path.relative_to(root)): file_xxh3(str(path)) for path in root.rglob("*.py")}
    )
