"""Results of compilations, kept in the user's cache folder: compiling takes minutes."""

import dataclasses
import hashlib
import json
import os
from pathlib import Path

from jina_jax.plan.compile import Compiled, Request
from jina_jax.plan.topology import LOCAL
from jina_jax.system.atomic import write_atomically
from jina_jax.system.environment import package_key, package_version

_SECTIONS = ("model", "mesh", "feed", "loss", "optim", "train")
"""Parts of a configuration that the step depends on."""


def cache_folder() -> Path:
    """Where results lie: below `XDG_CACHE_HOME`, or `~/.cache`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "jina_jax" / "plan"


def key(request: Request) -> str:
    """Names a result: by configuration, batch, topology, versions and this package's own code."""
    config = dataclasses.asdict(request.config)
    told = {
        "config": {section: config[section] for section in _SECTIONS},
        "shape": dataclasses.asdict(request.shape),
        "topology": request.topology,
        "versions": {
            name: package_version(name) for name in ("jax", "jaxlib", "flax", "optax", "libtpu")
        },
        "code": package_key(),
    }
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:32]


def load(request: Request) -> Compiled | None:
    """The result of an earlier run; None where there is none, or for this machine's devices."""
    if request.topology == LOCAL:
        return None
    path = _path(request)
    return Compiled(**json.loads(path.read_text(encoding="utf-8"))) if path.exists() else None


def store(request: Request, compiled: Compiled) -> None:
    """Keeps a result, whole or not at all; not one for this machine's devices."""
    if request.topology == LOCAL:
        return
    path = _path(request)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, json.dumps(dataclasses.asdict(compiled)).encode())


def _path(request: Request) -> Path:
    return cache_folder() / f"{key(request)}.json"
