"""The encoder of T5 large: 335 million parameters, 1,024 dimensions.

`jina-jax plan large` compiles its step for the first machine below, `large@MACHINE` for another.
"""

from jina_jax.config import RunConfig, T5Config
from jina_jax.configs._sizes import Setting, sized

MACHINES = {
    "v6e:16x16": Setting(),
    "v5e:16x16": Setting(remat="full"),
    "v5p:4x4x8": Setting(),
    "h100:8": Setting(grad_cache_rows=1024, remat="dots"),
}


def get_config(machine: str = "") -> RunConfig:
    """The pair phase, from the pretrained T5 large."""
    model = T5Config(d_model=1024, d_ff=4096, num_layers=24, num_heads=16)
    return sized("large", model, MACHINES, machine, initial_weights="google-t5/t5-large")
