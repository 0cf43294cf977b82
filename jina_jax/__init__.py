"""Train text-embedding models on TPUs and GPUs: the whole of Jina Embeddings v1, in JAX."""

from typing import TYPE_CHECKING

from jina_jax.system.lazy import lazily

if TYPE_CHECKING:
    from jina_jax import api as api
    from jina_jax.config import RunConfig as RunConfig
    from jina_jax.config.files import load_config as load_config
    from jina_jax.inference.model import Model as Model
    from jina_jax.inference.model import load as load

__version__ = "0.1.0"

_PLACES = {
    "Model": "jina_jax.inference.model",
    "RunConfig": "jina_jax.config",
    "api": None,
    "load": "jina_jax.inference.model",
    "load_config": "jina_jax.config.files",
}
"""As `lazily` takes them."""

__all__ = ["Model", "RunConfig", "api", "load", "load_config"]

__getattr__ = lazily(__name__, _PLACES)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
