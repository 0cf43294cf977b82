"""Both phases of Jina Embeddings v1 (arXiv 2307.11224): pairs, then triplets from where they end.

`jina-jax train jina_v1` runs them in order; `jina_v1:jina_v1_triplets` names the second alone.
"""

from jina_jax.config import RunConfig
from jina_jax.config.files import load_config


def get_config() -> tuple[RunConfig, ...]:
    """Each phase as its own file has it."""
    return load_config("jina_v1_pairs"), load_config("jina_v1_triplets")
