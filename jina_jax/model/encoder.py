"""Encoders of every family, by the same few functions: nothing else asks which family it is."""

import math
from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from jina_jax.config import ModelConfig
from jina_jax.errors import UserError
from jina_jax.model import bert, modernbert, mpnet, qwen3, t5
from jina_jax.model.dropout import DropoutKey
from jina_jax.model.family import AT_ONCE, Execution, Family
from jina_jax.model.huggingface import fill_params, read_params
from jina_jax.model.layers import graphdef

FAMILIES = (t5.FAMILY, bert.FAMILY, mpnet.FAMILY, modernbert.FAMILY, qwen3.FAMILY)


def family_of(config: ModelConfig) -> Family:
    """The family that a shape is of."""
    return next(family for family in FAMILIES if family.config is type(config))


def init_params(config: ModelConfig, key: jax.Array) -> nnx.State:
    """Random weights of an encoder, drawn as its family draws them.

    Args:
      config: shape of the model.
      key: a key of `jax.random.key`.
    Returns: a pytree of float32 arrays; traceable, so that `jax.jit(init_params, ...)` can place
      them on a mesh and `jax.eval_shape` can describe them.
    """
    return nnx.state(family_of(config).encoder(config, rngs=nnx.Rngs(key)), nnx.Param)


def apply(
    config: ModelConfig,
    params: nnx.State,
    ids_RL: Int[Array, "R L"],
    segments_RL: Int[Array, "R L"],
    dropout_key: DropoutKey | None = None,
    execution: Execution = AT_ONCE,
) -> Float[Array, "R L D"]:
    """Encodes packed rows with the given weights; texts of a row do not see each other.

    Args:
      config: that `params` were made for.
      params: from `init_params` or `from_huggingface`.
      ids_RL: int token ids in 0..vocab_size-1.
      segments_RL: int, 0 for padding, 1.. for the texts of a row.
      dropout_key: the same key and row numbers repeat the same dropout exactly; None turns it off.
      execution: how the layers are run.
    Returns: float32 [R, L, D]; positions of padding hold no meaning.
    """
    encoder = nnx.merge(graphdef(family_of(config).encoder, config), params)
    hidden_RLD: Array = encoder(ids_RL, segments_RL, dropout_key=dropout_key, execution=execution)
    return hidden_RLD


def from_huggingface(tensors: Mapping[str, np.ndarray], config: ModelConfig) -> nnx.State:
    """Parameters from the tensors of a model of Hugging Face.

    Args:
      tensors: name → array, as in `model.safetensors`; any float dtype. Heads and decoders are
        left out.
      config: the shape that the tensors must have.
    Returns: float32 parameters in host memory, in the structure of `init_params`.
    Raises: UserError naming each missing, unexpected and mis-shaped tensor.
    """
    family = family_of(config)
    init = partial(init_params, config)
    return fill_params(family.layout(config), family.used(tensors), init, f"{family.name} encoder")


def to_huggingface(params: nnx.State, config: ModelConfig) -> dict[str, np.ndarray]:
    """The tensors of an encoder, as transformers 4 and 5 write and read them.

    Args:
      params: from `init_params`, training or `from_huggingface`.
      config: the shape of `params`.
    Returns: name → C-contiguous float32 array on the host.
    """
    return read_params(family_of(config).layout(config), params)


def parameter_count(config: ModelConfig) -> int:
    """Numbers in the weights.

    Example: 35,330,816 for T5-small and 109,628,544 for T5-base.
    """
    shapes = jax.eval_shape(partial(init_params, config), jax.random.key(0))
    return sum(math.prod(x.shape) for x in jax.tree.leaves(shapes))


def config_from_huggingface(config_json: Mapping[str, Any]) -> ModelConfig:
    """Shape of the encoder that a Hugging Face `config.json` describes.

    Args:
      config_json: the parsed file.
    Raises: UserError when it is of no family that is known here, or computes otherwise than
      implemented.
    """
    kind = config_json.get("model_type")
    for family in FAMILIES:
        if kind in family.model_types:
            config: ModelConfig = family.read_config(config_json)
            return config
    known = ", ".join(name for family in FAMILIES for name in family.model_types)
    raise UserError(
        f"model_type={kind!r} in config.json is no encoder that is known here; there are {known}"
    )


def config_to_huggingface(config: ModelConfig) -> dict[str, Any]:
    """`config.json` of an encoder, for transformers 4 and 5 and for servers."""
    # transformers 4 reads this name; 5 reads it too, though it writes `dtype`.
    return family_of(config).write_config(config) | {"torch_dtype": "float32"}
