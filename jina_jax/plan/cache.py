"""Results of compilations, kept in the user's cache folder: compiling takes minutes."""

import dataclasses
import hashlib
import importlib.metadata
import json
import os
from pathlib import Path

from jina_jax.plan.compile import Compiled, Request
from jina_jax.plan.topology import LOCAL

_SECTIONS = ("model", "feed", "loss", "optim", "train")
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
        "versions": {name: _version(name) for name in ("jax", "jaxlib", "flax", "optax", "libtpu")},
        "code": _code(),
    }
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:32]


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _code() -> str:
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.parent.rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def load(request: Request) -> Compiled | None:
    """The result of an earlier run; None where there is none, or for this machine's devices."""
    path = cache_folder() / f"{key(request)}.json"
    if request.topology == LOCAL or not path.exists():
        return None
    return Compiled(**json.loads(path.read_text(encoding="utf-8")))


def store(request: Request, compiled: Compiled) -> None:
    """Keeps a result, whole or not at all."""
    folder = cache_folder()
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{key(request)}.json"
    temporary = path.with_suffix(f".{os.getpid()}")
    temporary.write_text(json.dumps(dataclasses.asdict(compiled)), encoding="utf-8")
    temporary.replace(path)
