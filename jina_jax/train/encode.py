"""Encoding a batch where its rows lie: parameters whole a layer at a time, rows chunk by chunk.

Each device encodes its own rows. Where `fsdp` divides the matrices, a layer's are gathered in the
dtype they are multiplied in when the layer is run, and again when its gradient is computed; the
gradient goes back as parts, summed over the devices in float32 (Rajbhandari et al. 2020, arXiv
1910.02054, stage 3). Of the table of tokens no device needs the whole: the tokens go around, and
each device gives its columns of their vectors.

A contrastive loss needs the embeddings of the whole batch at once, but its gradient reaches the
parameters through each row by itself. So rows may be encoded in chunks whose activations are let
go; the loss and its gradient with respect to the embeddings follow; then each chunk is encoded
again, with its activations, and its share of the parameters' gradient added to the rest. The
gradient is that of the whole batch. It costs a second encoding. Over `data` the shares are summed
once a step; what `fsdp` divides is gathered and summed for each chunk (Gao et al. 2021, "Scaling
Deep Contrastive Learning Batch Size under Memory Limited Setup", arXiv 2101.06983).
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jax.typing import ArrayLike
from jaxtyping import Array, Float32

from jina_jax.devices.mesh import DATA, FSDP, ROWS, TENSOR, split_first_axis
from jina_jax.model.encoder import param_name
from jina_jax.model.family import WHOLE, Access


def encode_rows(
    encode: Callable[[Any, Any, Access], Float32[Array, "M ..."]],
    params: nnx.State,
    rows: Any,
    *,
    shardings: Any,
    mesh: Mesh,
    chunk_rows: int = 0,
    compute_dtype: str = "float32",
    sum_dtype: str = "float32",
) -> Float32[Array, "R ..."]:
    """`encode(params, rows, access)`, for the rows of each device by itself.

    Args:
      encode: (params, rows, how to get at params) → float32, row by row. Each row must be encoded
        by itself.
      params: of the encoder.
      rows: a pytree of arrays with R rows on their first axis, divided over the mesh.
      shardings: of `param_shardings`.
      mesh: its devices divide R.
      chunk_rows: rows that all devices encode at once; divides R, and the devices divide it. 0
        encodes all at once.
      compute_dtype: that the matrices of layers are gathered in.
      sum_dtype: that gradients are summed over devices in.
    Returns: [R, ...] in the order of `rows`, divided as they are. Differentiating it with respect
      to `params` encodes each chunk again.
    """
    divided = split_first_axis(mesh).spec
    devices = math.prod(mesh.shape[axis] for axis in ROWS)

    def local(params: Any, rows: Any, access: Access) -> Array:
        if not chunk_rows:
            return encode(params, rows, access)
        chunks = jax.tree.map(lambda x: x.reshape(-1, chunk_rows // devices, *x.shape[1:]), rows)
        # What a step of the loop saves for its gradient is what `checkpoint` lets it: the rows.
        recomputed = jax.checkpoint(
            lambda params, chunk: encode(params, chunk, access), prevent_cse=False
        )
        encoded = jax.lax.map(lambda chunk: recomputed(params, chunk), chunks)
        return encoded.reshape(-1, *encoded.shape[2:])

    if devices == 1:
        return local(params, rows, WHOLE)
    axes = jax.tree.map(_divided_axis, shardings)
    access = WHOLE if mesh.shape[FSDP] == 1 else _Parts(axes, compute_dtype, sum_dtype)

    def of_device(params: Any, rows: Any) -> Array:
        # Outside of the loop over chunks: inside, each would send a whole gradient around.
        params = jax.tree.map(
            lambda x, axis: _spread(x, ROWS if axis < 0 else (DATA,), sum_dtype), params, axes
        )
        return local(params, rows, access)

    specs = jax.tree.map(
        lambda axis: PartitionSpec() if axis < 0 else PartitionSpec(*[None] * axis, FSDP), axes
    )
    # A kernel runs where the compiler has no axis left to divide.
    axis_names = set(ROWS if mesh.shape[TENSOR] > 1 else mesh.axis_names)
    return jax.shard_map(
        of_device, mesh=mesh, in_specs=(specs, divided), out_specs=divided, axis_names=axis_names
    )(params, rows)


def _divided_axis(sharding: NamedSharding) -> int:
    """Of a parameter, the axis that `fsdp` divides; -1 where it divides none."""
    return sharding.spec.index(FSDP) if FSDP in sharding.spec else -1


class _Parts(Access):
    """Of parameters that `fsdp` divides, within `shard_map`."""

    is_divided = True

    def __init__(self, axes: Any, compute_dtype: str, sum_dtype: str) -> None:
        names = {param_name(path): axis for path, axis in jax.tree_util.tree_leaves_with_path(axes)}
        self._axis_of_layer = {
            name.split("/", 2)[2]: axis
            for name, axis in names.items()
            if name.startswith("blocks/")
        }
        self._compute_dtype, self._sum_dtype = compute_dtype, sum_dtype

    def layer(self, params: nnx.State) -> nnx.State:
        def one(path: Any, x: Array) -> Array:
            axis = self._axis_of_layer[param_name(path)]
            return x if axis < 0 else _gather(x, axis, self._compute_dtype, self._sum_dtype)

        return jax.tree_util.tree_map_with_path(one, params)

    def whole(self, x: ArrayLike, axis: int) -> Array:
        return _gather(jnp.asarray(x), axis, "float32", self._sum_dtype)

    def look_up(self, table_VD: ArrayLike, ids: Array) -> Array:
        ids_of_all = jax.lax.all_gather(ids, FSDP)
        columns = jnp.take(table_VD, ids_of_all, axis=0)
        return jax.lax.all_to_all(columns, FSDP, 0, columns.ndim - 1, tiled=True)[0]


@partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3))
def _gather(x: Array, axis: int, dtype: str, sum_dtype: str) -> Array:
    """The whole of a matrix, in a dtype; back comes the summed gradient of this device's part."""
    return jax.lax.all_gather(x.astype(dtype), FSDP, axis=axis, tiled=True)


def _gather_forward(x: Array, axis: int, dtype: str, sum_dtype: str) -> tuple[Array, Array]:
    return _gather(x, axis, dtype, sum_dtype), jnp.zeros((), x.dtype)


def _gather_backward(
    axis: int, dtype: str, sum_dtype: str, like: Array, gradient: Array
) -> tuple[Array]:
    gradient = gradient.astype(sum_dtype)
    part = jax.lax.psum_scatter(gradient, FSDP, scatter_dimension=axis, tiled=True)
    return (part.astype(like.dtype),)


_gather.defvjp(_gather_forward, _gather_backward)


@partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _spread(x: Array, axes: tuple[str, ...], sum_dtype: str) -> Array:
    """A parameter as one that devices use for their own rows; its gradient is summed over them."""
    return jax.lax.pcast(x, axes, to="varying")


def _spread_forward(x: Array, axes: tuple[str, ...], sum_dtype: str) -> tuple[Array, None]:
    return _spread(x, axes, sum_dtype), None


def _spread_backward(
    axes: tuple[str, ...], sum_dtype: str, _: None, gradient: Array
) -> tuple[Array]:
    return (jax.lax.psum(gradient.astype(sum_dtype), axes).astype(gradient.dtype),)


_spread.defvjp(_spread_forward, _spread_backward)
