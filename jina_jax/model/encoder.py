"""Encoders of every family, by the same few functions: nothing else asks which family it is."""

import math
from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from jina_jax.config import LoraConfig, ModelConfig, PoolingConfig
from jina_jax.errors import UserError
from jina_jax.model import bert, modernbert, mpnet, qwen3, t5
from jina_jax.model.dropout import DropoutKey
from jina_jax.model.family import AT_ONCE, Execution, Family, products
from jina_jax.model.huggingface import Layout, fill_params, read_params
from jina_jax.model.layers import graphdef
from jina_jax.model.pooling import dense, pool, unit

DENSE = "dense"
"""Of the parameters behind the encoder's, where pooling ends in a Dense layer."""

FAMILIES = (t5.FAMILY, bert.FAMILY, mpnet.FAMILY, modernbert.FAMILY, qwen3.FAMILY)


def family_of(config: ModelConfig) -> Family:
    """The family that a shape is of."""
    return next(family for family in FAMILIES if family.config is type(config))


def param_name(path: Any) -> str:
    """Name of a parameter, by its path in the pytree: `blocks/0/attention/q/kernel`."""
    return jax.tree_util.keystr(path, simple=True, separator="/").removesuffix("/value")


def is_embedding(name: str) -> bool:
    """Whether a parameter is a table of tokens, positions or types."""
    return "/" not in name and name.endswith(("_VD", "_PD", "_TD"))


def init_params(
    config: ModelConfig, key: jax.Array, pooling: PoolingConfig = PoolingConfig()
) -> nnx.State:
    """Random weights of an encoder, drawn as its family draws them, and of its Dense layer.

    Args:
      config: shape of the model.
      key: a key of `jax.random.key`.
      pooling: says whether there is a Dense layer.
    Returns: a pytree of float32 arrays; traceable, so that `jax.jit(init_params, ...)` can place
      them on a mesh and `jax.eval_shape` can describe them.
    """
    params = nnx.state(family_of(config).encoder(config, rngs=nnx.Rngs(key)), nnx.Param)
    if not pooling.dense_dimensions:
        return params
    rngs = nnx.Rngs(jax.random.fold_in(key, 1))
    layer = nnx.Linear(
        config.dimensions, pooling.dense_dimensions, use_bias=pooling.dense_bias, rngs=rngs
    )
    behind = nnx.to_flat_state(nnx.state(layer, nnx.Param))
    flat = [*nnx.to_flat_state(params), *(((DENSE, *path), leaf) for path, leaf in behind)]
    return nnx.from_flat_state(flat)


def apply(
    config: ModelConfig,
    params: nnx.State,
    ids_RL: Int[Array, "R L"],
    segments_RL: Int[Array, "R L"],
    dropout_key: DropoutKey | None = None,
    execution: Execution = AT_ONCE,
    lora: LoraConfig = LoraConfig(),
) -> Float[Array, "R L D"]:
    """Encodes packed rows with the given weights; texts of a row do not see each other.

    Args:
      config: that `params` were made for.
      params: from `init_params` or `from_huggingface`.
      ids_RL: int token ids in 0..vocab_size-1.
      segments_RL: int, 0 for padding, 1.. for the texts of a row.
      dropout_key: the same key and row numbers repeat the same dropout exactly; None turns it off.
      execution: how the layers are run.
      lora: that the adapters among `params` were made with.
    Returns: float32 [R, L, D]; positions of padding hold no meaning.
    """
    flat = nnx.to_flat_state(params)
    own = nnx.from_flat_state([(path, leaf) for path, leaf in flat if path[0] != DENSE])
    encoder = nnx.merge(graphdef(family_of(config).encoder, config, lora), own)
    with products(config, execution):
        hidden_RLD: Array = encoder(
            ids_RL, segments_RL, dropout_key=dropout_key, execution=execution
        )
    return hidden_RLD


def embed(
    config: ModelConfig,
    pooling: PoolingConfig,
    params: nnx.State,
    ids_RL: Int[Array, "R L"],
    segments_RL: Int[Array, "R L"],
    texts_per_row: int,
    *,
    pooled_RL: Int[Array, "R L"] | None = None,
    dropout_key: DropoutKey | None = None,
    execution: Execution = AT_ONCE,
    lora: LoraConfig = LoraConfig(),
    normalize: bool = True,
) -> Float[Array, "R S E"]:
    """Encodes packed rows, and gives one embedding per text.

    Args:
      config: that `params` were made for.
      pooling: from hidden states to an embedding.
      params: from `init_params` or `from_huggingface`, of the same pooling.
      ids_RL: int token ids in 0..vocab_size-1.
      segments_RL: int, 0 for padding, 1.. for the texts of a row.
      texts_per_row: slots S of a row.
      pooled_RL: `segments_RL` with 0 where a token is not pooled; None pools all, as it must
        unless `pooling.skips_prompt`.
      dropout_key: as for `apply`.
      execution: how the layers are run.
      lora: as for `apply`.
      normalize: scale to length 1.
    Returns: float32 [R, S, E]; slot s - 1 holds the text of segment s. What a slot without a text
      holds has no meaning, unless there is no Dense layer: then it is zeros.
    """
    hidden_RLD = apply(config, params, ids_RL, segments_RL, dropout_key, execution, lora)
    tokens_RL = segments_RL if pooled_RL is None else pooled_RL
    z_RSE = pool(hidden_RLD, tokens_RL, texts_per_row, pooling.mode)
    if pooling.dense_dimensions:
        layer = params[DENSE]
        bias_E = layer["bias"][...] if pooling.dense_bias else None
        kernel_DE = execution.access.whole(layer["kernel"][...], 0)
        z_RSE = dense(z_RSE, kernel_DE, bias_E, pooling.dense_activation)
    return unit(z_RSE) if normalize else z_RSE


def _layout(config: ModelConfig, pooling: PoolingConfig) -> Layout:
    layout = family_of(config).layout(config)
    if not pooling.dense_dimensions:
        return layout
    behind = {f"{DENSE}.weight": f"{DENSE}/kernel"}
    if pooling.dense_bias:
        behind[f"{DENSE}.bias"] = f"{DENSE}/bias"
    return {**layout, **behind}


def from_huggingface(
    tensors: Mapping[str, np.ndarray], config: ModelConfig, pooling: PoolingConfig = PoolingConfig()
) -> nnx.State:
    """Parameters from the tensors of a model of Hugging Face.

    Args:
      tensors: name → array, as in `model.safetensors`; any float dtype. Heads and decoders are
        left out. Those of a Dense layer are `dense.weight` and `dense.bias`.
      config: the shape that the tensors must have.
      pooling: says whether there is a Dense layer.
    Returns: float32 parameters in host memory, in the structure of `init_params`.
    Raises: UserError naming each missing, unexpected and mis-shaped tensor.
    """
    family = family_of(config)
    behind = {name: x for name, x in tensors.items() if name.startswith(f"{DENSE}.")}
    own = family.used({name: x for name, x in tensors.items() if name not in behind})
    init = partial(init_params, config, pooling=pooling)
    what = f"{family.name} encoder"
    return fill_params(_layout(config, pooling), {**own, **behind}, init, what)


def to_huggingface(
    params: nnx.State, config: ModelConfig, pooling: PoolingConfig = PoolingConfig()
) -> dict[str, np.ndarray]:
    """The tensors of an encoder, as transformers 4 and 5 write and read them.

    Args:
      params: from `init_params`, training or `from_huggingface`.
      config: the shape of `params`.
      pooling: says whether there is a Dense layer, whose tensors are then `dense.weight` and
        `dense.bias`.
    Returns: name → C-contiguous float32 array on the host.
    """
    return read_params(_layout(config, pooling), params)


def parameter_count(config: ModelConfig, pooling: PoolingConfig = PoolingConfig()) -> int:
    """Numbers in the weights.

    Example: 35,330,816 for T5-small and 109,628,544 for T5-base.
    """
    shapes = jax.eval_shape(partial(init_params, config, pooling=pooling), jax.random.key(0))
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
