"""The shape of BERT large: 334 million parameters, 1,024 dimensions, as in E5 large and BGE large.

`jina-jax plan bert_large` compiles its step for the first machine below,
`bert_large@MACHINE` for another.
"""

from jina_jax.config import BertConfig, RunConfig
from jina_jax.configs._sizes import Setting, sized

MACHINES = {
    "v5e:4x4": Setting(grad_cache_rows=1024),
    "h100:8": Setting(grad_cache_rows=1024),
}


def get_config(machine: str = "") -> RunConfig:
    """The pair phase, from the pretrained BERT large."""
    model = BertConfig(
        hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, intermediate_size=4096
    )
    start = "google-bert/bert-large-uncased"
    return sized("bert_large", model, MACHINES, machine, initial_weights=start, tokenizer=start)
