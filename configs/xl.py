"""The shape of T5 v1.1 XL: 1.2 billion parameters of encoder, 2,048 dimensions.

`jina-jax plan xl` compiles its step for the first machine below, `xl@MACHINE` for another.
"""

from jina_jax.config import RunConfig, T5Config
from jina_jax.configs._sizes import Setting, sized

MACHINES = {
    "v5p:8x8x8": Setting(fsdp=4),
    "v5e:16x16": Setting(fsdp=16, remat="full"),
    "v6e:16x16": Setting(fsdp=8, remat="full"),
    "h100:8": Setting(fsdp=8, grad_cache_rows=512, remat="full"),
}


def get_config(machine: str = "") -> RunConfig:
    """The pair phase; `--train.initial-weights FOLDER` starts from a pretrained encoder."""
    model = T5Config(
        d_model=2048, d_ff=5120, num_layers=24, num_heads=32, feed_forward_proj="gated-gelu"
    )
    return sized("xl", model, MACHINES, machine)
