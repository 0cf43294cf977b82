"""Train text-embedding models on TPUs and GPUs: the whole of Jina Embeddings v1, in JAX."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jina_jax import api as api
    from jina_jax.config import RunConfig as RunConfig
    from jina_jax.config.files import load_config as load_config
    from jina_jax.inference.model import Model as Model
    from jina_jax.inference.model import load as load

__version__ = "0.1.0"

_PLACES = {
    "Model": "inference.model",
    "RunConfig": "config",
    "api": "",
    "load": "inference.model",
    "load_config": "config.files",
}
"""Public name → the module that has it, which is imported when it is asked for."""

__all__ = ["Model", "RunConfig", "api", "load", "load_config"]


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if not _PLACES[name]:
        return importlib.import_module(f"{__name__}.{name}")
    return getattr(importlib.import_module(f"{__name__}.{_PLACES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
