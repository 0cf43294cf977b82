"""The encoder of T5 base: 110 million parameters, 768 dimensions.

`jina-jax plan base` compiles its step for the first machine below, `base@MACHINE` for another.
"""

from jina_jax.config import RunConfig, T5Config
from jina_jax.configs._sizes import Setting, sized

MACHINES = {
    "v5e:16x16": Setting(),
    "v6e:8x8": Setting(remat="full"),
    "v5p:4x4x4": Setting(),
    "h100:8": Setting(grad_cache_rows=1024),
}


def get_config(machine: str = "") -> RunConfig:
    """The pair phase, from the pretrained T5 base."""
    model = T5Config(d_model=768, d_ff=3072, num_layers=12, num_heads=12)
    return sized("base", model, MACHINES, machine, initial_weights="google-t5/t5-base")
