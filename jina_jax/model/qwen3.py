"""The Qwen3 decoder (Yang et al. 2025, arXiv 2505.09388) as an encoder, as Qwen3-Embedding uses it.

Each token sees those before it; several heads of queries share a head of keys and values; queries
and keys are normalised; rotary positions; gated feed-forward; no biases.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from jina_jax.config import Qwen3Config
from jina_jax.errors import UserError
from jina_jax.model.attention import (
    Kernel,
    Mask,
    WeightDropout,
    attend_with,
    rotary,
    segment_positions,
)
from jina_jax.model.dropout import DropoutKey
from jina_jax.model.family import (
    AT_ONCE,
    BLOCK_SHARDINGS,
    TABLE_SHARDING,
    Execution,
    Family,
    run_layers,
)
from jina_jax.model.huggingface import (
    Layout,
    all_layers,
    of_encoder,
    read_shape,
    require,
    require_divides,
    shape_fields,
)
from jina_jax.model.layers import INITIAL_STD, Linear, RMSNorm, table


class Qwen3Attention(nnx.Module):
    """Grouped-query attention with normalised queries and keys."""

    def __init__(self, config: Qwen3Config, *, rngs: nnx.Rngs) -> None:
        self.config = config
        d, k = config.hidden_size, config.head_dim

        def linear(in_size: int, out_size: int) -> Linear:
            return Linear(in_size, out_size, std=INITIAL_STD, dtype=config.compute_dtype, rngs=rngs)

        self.q = linear(d, config.num_attention_heads * k)
        self.k = linear(d, config.num_key_value_heads * k)
        self.v = linear(d, config.num_key_value_heads * k)
        self.o = linear(config.num_attention_heads * k, d)
        self.q_norm = RMSNorm(k, config.rms_norm_eps)
        self.k_norm = RMSNorm(k, config.rms_norm_eps)

    def __call__(
        self,
        x_ND: Float[Array, "N D"],
        mask: Mask,
        position_RL: Int[Array, "R L"],
        *,
        dropout_key: DropoutKey | None,
        kernel: Kernel,
    ) -> Float[Array, "N D"]:
        """Attends within the texts of each row, to what comes before.

        Args:
          x_ND: normalised hidden states; N = R * L tokens, row by row.
          mask: which keys each query may attend to.
          position_RL: of each token in its text.
          dropout_key: the layer's key, or None for no dropout.
          kernel: how; `cudnn` drops no weights.
        Returns: [N, D] in the compute dtype.
        """
        config, (rows, length) = self.config, position_RL.shape

        def heads(projected: Array, norm: RMSNorm | None) -> Array:
            x_MK = projected.reshape(-1, config.head_dim)
            if norm is not None:
                x_MK = norm(x_MK).astype(projected.dtype)
            x_RLHK = x_MK.reshape(rows, length, -1, config.head_dim)
            return x_RLHK if norm is None else rotary(x_RLHK, position_RL, config.rope_theta)

        shared = config.num_attention_heads // config.num_key_value_heads
        q_RLHK = heads(self.q(x_ND), self.q_norm)
        k_RLHK = jnp.repeat(heads(self.k(x_ND), self.k_norm), shared, axis=2)
        v_RLHK = jnp.repeat(heads(self.v(x_ND), None), shared, axis=2)
        mixed_RLHK = attend_with(
            kernel, q_RLHK * config.head_dim**-0.5, k_RLHK, v_RLHK, mask,
            drop=WeightDropout.of(dropout_key, config.attention_dropout),
        )  # fmt: skip
        return self.o(mixed_RLHK.reshape(rows * length, -1))


class Qwen3Block(nnx.Module):
    """One layer: attention, then `(silu(x Wg) * x Wi) Wo`, each normalised before and added."""

    def __init__(self, config: Qwen3Config, *, rngs: nnx.Rngs) -> None:
        d, f, dtype = config.hidden_size, config.intermediate_size, config.compute_dtype
        self.attention_norm = RMSNorm(d, config.rms_norm_eps)
        self.attention = Qwen3Attention(config, rngs=rngs)
        self.feed_forward_norm = RMSNorm(d, config.rms_norm_eps)
        self.wg = Linear(d, f, std=INITIAL_STD, dtype=dtype, rngs=rngs)
        self.wi = Linear(d, f, std=INITIAL_STD, dtype=dtype, rngs=rngs)
        self.wo = Linear(f, d, std=INITIAL_STD, dtype=dtype, rngs=rngs)

    def __call__(
        self,
        x_ND: Float[Array, "N D"],
        mask: Mask,
        position_RL: Int[Array, "R L"],
        *,
        dropout_key: DropoutKey | None,
        kernel: Kernel,
    ) -> Float[Array, "N D"]:
        """Maps float32 hidden states to float32 hidden states.

        Args as for `Qwen3Attention`.
        """
        x_ND = x_ND + self.attention(
            self.attention_norm(x_ND), mask, position_RL,
            dropout_key=dropout_key, kernel=kernel,
        )  # fmt: skip
        normal_ND = self.feed_forward_norm(x_ND)
        return x_ND + self.wo(jax.nn.silu(self.wg(normal_ND)) * self.wi(normal_ND))


class Qwen3Encoder(nnx.Module):
    """Token ids to hidden states; float32 weights, norms and residual stream."""

    def __init__(self, config: Qwen3Config, *, rngs: nnx.Rngs) -> None:
        self.config = config
        self.word_VD = table(config.vocab_size, config.hidden_size, rngs=rngs)
        self.blocks = nnx.List(
            [Qwen3Block(config, rngs=rngs) for _ in range(config.num_hidden_layers)]
        )
        self.final_norm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def __call__(
        self,
        ids_RL: Int[Array, "R L"],
        segments_RL: Int[Array, "R L"],
        *,
        dropout_key: DropoutKey | None = None,
        execution: Execution = AT_ONCE,
    ) -> Float[Array, "R L D"]:
        """As `encoder.apply`."""
        rows, length = ids_RL.shape
        x_ND = execution.access.look_up(self.word_VD[...], ids_RL.reshape(-1))
        position_RL = segment_positions(segments_RL)
        mask = Mask(segments_RL, is_causal=True)
        x_ND = run_layers(
            list(self.blocks), x_ND,
            lambda block, x_ND, key, _: block(
                x_ND, mask, position_RL, dropout_key=key, kernel=execution.kernel
            ),
            dropout_key, execution, self.config,
        )  # fmt: skip
        return self.final_norm(x_ND).reshape(rows, length, -1)


# What has to be as implemented; transformers may leave the field out.
_REQUIRED = {"hidden_act": "silu", "attention_bias": False, "use_sliding_window": False}


def _layout(config: Qwen3Config) -> Layout:
    attention = {name: f"self_attn.{name}_proj" for name in "qkvo"}
    layer = {
        f"layers.{{}}.{theirs}.weight": f"blocks/{{}}/attention/{ours}/kernel"
        for ours, theirs in attention.items()
    }
    layer |= {
        "layers.{}.self_attn.q_norm.weight": "blocks/{}/attention/q_norm/scale_D",
        "layers.{}.self_attn.k_norm.weight": "blocks/{}/attention/k_norm/scale_D",
        "layers.{}.input_layernorm.weight": "blocks/{}/attention_norm/scale_D",
        "layers.{}.post_attention_layernorm.weight": "blocks/{}/feed_forward_norm/scale_D",
        "layers.{}.mlp.gate_proj.weight": "blocks/{}/wg/kernel",
        "layers.{}.mlp.up_proj.weight": "blocks/{}/wi/kernel",
        "layers.{}.mlp.down_proj.weight": "blocks/{}/wo/kernel",
    }
    return {
        "embed_tokens.weight": "word_VD",
        "norm.weight": "final_norm/scale_D",
        **all_layers(layer, config.num_hidden_layers),
    }


def _read_config(config_json: Mapping[str, Any]) -> Qwen3Config:
    """Shape that a `config.json` describes, as transformers 4 or 5 writes it."""
    require(config_json, _REQUIRED)
    values = dict(config_json)
    rope = values.get("rope_parameters") or values.get("rope_scaling") or {}
    kind = rope.get("rope_type", "default") if isinstance(rope, dict) else rope
    if kind != "default":
        raise UserError(f"rope_type={kind!r:.200} in config.json is not supported; only 'default'")
    if "rope_theta" in rope:
        values["rope_theta"] = rope["rope_theta"]
    config = read_shape(Qwen3Config, values)
    require_divides(config, "num_attention_heads", "num_key_value_heads")
    return config


def _write_config(config: Qwen3Config) -> dict[str, Any]:
    """In the names of transformers 4, which 5 reads too."""
    return {
        "architectures": ["Qwen3Model"], **shape_fields(config), **_REQUIRED, "use_cache": False,
    }  # fmt: skip


FAMILY = Family(
    name="Qwen3",
    config=Qwen3Config,
    model_types=("qwen3",),
    encoder=Qwen3Encoder,
    layout=_layout,
    used=partial(of_encoder, prefix="model."),
    ignored=("lm_head.",),
    read_config=_read_config,
    write_config=_write_config,
    shardings={
        "word_VD": TABLE_SHARDING,
        **BLOCK_SHARDINGS,
    },
    divided={
        "hidden_size": "fsdp", "num_key_value_heads": "tensor", "intermediate_size": "tensor",
    },
)  # fmt: skip
