"""The shape of Qwen3 0.6B: 596 million parameters, 1,024 dimensions.

`jina-jax plan qwen3_0_6b` compiles its step for the first machine below,
`qwen3_0_6b@MACHINE` for another.
"""

from jina_jax.config import Qwen3Config, RunConfig
from jina_jax.configs._sizes import Setting, sized

MACHINES = {
    "v5e:4x4": Setting(fsdp=4, grad_cache_rows=512, remat="full"),
    "h100:8": Setting(grad_cache_rows=1024),
}


def get_config(machine: str = "") -> RunConfig:
    """The pair phase, from the pretrained Qwen3-Embedding 0.6B."""
    model = Qwen3Config()
    start = "Qwen/Qwen3-Embedding-0.6B"
    return sized(
        "qwen3_0_6b",
        model,
        MACHINES,
        machine,
        initial_weights=start,
        tokenizer=start,
        pooling="lasttoken",
    )
