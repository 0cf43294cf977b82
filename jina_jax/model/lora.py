"""Low-rank adapters among the parameters: drawn, told apart from the frozen rest, and merged.

The adapter of `blocks/0/attention/q/kernel` lies beside it, as `blocks/0/attention/q/adapter/a_IA`
and `.../b_AO`, so that no family of encoders knows of them.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jina_jax.config import LoraConfig
from jina_jax.model.encoder import DENSE
from jina_jax.model.layers import is_adapted

_ADAPTER = "adapter"
ADAPTER_FACTORS = _A, _B = "a_IA", "b_AO"
"""Names of the two matrices of an adapter."""
_Path = tuple[Any, ...]
_ADAPTERS = 2
"""Folded into the key: the encoder and its Dense layer are drawn from it too."""


def _is_adapted(path: _Path, lora: LoraConfig) -> bool:
    return path[-1] == "kernel" and is_adapted(path[:-1], lora)


def with_adapters(params: nnx.State, lora: LoraConfig, key: jax.Array) -> nnx.State:
    """Parameters with adapters that change nothing yet.

    Args:
      params: of an encoder and its Dense layer; arrays, or within `jax.eval_shape`.
      lora: which matrices have one, and of which rank; with rank 0 there are none.
      key: of `jax.random.key`.
    Returns: `params`, and beside each matrix [in, out] float32 A [in, rank], drawn evenly from
      ±1 / sqrt(in), and B [rank, out] of zeros, as PEFT draws them.
    """
    flat = nnx.to_flat_state(params)
    adapted = [(path, leaf.shape) for path, leaf in flat if _is_adapted(path, lora)]
    if not adapted:
        return params
    drawn = []
    key = jax.random.fold_in(key, _ADAPTERS)
    for number, (path, (in_size, out_size)) in enumerate(adapted):
        bound = in_size**-0.5
        a_IA = jax.random.uniform(
            jax.random.fold_in(key, number), (in_size, lora.rank), jnp.float32, -bound, bound
        )
        b_AO = jnp.zeros((lora.rank, out_size), jnp.float32)
        beside = (*path[:-1], _ADAPTER)
        drawn += [((*beside, _A), nnx.Param(a_IA)), ((*beside, _B), nnx.Param(b_AO))]
    return nnx.from_flat_state([*flat, *drawn])


def merged(params: nnx.State, lora: LoraConfig) -> nnx.State:
    """Parameters whose matrices hold their adapters: those of the same model without any.

    Args:
      params: of `with_adapters`, trained or not.
      lora: that they were made with.
    Returns: float32; W + scale · A B in place of each W that has an adapter.
    """
    if not lora.rank:
        return params
    flat = dict(nnx.to_flat_state(params))
    pairs = {path: flat.pop(path)[...] for path in list(flat) if _is_factor(path)}
    for path in [path for path in flat if _is_adapted(path, lora)]:
        a_IA, b_AO = (pairs[(*path[:-1], _ADAPTER, name)] for name in ADAPTER_FACTORS)
        product_IO = jnp.matmul(a_IA, b_AO, precision=jax.lax.Precision.HIGHEST)
        flat[path] = flat[path].replace(flat[path][...] + lora.scale * product_IO)
    return nnx.from_flat_state(list(flat.items()))


def split_trained(params: nnx.State, lora: LoraConfig) -> tuple[nnx.State, nnx.State | None]:
    """What is trained of the parameters, and what is not; `joined` puts them together again.

    Returns: with rank 0 all of them and None; else the adapters and the Dense layer, and the rest.
    """
    if not lora.rank:
        return params, None
    flat = nnx.to_flat_state(params)
    trained = [(path, leaf) for path, leaf in flat if _is_factor(path) or path[0] == DENSE]
    names = {path for path, _ in trained}
    frozen = [(path, leaf) for path, leaf in flat if path not in names]
    return nnx.from_flat_state(trained), nnx.from_flat_state(frozen)


def joined(trained: nnx.State, frozen: nnx.State | None) -> nnx.State:
    """The parameters that `split_trained` has split."""
    if frozen is None:
        return trained
    return nnx.from_flat_state([*nnx.to_flat_state(trained), *nnx.to_flat_state(frozen)])


def _is_factor(path: _Path) -> bool:
    return len(path) > 1 and path[-2] == _ADAPTER


def matrix_of_factor(name: str) -> tuple[str, int] | None:
    """Of the name of a factor, its matrix and the axis that both have in common; None of others.

    Example: `blocks/0/wi/adapter/b_AO` is of `blocks/0/wi/kernel`, and shares axis 1.
    """
    stem, is_factor, factor = name.partition(f"/{_ADAPTER}/")
    return (f"{stem}/kernel", ADAPTER_FACTORS.index(factor)) if is_factor else None


def factors(params: nnx.State) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Name of a matrix, such as `blocks/0/attention/q/kernel` → its A and B on the host."""
    flat = dict(nnx.to_flat_state(params))
    return {
        "/".join(map(str, (*path[:-2], "kernel"))): (
            np.asarray(a_IA[...]), np.asarray(flat[(*path[:-1], _B)][...]),
        )
        for path, a_IA in flat.items()
        if _is_factor(path) and path[-1] == _A
    }  # fmt: skip
