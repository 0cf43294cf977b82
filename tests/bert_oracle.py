"""torch's BERT and its kin with the same weights as ours, at a tiny shape."""

import torch
import transformers

from jina_jax.config import BertConfig
from jina_jax.model.huggingface import DTYPES

TINY_BERT = BertConfig(
    vocab_size=101, hidden_size=24, num_hidden_layers=3, num_attention_heads=4,
    intermediate_size=48, max_position_embeddings=40,
)  # fmt: skip


def torch_bert(cls, config: BertConfig, *, weight_std: float = 0.2, **kwargs):
    """A random model whose every weight matters.

    BERT starts with norms that do nothing, biases of 0 and matrices so small that attention is
    all but uniform: each would hide a mistake.
    """
    torch.manual_seed(0)
    fields = {k: v for k, v in vars(config).items() if k not in (*DTYPES, "model_type")}
    kind = type(cls.config_class()) if cls.config_class else transformers.BertConfig
    model = cls(kind(**fields, **kwargs))
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "LayerNorm.weight" in name:
                weight.uniform_(0.5, 1.5)
            elif name.endswith("bias"):
                weight.normal_(0, 0.3)
            else:
                weight.normal_(0, weight_std)
    return model.eval()
