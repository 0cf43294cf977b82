"""Attention by a TPU kernel that never writes scores to the main memory.

For one row, and for the heads that share 128 lanes, the scores of a block of queries with all keys
lie in the core's own memory, keys down and queries across; the backward pass makes them again from
their sums. Heads stay side by side as the projections give them: a head of 64 is taken out of 128
lanes by zeros in the others, which the matrix unit would be idle in anyway, so that nothing is
moved in the main memory. T5's bias is a number for each head and difference of positions: its
matrix is made in the core once for all rows, and its gradient is summed there over all rows.

The recomputation is that of Dao et al. 2022 (arXiv 2205.14135), with whole rows of keys in place of
a running maximum, since a row of packed texts is short.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float, Int

from jina_jax.model.attention_kernels import LANES, KernelShape, backward_kernel, forward_kernel

_PADDING = -1
"""Segment of the positions that fill a row up to whole lanes."""
_SCORES_BYTES = 4 << 20
_BLOCKS_AT_ONCE = 5
"""Of scores and what is made of them, by the compiler's own figures."""
_MOST_VMEM_BYTES = 96 << 20
_VMEM_MIB = {
    "TPU v2": 16, "TPU v3": 16, "TPU v4": 16, "TPU v4 lite": 16, "TPU v5": 64, "TPU v5p": 64,
    "TPU7": 64, "TPU7x": 64,
}  # fmt: skip
"""The core's own memory, by kind of device; others have 128 MiB or more. Source: JAX's
`pallas/mosaic/tpu_info.py`."""


def takes(head_dimensions: int, row_tokens: int, *, has_bias: bool, device_kind: str) -> str:
    """Why the kernel cannot take a model's rows; empty where it can.

    Args:
      head_dimensions: of the attention.
      row_tokens: of a packed row.
      has_bias: whether positions are added to the scores.
      device_kind: as `jax.Device.device_kind` gives it.
    """
    if head_dimensions > LANES or LANES % head_dimensions or head_dimensions < 8:
        return f"it takes heads of 8, 16, 32, 64 or 128, and the model's are of {head_dimensions}"
    whole = -(-row_tokens // LANES) * LANES
    needed = _BLOCKS_AT_ONCE * 4 * _block(whole) * whole
    if has_bias:  # The matrix of a bias, and its gradient.
        needed += 2 * 4 * (LANES // head_dimensions) * whole**2
    there = _MOST_VMEM_BYTES
    if device_kind in _VMEM_MIB:
        there = min(there, _VMEM_MIB[device_kind] << 20)
    if needed > there:
        return (
            f"rows of feed.row_tokens={row_tokens:,} {'with a position bias ' * has_bias}need "
            f"some {needed >> 20} MiB of a core's own memory, and it takes {there >> 20}"
        )
    return ""


def _block(whole: int) -> int:
    """Queries whose scores are computed at once, of a row that fills so many positions."""
    return next(
        n for n in (512, 384, 256, LANES)
        if not whole % n and (n == LANES or 4 * n * whole <= _SCORES_BYTES)
    )  # fmt: skip


def attend_on_tpu(
    q_RLHK: Float[Array, "R L H K"],
    k_RLHK: Float[Array, "R L H K"],
    v_RLHK: Float[Array, "R L H K"],
    segments_RL: Int[Array, "R L"],
    bias_HD: Float[Array, "H D"] | None = None,
    *,
    window: int | None = None,
    is_causal: bool = False,
    seed_R: Int[Array, "R"] | None = None,
    rate: float = 0.0,
    is_interpreted: bool = False,
) -> Float[Array, "R L H K"]:
    """Attention within the texts of each row.

    Args:
      q_RLHK: queries, already scaled where scores are to be; float32 or bfloat16.
      k_RLHK: keys.
      v_RLHK: values.
      segments_RL: int, 0 for padding, 1.. for the texts of a row. Padding attends to padding.
      bias_HD: float32 [H, 2 L - 1], added to the score of a key L - 1 - d before its query.
      window: a key counts when it is at most this far from its query; None takes all.
      is_causal: a key counts when it is not after its query.
      seed_R: of `dropout.weight_seeds`; None where no weight is dropped.
      rate: share of the weights that are dropped.
      is_interpreted: run the kernel's steps one by one on any device, for tests.
    Returns: mixed values in the dtype of `v_RLHK`; scores and softmax are float32. Products of
      float32 take the precision that is set where this is called.
    """
    if seed_R is None:
        seed_R, rate = jnp.zeros(len(q_RLHK), jnp.int32), 0.0
    how = _How(window, is_causal, rate, _precision(q_RLHK.dtype), is_interpreted)
    given = (q_RLHK, k_RLHK, v_RLHK, segments_RL.astype(jnp.int32), seed_R, bias_HD)
    return _attend(_Given(*_alike(given)), how)


class _How(NamedTuple):
    """Of `attend_on_tpu`, beside its arrays."""

    window: int | None
    is_causal: bool
    rate: float
    precision: jax.lax.Precision
    is_interpreted: bool


class _Given(NamedTuple):
    """The arrays of `attend_on_tpu`."""

    q_RLHK: Array
    k_RLHK: Array
    v_RLHK: Array
    segments_RL: Array
    seed_R: Array
    bias_HD: Array | None


@partial(jax.custom_vjp, nondiff_argnums=(1,))
def _attend(given: _Given, how: _How) -> Array:
    return _attend_forward(given, how)[0]


def _attend_forward(given: _Given, how: _How) -> tuple[Array, tuple[_Given, Array, Array]]:
    mixed_RLHK, log_sums = _forward(given, how)
    return mixed_RLHK, (given, mixed_RLHK, log_sums)


def _attend_backward(
    how: _How, kept: tuple[_Given, Array, Array], gradient_RLHK: Array
) -> tuple[_Given]:
    dq_RLHK, dk_RLHK, dv_RLHK, dbias_HD = _backward(*kept, gradient_RLHK, how)
    return (_Given(dq_RLHK, dk_RLHK, dv_RLHK, None, None, dbias_HD),)


_attend.defvjp(_attend_forward, _attend_backward)


class _Packed(NamedTuple):
    """Rows of whole lanes, heads side by side."""

    q_RLC: Array
    k_RLC: Array
    v_RLC: Array
    segments_R1L: Array
    seed_R: Array
    vector_GHD: Array | None

    def ins(self, specs: "_Specs", *more: tuple[Array, pl.BlockSpec]) -> list[tuple[Array, Any]]:
        """Each with its part, in the order that the kernels take them."""
        found = [
            (self.seed_R, _SEEDS), (self.q_RLC, specs.queries), (self.k_RLC, specs.row),
            (self.v_RLC, specs.row), (self.segments_R1L, specs.segments), *more,
        ]  # fmt: skip
        return found if self.vector_GHD is None else [*found, (self.vector_GHD, specs.vector)]


class _Packing(NamedTuple):
    """From heads to lanes and back."""

    length: int
    heads: int
    width: int

    @property
    def whole(self) -> int:
        """Of a row, filled up to whole lanes."""
        return self.length + self.more

    @property
    def more(self) -> int:
        """Positions that are filled in."""
        return -self.length % LANES

    @property
    def in_group(self) -> int:
        """Heads that share lanes."""
        return LANES // self.width

    @property
    def more_heads(self) -> int:
        """That are filled in."""
        return -self.heads % self.in_group

    def lanes(self, x_RLHK: Array) -> Array:
        """[rows, whole, heads · width]."""
        padded = jnp.pad(x_RLHK, ((0, 0), (0, self.more), (0, self.more_heads), (0, 0)))
        return padded.reshape(len(x_RLHK), self.whole, -1)

    def heads_of(self, x_RLC: Array) -> Array:
        """What `lanes` packed."""
        x_RLHK = x_RLC.reshape(len(x_RLC), self.whole, -1, self.width)
        return x_RLHK[:, : self.length, : self.heads]

    def vector(self, bias_HD: Array) -> Array:
        """By how far a query is behind its key, so that a row of the matrix is a piece of it."""
        reversed_HD = jnp.pad(
            bias_HD[:, ::-1].astype(jnp.float32),
            ((0, self.more_heads), (self.more, self.more + 1)),
        )
        return reversed_HD.reshape(-1, self.in_group, 2 * self.whole)

    def bias_of(self, vector_GHD: Array) -> Array:
        """What `vector` packed."""
        reversed_HD = vector_GHD.reshape(-1, 2 * self.whole)[
            : self.heads, self.more : -self.more - 1
        ]
        return reversed_HD[:, ::-1]


def _packed(given: _Given, how: _How) -> tuple[_Packed, KernelShape, _Packing]:
    _, length, heads, width = given.q_RLHK.shape
    packing = _Packing(length, heads, width)
    whole = packing.whole
    shape = KernelShape(
        packing.in_group, width, whole, _block(whole), how.window, how.is_causal, how.rate,
        given.bias_HD is not None, how.precision, how.is_interpreted,
    )  # fmt: skip
    segments_RL = jnp.pad(given.segments_RL, ((0, 0), (0, packing.more)), constant_values=_PADDING)
    packed = _Packed(
        packing.lanes(given.q_RLHK), packing.lanes(given.k_RLHK), packing.lanes(given.v_RLHK),
        segments_RL[:, None], given.seed_R,
        None if given.bias_HD is None else packing.vector(given.bias_HD),
    )  # fmt: skip
    return packed, shape, packing


def _precision(dtype: Any) -> jax.lax.Precision:
    """Of the products; the kernels' compiler knows the highest and the lowest alone."""
    asked = jax.config.jax_default_matmul_precision  # type: ignore[attr-defined]
    is_exact = dtype == jnp.float32 and asked not in (None, "default", "bfloat16")
    return jax.lax.Precision.HIGHEST if is_exact else jax.lax.Precision.DEFAULT


def _alike(arrays: Sequence[Array | None]) -> list[Array | None]:
    """Arrays that vary over the same axes of a mesh, within `shard_map`."""
    varying = frozenset[str]().union(
        *(jax.typeof(x).manual_axis_type.varying for x in arrays if x is not None)
    )

    def cast(x: Array | None) -> Array | None:
        missing = () if x is None else varying - jax.typeof(x).manual_axis_type.varying
        return jax.lax.pcast(x, tuple(missing), to="varying") if missing else x

    return [cast(x) for x in arrays]


class _Specs(NamedTuple):
    """Which part of an array a step of the grid (group of heads, row, block of queries) has."""

    row: pl.BlockSpec
    queries: pl.BlockSpec
    segments: pl.BlockSpec
    log_sums: pl.BlockSpec
    vector: pl.BlockSpec


def _specs(shape: KernelShape) -> _Specs:
    return _Specs(
        pl.BlockSpec((1, shape.length, LANES), lambda g, r, i: (r, 0, g)),
        pl.BlockSpec((1, shape.block, LANES), lambda g, r, i: (r, i, g)),
        pl.BlockSpec((1, 1, shape.length), lambda g, r, i: (r, 0, 0)),
        pl.BlockSpec((1, 1, shape.heads, shape.block), lambda g, r, i: (r, g, 0, i)),
        pl.BlockSpec((1, shape.heads, 2 * shape.length), lambda g, r, i: (g, 0, 0)),
    )


_SEEDS = pl.BlockSpec(memory_space=pltpu.SMEM)


def _run(
    kernel: Callable[..., None], shape: KernelShape, name: str, ins: Sequence[tuple[Array, Any]],
    outs: Sequence[tuple[tuple[int, ...], Any, Any]], scratch: Sequence[Any],
) -> list[Array]:  # fmt: skip
    arrays = [array for array, _ in ins]
    queries = arrays[1]
    axes = jax.typeof(queries).manual_axis_type
    grid = (queries.shape[2] // LANES, len(queries), shape.blocks)
    found = pl.pallas_call(
        partial(kernel, shape=shape),
        grid=grid,
        in_specs=[spec for _, spec in ins],
        out_specs=[spec for *_, spec in outs],
        out_shape=[
            jax.ShapeDtypeStruct(size, dtype, manual_axis_type=axes) for size, dtype, _ in outs
        ],
        scratch_shapes=list(scratch),
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "arbitrary", "arbitrary"),
            vmem_limit_bytes=_MOST_VMEM_BYTES,
        ),
        name=name,
        interpret=shape.is_interpreted,
    )(*arrays)
    return list(found)


def _matrix(shape: KernelShape) -> Any:
    return pltpu.VMEM((shape.heads, shape.blocks, shape.keys, shape.block), jnp.float32)


def _forward(given: _Given, how: _How) -> tuple[Array, Array]:
    """Mixed values, and the logarithms of the sums of the exponentials of each query's scores."""
    packed, shape, packing = _packed(given, how)
    specs, like = _specs(shape), packed.q_RLC
    sums = (len(like), like.shape[2] // LANES, shape.heads, shape.length)
    outs = [(like.shape, like.dtype, specs.queries), (sums, jnp.float32, specs.log_sums)]
    scratch = [_matrix(shape)] if shape.has_bias else []
    mixed_RLC, log_sums = _run(forward_kernel, shape, "attention", packed.ins(specs), outs, scratch)
    return packing.heads_of(mixed_RLC), log_sums


def _backward(
    given: _Given, mixed_RLHK: Array, log_sums: Array, gradient_RLHK: Array, how: _How
) -> tuple[Array, Array, Array, Array | None]:
    packed, shape, packing = _packed(given, how)
    specs, like = _specs(shape), packed.q_RLC
    ins = packed.ins(
        specs, (packing.lanes(mixed_RLHK), specs.queries),
        (packing.lanes(gradient_RLHK), specs.queries), (log_sums, specs.log_sums),
    )  # fmt: skip
    outs = [(like.shape, like.dtype, spec) for spec in (specs.queries, specs.row, specs.row)]
    scratch = [pltpu.VMEM((shape.length, LANES), jnp.float32)] * 2
    if packed.vector_GHD is not None:
        outs.append((packed.vector_GHD.shape, jnp.float32, specs.vector))
        scratch += [_matrix(shape)] * 2
    found = _run(backward_kernel, shape, "attention_gradient", ins, outs, scratch)
    dq_RLHK, dk_RLHK, dv_RLHK = map(packing.heads_of, found[:3])
    dbias_HD = None if given.bias_HD is None else packing.bias_of(found[3])
    return dq_RLHK, dk_RLHK, dv_RLHK, dbias_HD
