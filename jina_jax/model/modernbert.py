"""The ModernBERT encoder (Warner et al. 2024, arXiv 2412.13663).

Normalised before each part, without biases; rotary positions; gated feed-forward; the first layer
and every third after it see the whole text, the others a window around each token.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from jina_jax.config import ModernBertConfig
from jina_jax.errors import UserError
from jina_jax.model.attention import (
    Kernel,
    Mask,
    WeightDropout,
    attend_with,
    rotary,
    segment_positions,
)
from jina_jax.model.dropout import DropoutKey, Site, dropout
from jina_jax.model.family import (
    AT_ONCE,
    BLOCK_SHARDINGS,
    NAMED_DIVIDED,
    TABLE_SHARDING,
    Execution,
    Family,
    run_layers,
)
from jina_jax.model.huggingface import (
    FOR_SERVERS,
    Layout,
    all_layers,
    of_encoder,
    read_shape,
    require,
    require_divides,
    shape_fields,
)
from jina_jax.model.layers import INITIAL_STD, LayerNorm, Linear, gelu, table


class ModernBertAttention(nnx.Module):
    """Multi-head attention with rotary positions and scaled scores, without biases."""

    def __init__(self, config: ModernBertConfig, *, rngs: nnx.Rngs) -> None:
        d, dtype = config.hidden_size, config.compute_dtype
        self.num_heads, self.dropout_rate = config.num_attention_heads, config.attention_dropout
        out_std = INITIAL_STD / (2 * config.num_hidden_layers) ** 0.5

        def linear(std: float) -> Linear:
            return Linear(d, d, std=std, dtype=dtype, rngs=rngs)

        self.q, self.k, self.v = (linear(INITIAL_STD) for _ in range(3))
        self.o = linear(out_std)

    def __call__(
        self,
        x_ND: Float[Array, "N D"],
        masks: tuple[Mask, Mask],
        is_global: bool | Array,
        position_RL: Int[Array, "R L"],
        theta: float | Array,
        *,
        dropout_key: DropoutKey | None,
        kernel: Kernel,
    ) -> Float[Array, "N D"]:
        """Attends within the texts of each row.

        Args:
          x_ND: normalised hidden states; N = R * L tokens, row by row.
          masks: which keys each query may attend to, in a global layer and in a local one.
          is_global: which of them this layer is.
          position_RL: of each token in its text.
          theta: of the rotary positions.
          dropout_key: the layer's key, or None for no dropout.
          kernel: how; `cudnn` drops no weights.
        Returns: [N, D] in the compute dtype.
        """
        rows, length = position_RL.shape

        def heads(projected: Array) -> Array:
            return projected.reshape(rows, length, self.num_heads, -1)

        q_RLHK = rotary(heads(self.q(x_ND)), position_RL, theta)
        k_RLHK = rotary(heads(self.k(x_ND)), position_RL, theta)
        mixed = partial(
            attend_with, kernel, q_RLHK * q_RLHK.shape[-1] ** -0.5, k_RLHK, heads(self.v(x_ND)),
            drop=WeightDropout.of(dropout_key, self.dropout_rate),
        )  # fmt: skip
        if isinstance(is_global, bool):
            mixed_RLHK = mixed(masks[0] if is_global else masks[1])
        else:
            mixed_RLHK = jax.lax.cond(is_global, lambda: mixed(masks[0]), lambda: mixed(masks[1]))
        attended_ND = self.o(mixed_RLHK.reshape(rows * length, -1))
        return dropout(attended_ND, dropout_key, Site.ATTENTION_OUTPUT, self.dropout_rate)


class ModernBertBlock(nnx.Module):
    """One layer: attention, then `(gelu(x Wi) * x Wg) Wo`, each normalised before and added."""

    def __init__(self, config: ModernBertConfig, *, is_first: bool = False, rngs: nnx.Rngs) -> None:
        d, f, dtype = config.hidden_size, config.intermediate_size, config.compute_dtype
        self.is_first, self.dropout_rate = is_first, config.mlp_dropout
        if not is_first:  # The embeddings are normalised already.
            self.attention_norm = LayerNorm(d, config.norm_eps, has_bias=False)
        self.attention = ModernBertAttention(config, rngs=rngs)
        self.feed_forward_norm = LayerNorm(d, config.norm_eps, has_bias=False)
        out_std = INITIAL_STD / (2 * config.num_hidden_layers) ** 0.5
        self.wi = Linear(d, f, std=INITIAL_STD, dtype=dtype, rngs=rngs)
        self.wg = Linear(d, f, std=INITIAL_STD, dtype=dtype, rngs=rngs)
        self.wo = Linear(f, d, std=out_std, dtype=dtype, rngs=rngs)

    def __call__(
        self,
        x_ND: Float[Array, "N D"],
        masks: tuple[Mask, Mask],
        is_global: bool | Array,
        position_RL: Int[Array, "R L"],
        theta: float | Array,
        *,
        dropout_key: DropoutKey | None,
        kernel: Kernel,
    ) -> Float[Array, "N D"]:
        """Maps float32 hidden states to float32 hidden states.

        Args as for `ModernBertAttention`.
        """
        normal_ND = x_ND if self.is_first else self.attention_norm(x_ND)
        x_ND = x_ND + self.attention(
            normal_ND, masks, is_global, position_RL, theta, dropout_key=dropout_key, kernel=kernel
        )
        normal_ND = self.feed_forward_norm(x_ND)
        h_NF = gelu(self.wi(normal_ND)) * self.wg(normal_ND)
        h_NF = dropout(h_NF, dropout_key, Site.ACTIVATION, self.dropout_rate)
        return x_ND + self.wo(h_NF)


class ModernBertEncoder(nnx.Module):
    """Token ids to hidden states; float32 weights, norms and residual stream."""

    def __init__(self, config: ModernBertConfig, *, rngs: nnx.Rngs) -> None:
        self.config = config
        self.word_VD = table(config.vocab_size, config.hidden_size, rngs=rngs)
        self.embedding_norm = LayerNorm(config.hidden_size, config.norm_eps, has_bias=False)
        self.blocks = nnx.List(
            [
                ModernBertBlock(config, is_first=number == 0, rngs=rngs)
                for number in range(config.num_hidden_layers)
            ]
        )
        self.final_norm = LayerNorm(config.hidden_size, config.norm_eps, has_bias=False)

    def __call__(
        self,
        ids_RL: Int[Array, "R L"],
        segments_RL: Int[Array, "R L"],
        *,
        dropout_key: DropoutKey | None = None,
        execution: Execution = AT_ONCE,
    ) -> Float[Array, "R L D"]:
        """As `encoder.apply`."""
        config, (rows, length) = self.config, ids_RL.shape
        x_ND = execution.access.look_up(self.word_VD[...], ids_RL.reshape(-1))
        x_ND = self.embedding_norm(x_ND)
        outside = None if dropout_key is None else dropout_key.fold_in(config.num_hidden_layers)
        x_ND = dropout(x_ND, outside, Site.EMBEDDING, config.embedding_dropout)
        position_RL = segment_positions(segments_RL)
        masks = Mask(segments_RL), Mask(segments_RL, window=config.local_attention // 2)

        def run(
            block: ModernBertBlock, x_ND: Array, key: DropoutKey | None, number: int | Array
        ) -> Array:
            is_global = number % config.global_attn_every_n_layers == 0
            return block(
                x_ND, masks, is_global, position_RL,
                jnp.where(is_global, config.global_rope_theta, config.local_rope_theta),
                dropout_key=key, kernel=execution.kernel,
            )  # fmt: skip

        # The first block lacks a norm, so that a loop over all would not be of one structure.
        for first, blocks in ((0, self.blocks[:1]), (1, self.blocks[1:])):
            if blocks:
                x_ND = run_layers(list(blocks), x_ND, run, dropout_key, execution, config, first)
        return self.final_norm(x_ND).reshape(rows, length, -1)


_UNUSED = ("head.", "decoder.", "classifier.")
# What has to be as implemented; transformers may leave the field out.
_REQUIRED = {
    "hidden_activation": "gelu",
    "norm_bias": False,
    "attention_bias": False,
    "mlp_bias": False,
}
_KINDS = {"full_attention": "global", "sliding_attention": "local"}


def _layout(config: ModernBertConfig) -> Layout:
    attention = "+".join(f"blocks/{{}}/attention/{name}/kernel" for name in "qkv")
    layer = {
        "layers.{}.attn_norm.weight": "blocks/{}/attention_norm/scale_D",
        "layers.{}.attn.Wqkv.weight": attention,
        "layers.{}.attn.Wo.weight": "blocks/{}/attention/o/kernel",
        "layers.{}.mlp_norm.weight": "blocks/{}/feed_forward_norm/scale_D",
        "layers.{}.mlp.Wi.weight": "blocks/{}/wi/kernel+blocks/{}/wg/kernel",
        "layers.{}.mlp.Wo.weight": "blocks/{}/wo/kernel",
    }
    layout = {
        "embeddings.tok_embeddings.weight": "word_VD",
        "embeddings.norm.weight": "embedding_norm/scale_D",
        "final_norm.weight": "final_norm/scale_D",
        **all_layers(layer, config.num_hidden_layers),
    }
    del layout["layers.0.attn_norm.weight"]
    return layout


def _read_config(config_json: Mapping[str, Any]) -> ModernBertConfig:
    """Shape that a `config.json` describes, as transformers 4 or 5 writes it."""
    require(config_json, _REQUIRED)
    values = dict(config_json)
    ropes = values.get("rope_parameters")
    for kind, ours in _KINDS.items():
        rope = ropes.get(kind) if isinstance(ropes, dict) else None
        if not isinstance(rope, dict):
            continue
        if rope.get("rope_type", "default") != "default":
            raise UserError(
                f"rope_parameters.{kind}.rope_type={rope['rope_type']!r} in config.json is not "
                f"supported; expected 'default'"
            )
        if "rope_theta" in rope:
            values[f"{ours}_rope_theta"] = rope["rope_theta"]
    kinds = values.get("layer_types")
    if isinstance(kinds, list):
        whole = [number for number, kind in enumerate(kinds) if kind == "full_attention"]
        every = whole[1] if len(whole) > 1 else max(len(kinds), 1)
        if whole != list(range(0, len(kinds), every)) or not set(kinds) <= set(_KINDS):
            raise UserError(
                f"layer_types={kinds!r:.200} in config.json is not supported; expected "
                f"full_attention in the first layer and every so many after it"
            )
        values["global_attn_every_n_layers"] = every
    config = read_shape(ModernBertConfig, values)
    require_divides(config, "hidden_size", "num_attention_heads")
    return config


def _write_config(config: ModernBertConfig) -> dict[str, Any]:
    """In the names of transformers 4, which 5 reads too."""
    return {
        "architectures": ["ModernBertModel"], **shape_fields(config), **_REQUIRED, **FOR_SERVERS,
        "initializer_cutoff_factor": 2.0, "classifier_activation": "gelu",
    }  # fmt: skip


FAMILY = Family(
    name="ModernBERT",
    config=ModernBertConfig,
    model_types=("modernbert",),
    encoder=ModernBertEncoder,
    layout=_layout,
    used=partial(of_encoder, prefix="model.", unused=_UNUSED),
    ignored=(),
    read_config=_read_config,
    write_config=_write_config,
    shardings={
        "word_VD": TABLE_SHARDING,
        **BLOCK_SHARDINGS,
    },
    divided=NAMED_DIVIDED,
)
