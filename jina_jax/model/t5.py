"""The T5 encoder (Raffel et al. 2020), v1.0 and v1.1, for packed rows.

It reads and writes weights and shapes under the names of Hugging Face; no files are touched here.
"""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Int

from jina_jax.config import T5Config
from jina_jax.errors import UserError
from jina_jax.model.attention import (
    Kernel,
    Mask,
    RelativePositionBias,
    WeightDropout,
    attend_with,
)
from jina_jax.model.dropout import DropoutKey, Site, dropout
from jina_jax.model.family import AT_ONCE, BLOCK_SHARDINGS, Execution, Family, run_layers
from jina_jax.model.huggingface import Layout, all_layers, read_shape, shape_fields
from jina_jax.model.layers import Linear, RMSNorm, table


class SelfAttention(nnx.Module):
    """Multi-head attention without biases and without scaling of the scores (T5)."""

    def __init__(self, config: T5Config, *, rngs: nnx.Rngs) -> None:
        d, inner, dtype = config.d_model, config.num_heads * config.d_kv, config.compute_dtype
        self.num_heads = config.num_heads
        self.dropout_rate = config.dropout_rate
        # The missing 1/sqrt(d_kv) of the scores is in the query's initial scale.
        self.q = Linear(d, inner, std=(d * config.d_kv) ** -0.5, dtype=dtype, rngs=rngs)
        self.k = Linear(d, inner, std=d**-0.5, dtype=dtype, rngs=rngs)
        self.v = Linear(d, inner, std=d**-0.5, dtype=dtype, rngs=rngs)
        self.o = Linear(inner, d, std=inner**-0.5, dtype=dtype, rngs=rngs)

    def __call__(
        self,
        x_ND: Float[Array, "N D"],
        bias: Float[Array, "H ..."],
        mask: Mask,
        *,
        dropout_key: DropoutKey | None = None,
        kernel: Kernel = "at_once",
    ) -> Float[Array, "N D"]:
        """Attends within the texts of each row.

        Args:
          x_ND: normalised hidden states; N = R * L tokens, row by row.
          bias: float32, from `RelativePositionBias`.
          mask: which keys each query may attend to.
          dropout_key: the layer's key, or None for no dropout.
          kernel: how; `cudnn` drops no weights.
        Returns: [N, D] in the compute dtype.
        """
        rows, length = mask.segments_RL.shape

        def heads(projected: Array) -> Array:
            return projected.reshape(rows, length, self.num_heads, -1)

        mixed_RLHK = attend_with(
            kernel, heads(self.q(x_ND)), heads(self.k(x_ND)), heads(self.v(x_ND)), mask,
            bias, WeightDropout.of(dropout_key, self.dropout_rate),
        )  # fmt: skip
        return self.o(mixed_RLHK.reshape(rows * length, -1))


class FeedForward(nnx.Module):
    """`relu(x Wi) Wo` (T5 v1.0) or `(gelu(x Wi0) * x Wi1) Wo` (T5 v1.1)."""

    def __init__(self, config: T5Config, *, rngs: nnx.Rngs) -> None:
        d, f, dtype = config.d_model, config.d_ff, config.compute_dtype
        self.dropout_rate = config.dropout_rate
        self.is_gated = config.feed_forward_proj == "gated-gelu"
        if self.is_gated:
            self.wi_0 = Linear(d, f, std=d**-0.5, dtype=dtype, rngs=rngs)
            self.wi_1 = Linear(d, f, std=d**-0.5, dtype=dtype, rngs=rngs)
        else:
            self.wi = Linear(d, f, std=d**-0.5, dtype=dtype, rngs=rngs)
        self.wo = Linear(f, d, std=f**-0.5, dtype=dtype, rngs=rngs)

    def __call__(
        self, x_ND: Float[Array, "N D"], *, dropout_key: DropoutKey | None = None
    ) -> Float[Array, "N D"]:
        """Maps each token by itself.

        Args:
          x_ND: normalised hidden states, one row per token.
          dropout_key: the layer's key, or None for no dropout.
        Returns: [N, D] in the compute dtype.
        Source: Raffel et al. 2020; Shazeer 2020 (arXiv 2002.05202) for the gated form.
        """
        if self.is_gated:
            # The tanh approximation is what the checkpoints were trained with ("gelu_new").
            h_NF = jax.nn.gelu(self.wi_0(x_ND), approximate=True) * self.wi_1(x_ND)
        else:
            h_NF = jax.nn.relu(self.wi(x_ND))
        h_NF = dropout(h_NF, dropout_key, Site.ACTIVATION, self.dropout_rate)
        return self.wo(h_NF)


class Block(nnx.Module):
    """One layer: attention, then feed-forward, each normalised before and added after."""

    def __init__(self, config: T5Config, *, rngs: nnx.Rngs) -> None:
        self.dropout_rate = config.dropout_rate
        self.attention_norm = RMSNorm(config.d_model, config.layer_norm_epsilon)
        self.attention = SelfAttention(config, rngs=rngs)
        self.feed_forward_norm = RMSNorm(config.d_model, config.layer_norm_epsilon)
        self.feed_forward = FeedForward(config, rngs=rngs)

    def __call__(
        self,
        x_ND: Float[Array, "N D"],
        bias: Float[Array, "H ..."],
        mask: Mask,
        *,
        dropout_key: DropoutKey | None = None,
        kernel: Kernel = "at_once",
    ) -> Float[Array, "N D"]:
        """Maps hidden states to hidden states; all blocks have the same signature.

        Args:
          x_ND: float32 residual stream; N = R * L tokens, row by row.
          bias: float32 relative position bias.
          mask: which keys each query may attend to.
          dropout_key: this layer's key, or None for no dropout.
          kernel: of the attention.
        Returns: float32 residual stream.
        """
        attended_ND = self.attention(
            self.attention_norm(x_ND), bias, mask, dropout_key=dropout_key, kernel=kernel
        )
        x_ND = x_ND + dropout(attended_ND, dropout_key, Site.ATTENTION_OUTPUT, self.dropout_rate)
        mapped_ND = self.feed_forward(self.feed_forward_norm(x_ND), dropout_key=dropout_key)
        return x_ND + dropout(mapped_ND, dropout_key, Site.FEED_FORWARD_OUTPUT, self.dropout_rate)


class T5Encoder(nnx.Module):
    """Token ids to hidden states.

    Initial weights are drawn as T5's are: embeddings with deviation 1, matrices with the inverse
    root of their input size, queries smaller by the root of the head size. Weights are float32;
    matrix products run in `config.compute_dtype`; the residual stream, the norms and the softmax
    stay float32.
    """

    def __init__(self, config: T5Config, *, rngs: nnx.Rngs) -> None:
        self.config, self.dropout_rate = config, config.dropout_rate
        self.embedding_VD = table(config.vocab_size, config.d_model, rngs=rngs, std=1.0)
        self.position_bias = RelativePositionBias(
            config.relative_attention_num_buckets, config.relative_attention_max_distance,
            config.num_heads, std=config.d_model**-0.5, rngs=rngs,
        )  # fmt: skip
        self.blocks = nnx.List([Block(config, rngs=rngs) for _ in range(config.num_layers)])
        self.final_norm = RMSNorm(config.d_model, config.layer_norm_epsilon)

    def __call__(
        self,
        ids_RL: Int[Array, "R L"],
        segments_RL: Int[Array, "R L"],
        *,
        dropout_key: DropoutKey | None = None,
        execution: Execution = AT_ONCE,
    ) -> Float[Array, "R L D"]:
        """Encodes packed rows; texts of a row do not see each other.

        Args:
          ids_RL: int token ids in 0..vocab_size-1.
          segments_RL: int, 0 for padding, 1.. for the texts of a row; a batch with one text a
            row has segments 0 and 1 alone.
          dropout_key: the same key and row numbers repeat the same dropout exactly. None turns
            dropout off.
          execution: how the layers are run.
        Returns: float32 [R, L, D]; positions of padding hold no meaning.
        """
        rows, length = ids_RL.shape
        outside = None if dropout_key is None else dropout_key.fold_in(0)
        # Tokens stay in one axis between attentions: CPU products of two matrices are faster
        # than products with a batch axis.
        x_ND = execution.access.look_up(self.embedding_VD[...], ids_RL.reshape(-1))
        x_ND = dropout(x_ND, outside, Site.EMBEDDING, self.dropout_rate)
        bias = self.position_bias(length, execution.kernel)
        mask = Mask(segments_RL)
        x_ND = run_layers(
            list(self.blocks), x_ND,
            lambda block, x_ND, key, _: block(
                x_ND, bias, mask, dropout_key=key, kernel=execution.kernel
            ),
            dropout_key, execution, self.config,
        )  # fmt: skip
        x_ND = self.final_norm(x_ND)
        x_ND = dropout(x_ND, outside, Site.FINAL_NORM, self.dropout_rate)
        return x_ND.reshape(rows, length, -1)


# transformers writes the embedding under the first name; conversions of encoders alone also use
# the second.
_EMBEDDING = "shared.weight"
_EMBEDDING_ALIAS = "encoder.embed_tokens.weight"
_OTHER_HALF = ("decoder.", "lm_head.")
"""Of the other half of a full T5 checkpoint."""
_FEED_FORWARDS = ("relu", "gated-gelu")


def _layout(config: T5Config) -> Layout:
    is_gated = config.feed_forward_proj == "gated-gelu"
    attention, feed_forward = "encoder.block.{}.layer.0", "encoder.block.{}.layer.1"
    layer = {
        f"{attention}.SelfAttention.{name}.weight": f"blocks/{{}}/attention/{name}/kernel"
        for name in ("q", "k", "v", "o")
    }
    layer[f"{attention}.layer_norm.weight"] = "blocks/{}/attention_norm/scale_D"
    for name in ("wi_0", "wi_1", "wo") if is_gated else ("wi", "wo"):
        layer[f"{feed_forward}.DenseReluDense.{name}.weight"] = (
            f"blocks/{{}}/feed_forward/{name}/kernel"
        )
    layer[f"{feed_forward}.layer_norm.weight"] = "blocks/{}/feed_forward_norm/scale_D"
    return {
        _EMBEDDING: "embedding_VD",
        "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight": (
            "position_bias/table"
        ),
        "encoder.final_layer_norm.weight": "final_norm/scale_D",
        **all_layers(layer, config.num_layers),
    }


def _one_embedding(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The tensors with the embedding under its first name, and without a decoder."""
    kept = {k: v for k, v in tensors.items() if not k.startswith(_OTHER_HALF)}
    alias = kept.pop(_EMBEDDING_ALIAS, None)
    if alias is not None and not np.array_equal(kept.setdefault(_EMBEDDING, alias), alias):
        raise UserError(
            f"{_EMBEDDING} and {_EMBEDDING_ALIAS} differ, but T5 has one embedding: "
            "remove the one that was not trained"
        )
    return kept


def _read_config(config_json: Mapping[str, Any]) -> T5Config:
    """Shape of the encoder that a Hugging Face `config.json` describes.

    Fields that old files leave out take T5's defaults, which are those of `T5Config`.

    Args:
      config_json: the parsed file.
    Raises: UserError when it has a feed-forward other than `relu` and `gated-gelu`, or holds a
      value of the wrong type.
    """
    feed_forward = config_json.get("feed_forward_proj", "relu")
    if feed_forward not in _FEED_FORWARDS:
        raise UserError(
            f"feed_forward_proj={feed_forward!r} in config.json is not supported; "
            f"expected one of {', '.join(_FEED_FORWARDS)}"
        )
    config = read_shape(T5Config, config_json)
    buckets = config.relative_attention_num_buckets
    if buckets % 4 or config.relative_attention_max_distance <= buckets // 4:
        raise UserError(
            f"relative_attention_num_buckets={buckets} and relative_attention_max_distance="
            f"{config.relative_attention_max_distance} in config.json: the first must divide by 4, "
            "and a quarter of it must lie below the second"
        )
    return config


def _write_config(config: T5Config) -> dict[str, Any]:
    """`config.json` of a `T5EncoderModel`."""
    return {
        "architectures": ["T5EncoderModel"],
        "model_type": "t5",
        **shape_fields(config),
        "is_encoder_decoder": False,
        "use_cache": False,
        "tie_word_embeddings": True,
        "pad_token_id": 0,
        "eos_token_id": 1,
        "decoder_start_token_id": 0,
    }


FAMILY = Family(
    name="T5",
    config=T5Config,
    model_types=("t5",),
    encoder=T5Encoder,
    layout=_layout,
    used=_one_embedding,
    ignored=_OTHER_HALF,
    read_config=_read_config,
    write_config=_write_config,
    shardings={
        "embedding_VD": PartitionSpec("tensor", "fsdp"),
        "position_bias/table": PartitionSpec(None, "tensor"),
        **BLOCK_SHARDINGS,
    },
    divided={"d_model": "fsdp", "num_heads": "tensor", "d_ff": "tensor", "vocab_size": "tensor"},
)
