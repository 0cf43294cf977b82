"""The shape of T5 v1.1 XXL: 4.8 billion parameters of encoder, 4,096 dimensions.

`jina-jax plan xxl` compiles its step for the first machine below, `xxl@MACHINE` for another.
"""

from jina_jax.config import RunConfig, T5Config
from jina_jax.configs._sizes import Setting, sized

MACHINES = {
    "v5p:8x8x8": Setting(fsdp=64, remat="full"),
    "v6e:16x16": Setting(fsdp=64, remat="full"),
    "v5e:16x16": Setting(fsdp=64, remat="full", gather="ring"),
    "h100:8": Setting(fsdp=8, grad_cache_rows=256, remat="full"),
}


def get_config(machine: str = "") -> RunConfig:
    """The pair phase; `--train.initial-weights FOLDER` starts from a pretrained encoder."""
    model = T5Config(
        d_model=4096, d_ff=10240, num_layers=24, num_heads=64, feed_forward_proj="gated-gelu"
    )
    return sized("xxl", model, MACHINES, machine)
