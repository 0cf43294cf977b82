"""Shapes of encoders: one class for each family, with the fields of its `config.json`.

Every class gives the same few properties, so that nothing else asks which family it is.
"""

from dataclasses import dataclass
from typing import Annotated, Any, Literal, get_args

from annotated_types import Ge, Lt
from pydantic import Discriminator, Tag

from jina_jax.config.fields import NonNegativeInt, PositiveFloat, PositiveInt

_Rate = Annotated[float, Ge(0), Lt(1)]
Pooling = Literal["mean", "cls", "lasttoken"]
"""From the hidden states of a text to its embedding: their mean, the first or the last."""


Activation = Literal["identity", "tanh", "relu", "gelu", "sigmoid", "silu"]
"""Of a Dense layer."""


@dataclass(frozen=True)
class PoolingConfig:
    """From hidden states to an embedding, as the modules of sentence-transformers do it."""

    mode: Pooling = "mean"
    """Mean over the tokens of a text, or the hidden state of its first or last token."""
    include_prompt: bool = True
    """Whether the mean counts the tokens of a prompt too."""
    dense_dimensions: NonNegativeInt = 0
    """Outputs of a Dense layer behind the pooling; 0 for none."""
    dense_bias: bool = True
    dense_activation: Activation = "tanh"
    """Follows the Dense layer."""
    normalize: bool = True
    """Whether `encode` and the exported folder scale embeddings to length 1. The losses, search and
    evaluation compare by cosine either way."""

    @property
    def skips_prompt(self) -> bool:
        """Whether tokens of prompts are left out, which the first and last token never are."""
        return self.mode == "mean" and not self.include_prompt

    def dimensions(self, model: "ModelConfig") -> int:
        """Of an embedding."""
        return self.dense_dimensions or model.dimensions


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
    dropout_rate: _Rate = 0.1
    layer_norm_epsilon: float = 1e-6
    feed_forward_proj: Literal["relu", "gated-gelu"] = "relu"
    """`relu` is T5 v1.0, `gated-gelu` is T5 v1.1."""
    compute_dtype: Literal["float32", "bfloat16"] = "float32"
    """Matrix products run in this dtype; parameters, norms, softmax and loss stay float32."""
    residual_dtype: Literal["float32", "bfloat16"] = "float32"
    """That hidden states are kept in between layers; bfloat16 halves what most of a step's time is
    spent on moving, and rounds every layer's sum. It wants compute_dtype=bfloat16."""

    @property
    def dimensions(self) -> int:
        """Of a hidden state."""
        return self.d_model

    @property
    def heads(self) -> int:
        """Of the attention."""
        return self.num_heads

    @property
    def head_dimensions(self) -> int:
        """Of a query or key of one head."""
        return self.d_kv

    @property
    def layers(self) -> int:
        """Blocks that follow each other."""
        return self.num_layers

    @property
    def matrices(self) -> tuple[str, ...]:
        """Names of those of a layer."""
        is_gated = self.feed_forward_proj == "gated-gelu"
        return (*"qkvo", *(("wi_0", "wi_1") if is_gated else ("wi",)), "wo")

    @property
    def max_positions(self) -> int | None:
        """Tokens of the longest text; None where positions are relative."""
        return None

    @property
    def has_dropout(self) -> bool:
        """Whether training draws any."""
        return self.dropout_rate > 0

    @property
    def has_position_bias(self) -> bool:
        """Whether attention adds a number for the distance to each score."""
        return True


class _Named:
    """The properties of those whose fields have BERT's names."""

    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    max_position_embeddings: int

    @property
    def dimensions(self) -> int:
        """Of a hidden state."""
        return self.hidden_size

    @property
    def heads(self) -> int:
        """Of the attention."""
        return self.num_attention_heads

    @property
    def head_dimensions(self) -> int:
        """Of a query or key of one head."""
        return self.hidden_size // self.num_attention_heads

    @property
    def layers(self) -> int:
        """Blocks that follow each other."""
        return self.num_hidden_layers

    @property
    def matrices(self) -> tuple[str, ...]:
        """Names of those of a layer."""
        return (*"qkvo", "wi", "wo")

    @property
    def max_positions(self) -> int | None:
        """Tokens of the longest text."""
        return self.max_position_embeddings

    @property
    def has_dropout(self) -> bool:
        """Whether training draws any."""
        return any(value > 0 for name, value in vars(self).items() if "dropout" in name)

    @property
    def has_position_bias(self) -> bool:
        """Whether attention adds a number for the distance to each score."""
        return hasattr(self, "relative_attention_num_buckets")


class _Gated(_Named):
    """Those whose feed-forward has a gate."""

    @property
    def matrices(self) -> tuple[str, ...]:
        """Names of those of a layer."""
        return (*super().matrices, "wg")


class _NumberedFromPadding(_Named):
    """Those that number positions from the one after the padding token."""

    pad_token_id: int

    @property
    def first_position(self) -> int:
        """Number of the position of a text's first token."""
        return self.pad_token_id + 1

    @property
    def max_positions(self) -> int | None:
        """Tokens of the longest text."""
        return self.max_position_embeddings - self.first_position


@dataclass(frozen=True)
class BertConfig(_NumberedFromPadding):
    """Shape of a BERT (Devlin et al. 2019), RoBERTa (Liu et al. 2019) or XLM-R (Conneau et al.
    2020) encoder, in the names of Hugging Face's `BertConfig`.
    """

    model_type: Literal["bert", "roberta", "xlm-roberta"] = "bert"
    vocab_size: PositiveInt = 30522
    hidden_size: PositiveInt = 384
    num_hidden_layers: PositiveInt = 6
    num_attention_heads: PositiveInt = 12
    intermediate_size: PositiveInt = 1536
    max_position_embeddings: PositiveInt = 512
    type_vocab_size: PositiveInt = 2
    pad_token_id: NonNegativeInt = 0
    """RoBERTa and XLM-R number positions from the one after it."""
    hidden_dropout_prob: _Rate = 0.1
    attention_probs_dropout_prob: _Rate = 0.1
    layer_norm_eps: float = 1e-12
    compute_dtype: Literal["float32", "bfloat16"] = "float32"
    """Matrix products run in this dtype; parameters, norms, softmax and loss stay float32."""
    residual_dtype: Literal["float32", "bfloat16"] = "float32"
    """That hidden states are kept in between layers; bfloat16 halves what most of a step's time is
    spent on moving, and rounds every layer's sum. It wants compute_dtype=bfloat16."""

    @property
    def first_position(self) -> int:
        """Number of the position of a text's first token."""
        return 0 if self.model_type == "bert" else self.pad_token_id + 1


@dataclass(frozen=True)
class MPNetConfig(_NumberedFromPadding):
    """Shape of an MPNet encoder (Song et al. 2020), in the names of Hugging Face's
    `MPNetConfig`.
    """

    model_type: Literal["mpnet"] = "mpnet"
    vocab_size: PositiveInt = 30527
    hidden_size: PositiveInt = 768
    num_hidden_layers: PositiveInt = 12
    num_attention_heads: PositiveInt = 12
    intermediate_size: PositiveInt = 3072
    max_position_embeddings: PositiveInt = 514
    relative_attention_num_buckets: PositiveInt = 32
    pad_token_id: NonNegativeInt = 1
    """Positions are numbered from the one after it."""
    hidden_dropout_prob: _Rate = 0.1
    attention_probs_dropout_prob: _Rate = 0.1
    layer_norm_eps: float = 1e-12
    compute_dtype: Literal["float32", "bfloat16"] = "float32"
    """Matrix products run in this dtype; parameters, norms, softmax and loss stay float32."""
    residual_dtype: Literal["float32", "bfloat16"] = "float32"
    """That hidden states are kept in between layers; bfloat16 halves what most of a step's time is
    spent on moving, and rounds every layer's sum. It wants compute_dtype=bfloat16."""


@dataclass(frozen=True)
class ModernBertConfig(_Gated):
    """Shape of a ModernBERT encoder (Warner et al. 2024), in the names of Hugging Face's
    `ModernBertConfig`.
    """

    model_type: Literal["modernbert"] = "modernbert"
    vocab_size: PositiveInt = 50368
    hidden_size: PositiveInt = 768
    num_hidden_layers: PositiveInt = 22
    num_attention_heads: PositiveInt = 12
    intermediate_size: PositiveInt = 1152
    max_position_embeddings: PositiveInt = 8192
    global_attn_every_n_layers: PositiveInt = 3
    """The first layer and every so many after it see the whole text, the others a window."""
    local_attention: PositiveInt = 128
    """Tokens of the window."""
    global_rope_theta: PositiveFloat = 160000.0
    local_rope_theta: PositiveFloat = 10000.0
    pad_token_id: NonNegativeInt = 50283
    embedding_dropout: _Rate = 0.0
    attention_dropout: _Rate = 0.0
    mlp_dropout: _Rate = 0.0
    norm_eps: float = 1e-5
    compute_dtype: Literal["float32", "bfloat16"] = "float32"
    """Matrix products run in this dtype; parameters, norms, softmax and loss stay float32."""
    residual_dtype: Literal["float32", "bfloat16"] = "float32"
    """That hidden states are kept in between layers; bfloat16 halves what most of a step's time is
    spent on moving, and rounds every layer's sum. It wants compute_dtype=bfloat16."""


@dataclass(frozen=True)
class Qwen3Config(_Gated):
    """Shape of a Qwen3 decoder (Yang et al. 2025) as an encoder, in the names of Hugging Face's
    `Qwen3Config`.
    """

    model_type: Literal["qwen3"] = "qwen3"
    vocab_size: PositiveInt = 151669
    hidden_size: PositiveInt = 1024
    num_hidden_layers: PositiveInt = 28
    num_attention_heads: PositiveInt = 16
    num_key_value_heads: PositiveInt = 8
    """Each serves as many heads of queries."""
    head_dim: PositiveInt = 128
    intermediate_size: PositiveInt = 3072
    max_position_embeddings: PositiveInt = 32768
    rope_theta: PositiveFloat = 1000000.0
    attention_dropout: _Rate = 0.0
    rms_norm_eps: float = 1e-6
    compute_dtype: Literal["float32", "bfloat16"] = "float32"
    """Matrix products run in this dtype; parameters, norms, softmax and loss stay float32."""
    residual_dtype: Literal["float32", "bfloat16"] = "float32"
    """That hidden states are kept in between layers; bfloat16 halves what most of a step's time is
    spent on moving, and rounds every layer's sum. It wants compute_dtype=bfloat16."""

    @property
    def head_dimensions(self) -> int:
        """Of a query or key of one head."""
        return self.head_dim


_TAGS: dict[str, str] = {
    name: family.model_type
    for family in (BertConfig, MPNetConfig, ModernBertConfig, Qwen3Config)
    for name in get_args(family.__annotations__["model_type"])
}
"""`model_type` → the one that stands for its class."""


def _family(value: Any) -> str:
    """Which class a value or its JSON object is of: T5's has no `model_type`."""
    is_json = isinstance(value, dict)
    kind = value.get("model_type") if is_json else getattr(value, "model_type", None)
    return _TAGS.get(str(kind), "t5")


ModelConfig = Annotated[
    Annotated[T5Config, Tag("t5")]
    | Annotated[BertConfig, Tag("bert")]
    | Annotated[MPNetConfig, Tag("mpnet")]
    | Annotated[ModernBertConfig, Tag("modernbert")]
    | Annotated[Qwen3Config, Tag("qwen3")],
    Discriminator(_family),
]
"""The shape of an encoder of any family."""
