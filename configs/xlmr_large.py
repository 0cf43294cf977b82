"""The shape of XLM-R large: 559 million parameters, 1,024 dimensions, as in multilingual E5 large.

`jina-jax plan xlmr_large` compiles its step for the first machine below,
`xlmr_large@MACHINE` for another.
"""

from jina_jax.config import BertConfig, RunConfig
from jina_jax.configs._sizes import Setting, sized

MACHINES = {
    "v5e:4x4": Setting(fsdp=4, grad_cache_rows=512),
    "h100:8": Setting(grad_cache_rows=1024),
}


def get_config(machine: str = "") -> RunConfig:
    """The pair phase, from the pretrained XLM-R large."""
    model = BertConfig(
        model_type="xlm-roberta",
        vocab_size=250_002,
        hidden_size=1024,
        num_hidden_layers=24,
        num_attention_heads=16,
        intermediate_size=4096,
        max_position_embeddings=514,
        type_vocab_size=1,
        pad_token_id=1,
        layer_norm_eps=1e-5,
    )
    start = "FacebookAI/xlm-roberta-large"
    return sized("xlmr_large", model, MACHINES, machine, initial_weights=start, tokenizer=start)
