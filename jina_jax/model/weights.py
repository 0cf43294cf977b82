"""Weights and shapes in the names of Hugging Face's `T5EncoderModel`: pure mappings, no files."""

import dataclasses
from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
from flax import nnx

from jina_jax.config import T5Config
from jina_jax.errors import UserError
from jina_jax.model.layout import Tensor, fill_params, read_shape
from jina_jax.model.t5 import init_params

# transformers writes the embedding under the first name; conversions of encoders alone also use
# the second.
_EMBEDDING = "shared.weight"
_EMBEDDING_ALIAS = "encoder.embed_tokens.weight"
IGNORED_PREFIXES = ("decoder.", "lm_head.")
"""Of the other half of a full T5 checkpoint."""
_FEED_FORWARDS = ("relu", "gated-gelu")


def _layout(config: T5Config) -> dict[str, Tensor]:
    """Hugging Face name → place in the parameters."""
    is_gated = config.feed_forward_proj == "gated-gelu"
    projections = ("wi_0", "wi_1", "wo") if is_gated else ("wi", "wo")
    layout = {
        _EMBEDDING: Tensor(("embedding_VD",), False),
        "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight": Tensor(
            ("position_bias", "table"), False
        ),
        "encoder.final_layer_norm.weight": Tensor(("final_norm", "scale_D"), False),
    }
    for i in range(config.num_layers):
        ours: tuple[str | int, ...] = ("blocks", i)
        attention, feed_forward = f"encoder.block.{i}.layer.0", f"encoder.block.{i}.layer.1"
        for name in ("q", "k", "v", "o"):
            layout[f"{attention}.SelfAttention.{name}.weight"] = Tensor(
                (*ours, "attention", name, "kernel"), True
            )
        layout[f"{attention}.layer_norm.weight"] = Tensor(
            (*ours, "attention_norm", "scale_D"), False
        )
        for name in projections:
            layout[f"{feed_forward}.DenseReluDense.{name}.weight"] = Tensor(
                (*ours, "feed_forward", name, "kernel"), True
            )
        layout[f"{feed_forward}.layer_norm.weight"] = Tensor(
            (*ours, "feed_forward_norm", "scale_D"), False
        )
    return layout


def _one_embedding(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The tensors with the embedding under its first name, and without a decoder."""
    kept = {k: v for k, v in tensors.items() if not k.startswith(IGNORED_PREFIXES)}
    alias = kept.pop(_EMBEDDING_ALIAS, None)
    if alias is not None and not np.array_equal(kept.setdefault(_EMBEDDING, alias), alias):
        raise UserError(
            f"{_EMBEDDING} and {_EMBEDDING_ALIAS} differ, but T5 has one embedding: "
            "remove the one that was not trained"
        )
    return kept


def from_huggingface(tensors: Mapping[str, np.ndarray], config: T5Config) -> nnx.State:
    """Parameters from the tensors of a `T5EncoderModel` or a full T5 checkpoint.

    Args:
      tensors: name → array, as in `model.safetensors`; any float dtype. The embedding may be
        called `shared.weight` or `encoder.embed_tokens.weight`; `decoder.*` and `lm_head.*` are
        left out.
      config: the shape that the tensors must have.
    Returns: float32 parameters in host memory, in the structure of `init_params`.
    Raises: UserError naming each missing, unexpected and mis-shaped tensor.
    """
    return fill_params(
        _layout(config), _one_embedding(tensors), partial(init_params, config), "T5 encoder"
    )


def to_huggingface(params: nnx.State, config: T5Config) -> dict[str, np.ndarray]:
    """The tensors of a `T5EncoderModel`, as transformers 4 and 5 write and read them.

    Args:
      params: from `init_params`, training or `from_huggingface`.
      config: the shape of `params`.
    Returns: name → C-contiguous float32 array on the host.
    """
    flat = dict(nnx.to_flat_state(params))
    tensors = {}
    for name, (path, is_transposed) in _layout(config).items():
        array = np.asarray(flat[path][...], np.float32)
        tensors[name] = np.ascontiguousarray(array.T if is_transposed else array)
    return tensors


def parameter_count(config: T5Config) -> int:
    """Numbers in the weights: embedding, position bias, blocks and final norm.

    Example: 35,330,816 for T5-small and 109,628,544 for T5-base.
    """
    d, f, inner = config.d_model, config.d_ff, config.num_heads * config.d_kv
    feed_forward_matrices = 3 if config.feed_forward_proj == "gated-gelu" else 2
    block = 4 * d * inner + feed_forward_matrices * d * f + 2 * d
    bias = config.relative_attention_num_buckets * config.num_heads
    return config.vocab_size * d + bias + config.num_layers * block + d


def config_from_huggingface(config_json: Mapping[str, Any]) -> T5Config:
    """Shape of the encoder that a Hugging Face `config.json` describes.

    Fields that old files leave out take T5's defaults, which are those of `T5Config`.

    Args:
      config_json: the parsed file.
    Raises: UserError when it is not a T5, has a feed-forward other than `relu` and `gated-gelu`,
      or holds a value of the wrong type.
    """
    if config_json.get("model_type") != "t5":
        raise UserError(
            f"model_type={config_json.get('model_type')!r} in config.json, expected 't5': "
            "give a T5 or T5EncoderModel checkpoint"
        )
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


def config_to_huggingface(config: T5Config) -> dict[str, Any]:
    """`config.json` of a `T5EncoderModel`, for transformers 4 and 5."""
    fields = dataclasses.asdict(config)
    del fields["compute_dtype"]
    return {
        "architectures": ["T5EncoderModel"],
        "model_type": "t5",
        **fields,
        "is_encoder_decoder": False,
        "use_cache": False,
        "tie_word_embeddings": True,
        "pad_token_id": 0,
        "eos_token_id": 1,
        "decoder_start_token_id": 0,
        # transformers 4 reads this name; 5 reads it too, though it writes `dtype`.
        "torch_dtype": "float32",
    }
