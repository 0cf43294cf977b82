"""The encoder of T5 small: 35 million parameters, 512 dimensions.

`jina-jax plan small` compiles its step for the first machine below, `small@MACHINE` for another.
"""

from jina_jax.config import RunConfig, T5Config
from jina_jax.configs._sizes import Setting, sized

MACHINES = {
    "v5e:8x8": Setting(),
    "v6e:4x4": Setting(remat="full"),
    "h100:8": Setting(grad_cache_rows=1024),
}


def get_config(machine: str = "") -> RunConfig:
    """The pair phase, from the pretrained T5 small."""
    model = T5Config(d_model=512, d_ff=2048, num_layers=6, num_heads=8)
    return sized("small", model, MACHINES, machine, initial_weights="google-t5/t5-small")
