"""What a program runs on: versions, devices, machine."""

import functools
import os
import platform
from importlib import metadata
from pathlib import Path
from typing import Any

from jina_jax.system.hashing import content_key, file_xxh3

PACKAGES = (
    "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "array-record", "numpy",
    "pyarrow", "sentencepiece", "tokenizers", "transformers", "libtpu",
)  # fmt: skip
"""Whose versions are told, where they are installed."""


def environment() -> dict[str, Any]:
    """Versions, devices and machine, as JSON values; neither host names nor variables.

    JAX is started by it.
    """
    import jax

    from jina_jax import __version__

    devices = jax.devices()
    return {
        "jina_jax": __version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "cpus": os.cpu_count(),
        "processes": jax.process_count(),
        "devices": len(devices),
        "device_kind": devices[0].device_kind,
        "packages": {name: found for name in PACKAGES if (found := package_version(name))},
    }


def package_version(package: str) -> str:
    """The version that is installed; empty where none is."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""


_DECIDING = ("array-record", "numpy", "pyarrow", "sentencepiece", "tokenizers", "xxhash")
"""Another version of these may write other bytes."""


@functools.cache
def environment_key() -> str:
    """A hash of this package's files and of the versions that decide the bytes of a shard.

    Equal on two machines where the same task writes the same bytes.
    """
    versions = {name: metadata.version(name) for name in _DECIDING}
    return content_key(package_key(), versions, platform.python_version_tuple()[:2])


@functools.cache
def package_key() -> str:
    """A hash of this package's files, code and data."""
    root = Path(__file__).parents[1]
    files = (path for kind in ("*.py", "*.toml") for path in root.rglob(kind))
    return content_key({str(path.relative_to(root)): file_xxh3(str(path)) for path in files})
