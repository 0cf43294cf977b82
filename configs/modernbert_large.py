"""The shape of ModernBERT large: 395 million parameters, 1,024 dimensions.

`jina-jax plan modernbert_large` compiles its step for the first machine below,
`modernbert_large@MACHINE` for another.
"""

from jina_jax.config import ModernBertConfig, RunConfig
from jina_jax.configs._sizes import Setting, sized

MACHINES = {
    "v5e:4x4": Setting(grad_cache_rows=512),
    "h100:8": Setting(grad_cache_rows=1024),
}


def get_config(machine: str = "") -> RunConfig:
    """The pair phase, from the pretrained ModernBERT large."""
    model = ModernBertConfig(
        hidden_size=1024, num_hidden_layers=28, num_attention_heads=16, intermediate_size=2624
    )
    start = "answerdotai/ModernBERT-large"
    return sized(
        "modernbert_large", model, MACHINES, machine, initial_weights=start, tokenizer=start
    )
