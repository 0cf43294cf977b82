"""Shapes of encoders."""

from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Ge, Lt

from jina_jax.config.fields import PositiveInt


@dataclass(frozen=True)
class T5Config:
    """Shape of a T5 encoder (Raffel et al. 2020), in the names of Hugging Face's `T5Config`."""

    vocab_size: PositiveInt = 32128
    d_model: PositiveInt = 512
    d_kv: PositiveInt = 64
    d_ff: PositiveInt = 2048
    num_layers: PositiveInt = 6
    num_heads: PositiveInt = 8
    relative_attention_num_buckets: int = 32
    relative_attention_max_distance: int = 128
    dropout_rate: Annotated[float, Ge(0), Lt(1)] = 0.1
    layer_norm_epsilon: float = 1e-6
    feed_forward_proj: Literal["relu", "gated-gelu"] = "relu"
    """`relu` is T5 v1.0, `gated-gelu` is T5 v1.1."""
    compute_dtype: Literal["float32", "bfloat16"] = "float32"
    """Matrix products run in this dtype; parameters, norms, softmax and loss stay float32."""


@dataclass(frozen=True)
class BertConfig:
    """Shape of a BERT encoder (Devlin et al. 2019), in the names of Hugging Face's `BertConfig`."""

    vocab_size: PositiveInt = 30522
    hidden_size: int = 384
    num_hidden_layers: int = 6
    num_attention_heads: int = 12
    intermediate_size: int = 1536
    max_position_embeddings: int = 512
    type_vocab_size: int = 2
    layer_norm_eps: float = 1e-12
    compute_dtype: Literal["float32", "bfloat16"] = "float32"
    """Matrix products run in this dtype; parameters, norms and softmax stay float32."""
