"""What a program runs on: versions, devices, machine."""

import os
import platform
from importlib import metadata
from typing import Any

import jax

PACKAGES = (
    "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "array-record", "numpy",
    "pyarrow", "sentencepiece", "tokenizers", "transformers", "libtpu",
)  # fmt: skip
"""Whose versions are told, where they are installed."""


def environment() -> dict[str, Any]:
    """Versions, devices and machine, as JSON values; neither host names nor variables.

    JAX is started by it.
    """
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
