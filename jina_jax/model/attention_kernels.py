"""What a TPU core does for `attention_tpu`: scores of a block of queries with all keys of a row.

Keys run down and queries across, so that sums over keys are rows beside which nothing has to be
turned. References are to blocks in the core's own memory.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array

from jina_jax.model.dropout import is_kept, scale_of

LANES = 128
_BITS_OF_LANES = 7
MASKED_SCORE = -1e9
"""Far below any score, yet finite: a difference of two of them is 0 and not NaN."""
_OVER_LANES, _OVER_QUERIES, _OVER_KEYS = ((1,), (1,)), ((1,), (0,)), ((0,), (0,))
"""What a product of two matrices sums over."""


class KernelShape(NamedTuple):
    """What a kernel is compiled for."""

    heads: int
    """That share lanes."""
    width: int
    """Of a head."""
    length: int
    """Of a row, a multiple of 128."""
    block: int
    """Queries at once."""
    window: int | None
    is_causal: bool
    rate: float
    has_bias: bool
    precision: jax.lax.Precision
    is_interpreted: bool

    @property
    def keys(self) -> int:
        """That a block of queries is compared with."""
        if self.window is None or self.has_bias:
            return self.length
        reach = -(-self.window // LANES) * LANES
        return min(self.length, self.block + 2 * reach)

    @property
    def blocks(self) -> int:
        """Of queries in a row."""
        return self.length // self.block

    def first_key(self, block: Any) -> Any:
        """Of those that a block of queries is compared with."""
        if self.keys == self.length:
            return 0
        first = block * self.block - (self.keys - self.block) // 2
        return pl.multiple_of(jnp.clip(first, 0, self.length - self.keys), LANES)


def _allowed(shape: KernelShape, segments_ref: Any, block: Any) -> Array:
    """Bool [keys, queries] of a block."""
    first_key, first_query = shape.first_key(block), block * shape.block
    query_1Q = segments_ref[0, :, pl.ds(pl.multiple_of(first_query, LANES), shape.block)]
    key_1P = segments_ref[0, :, pl.ds(first_key, shape.keys)]
    key_P1 = jnp.transpose(jnp.broadcast_to(key_1P, (8, shape.keys)))[:, :1]
    allowed_PQ = key_P1 == query_1Q
    if shape.window is not None or shape.is_causal:
        key_PQ, query_PQ = _places(shape, block)
        if shape.is_causal:
            allowed_PQ &= key_PQ <= query_PQ
        if shape.window is not None:
            allowed_PQ &= jnp.abs(key_PQ - query_PQ) <= shape.window
    return allowed_PQ


def _places(shape: KernelShape, block: Any) -> tuple[Array, Array]:
    """Positions of keys and of queries in their row, int32 [keys, queries]."""
    of = partial(jax.lax.broadcasted_iota, jnp.int32, (shape.keys, shape.block))
    return shape.first_key(block) + of(0), block * shape.block + of(1)


def _dropped(shape: KernelShape, weights_PQ: Array, seed: Array, head: Array, block: Any) -> Array:
    key_PQ, query_PQ = _places(shape, block)
    kept_PQ = is_kept(seed, head, query_PQ, key_PQ, shape.rate)
    return jnp.where(kept_PQ, weights_PQ * scale_of(shape.rate), jnp.zeros_like(weights_PQ))


def _is_of_head(shape: KernelShape, of: Array, head: int | Array) -> Array:
    """Which elements of [.., 128] are of a head, which may be another for each row of them."""
    lane = jax.lax.broadcasted_iota(jnp.int32, of.shape, 1)
    return (lane >> int(math.log2(shape.width))) == head


def _of_head(shape: KernelShape, x: Array, head: int) -> Array:
    """With zeros in the lanes of other heads."""
    if shape.heads == 1:
        return x
    return jnp.where(_is_of_head(shape, x, head), x, jnp.zeros_like(x))


def _product(shape: KernelShape, a: Array, b: Array, over: Any) -> Array:
    return jax.lax.dot_general(
        a, b, (over, ((), ())), precision=shape.precision, preferred_element_type=jnp.float32
    )


def _scores(
    shape: KernelShape, k_PC: Array, q_QC: Array, bias_PQ: Array | None, allowed_PQ: Array
) -> Array:
    """float32 [keys, queries], of queries with zeros in the lanes of other heads."""
    scores_PQ = _product(shape, k_PC, q_QC, _OVER_LANES)
    if bias_PQ is not None:
        scores_PQ += bias_PQ
    return jnp.where(allowed_PQ, scores_PQ, MASKED_SCORE)


def _each_128_keys(shape: KernelShape, body: Callable[[Any, Any], None], block: Any) -> None:
    """Calls with the first of 128 keys, and with where the numbers of their bias begin."""

    def step(number: Any, _: None) -> None:
        first = pl.multiple_of(number * LANES, LANES)
        begin = block * shape.block + shape.length - LANES - first
        body(first, pl.multiple_of(begin, LANES))

    jax.lax.fori_loop(0, shape.length // LANES, step, None)


def _staggered(x_KD: Array, *, is_left: bool) -> Array:
    """Row k of 128 rolled by 127 - k places: by 1, 2, 4 … 64 where its number has that bit."""
    width = x_KD.shape[1]
    places_KD = LANES - 1 - jax.lax.broadcasted_iota(jnp.int32, x_KD.shape, 0)
    for bit in range(_BITS_OF_LANES):
        rolled_KD = pltpu.roll(x_KD, width - (1 << bit) if is_left else 1 << bit, 1)
        x_KD = jnp.where((places_KD >> bit) & 1 == 1, rolled_KD, x_KD)
    return x_KD


def _make_bias(shape: KernelShape, vector_ref: Any, bias_ref: Any, block: Any) -> None:
    """Fills in the bias of a block of queries with all keys, for all heads of the group."""
    width = LANES + shape.block
    for head in range(shape.heads):

        def fill(first: Any, begin: Any, head: int = head) -> None:
            piece_1D = vector_ref[0, head : head + 1, pl.ds(begin, width)]
            matrix_KD = _staggered(jnp.broadcast_to(piece_1D, (LANES, width)), is_left=True)
            bias_ref[head, block, pl.ds(first, LANES), :] = matrix_KD[:, : shape.block]

        _each_128_keys(shape, fill, block)


def _sum_bias(shape: KernelShape, gradient_ref: Any, vector_ref: Any, block: Any) -> None:
    """Adds the gradient of `_make_bias`'s matrix to that of its vector."""
    for head in range(shape.heads):

        def add(first: Any, begin: Any, head: int = head) -> None:
            matrix_KQ = gradient_ref[head, block, pl.ds(first, LANES), :]
            filled_KD = jnp.concatenate([matrix_KQ, jnp.zeros((LANES, LANES), jnp.float32)], 1)
            sum_1D = jnp.sum(_staggered(filled_KD, is_left=False), axis=0, keepdims=True)
            vector_ref[0, head : head + 1, pl.ds(begin, LANES + shape.block)] += sum_1D

        _each_128_keys(shape, add, block)


def forward_kernel(
    seed_ref: Any, q_ref: Any, k_ref: Any, v_ref: Any, segments_ref: Any, *others: Any,
    shape: KernelShape,
) -> None:  # fmt: skip
    group, row, block = (pl.program_id(axis) for axis in range(3))
    if shape.has_bias:
        vector_ref, mixed_ref, log_sum_ref, bias_ref = others
        pl.when(row == 0)(lambda: _make_bias(shape, vector_ref, bias_ref, block))
    else:
        mixed_ref, log_sum_ref = others
    keys = pl.ds(shape.first_key(block), shape.keys)
    q_QC, k_PC, v_PC = q_ref[0], k_ref[0, keys, :], v_ref[0, keys, :]
    allowed_PQ = _allowed(shape, segments_ref, block)
    mixed_QC = jnp.zeros(q_QC.shape, jnp.float32)
    for head in range(shape.heads):
        bias_PQ = bias_ref[head, block] if shape.has_bias else None
        scores_PQ = _scores(shape, k_PC, _of_head(shape, q_QC, head), bias_PQ, allowed_PQ)
        largest_1Q = jnp.max(scores_PQ, axis=0, keepdims=True)
        weights_PQ = jnp.exp(scores_PQ - largest_1Q)
        sum_1Q = jnp.sum(weights_PQ, axis=0, keepdims=True)
        weights_PQ = (weights_PQ / sum_1Q).astype(v_PC.dtype)
        if shape.rate:
            number = group * shape.heads + head
            weights_PQ = _dropped(shape, weights_PQ, seed_ref[row], number, block)
        of_head_QC = _product(shape, weights_PQ, v_PC, _OVER_KEYS)
        mixed_QC = jnp.where(_is_of_head(shape, mixed_QC, head), of_head_QC, mixed_QC)
        log_sum_ref[0, 0, head : head + 1, :] = largest_1Q + jnp.log(sum_1Q)
    mixed_ref[0] = mixed_QC.astype(mixed_ref.dtype)


def backward_kernel(
    seed_ref: Any, q_ref: Any, k_ref: Any, v_ref: Any, segments_ref: Any, mixed_ref: Any,
    gradient_ref: Any, log_sum_ref: Any, *others: Any, shape: KernelShape,
) -> None:  # fmt: skip
    group, row, block = (pl.program_id(axis) for axis in range(3))
    if shape.has_bias:
        vector_ref, dq_ref, dk_ref, dv_ref, dvector_ref, dk_PC, dv_PC, bias_ref, dbias_ref = others

        @pl.when(row == 0)
        def _() -> None:
            _make_bias(shape, vector_ref, bias_ref, block)
            dbias_ref[:, block] = jnp.zeros((shape.heads, shape.keys, shape.block), jnp.float32)

        @pl.when((row == 0) & (block == 0))
        def _() -> None:
            dvector_ref[...] = jnp.zeros(dvector_ref.shape, jnp.float32)
    else:
        dq_ref, dk_ref, dv_ref, dk_PC, dv_PC = others

    @pl.when(block == 0)
    def _() -> None:
        dk_PC[...] = jnp.zeros(dk_PC.shape, jnp.float32)
        dv_PC[...] = jnp.zeros(dv_PC.shape, jnp.float32)

    keys = pl.ds(shape.first_key(block), shape.keys)
    q_QC, gradient_QC, k_PC, v_PC = q_ref[0], gradient_ref[0], k_ref[0, keys, :], v_ref[0, keys, :]
    allowed_PQ = _allowed(shape, segments_ref, block)
    # What every weight of a query has in common of its gradient, for each head.
    heads_HC = jax.lax.broadcasted_iota(jnp.int32, (max(8, shape.heads), LANES), 0)
    common_HQ = jax.lax.dot_general(
        _is_of_head(shape, heads_HC, heads_HC).astype(jnp.float32),
        gradient_QC.astype(jnp.float32) * mixed_ref[0].astype(jnp.float32),
        (_OVER_LANES, ((), ())), precision=jax.lax.Precision.HIGHEST,
        preferred_element_type=jnp.float32,
    )  # fmt: skip
    dq_QC = jnp.zeros(q_QC.shape, jnp.float32)
    for head in range(shape.heads):
        of_head_QC = _of_head(shape, q_QC, head)
        gradient_of_head_QC = _of_head(shape, gradient_QC, head)
        bias_PQ = bias_ref[head, block] if shape.has_bias else None
        scores_PQ = _scores(shape, k_PC, of_head_QC, bias_PQ, allowed_PQ)
        weights_PQ = jnp.exp(scores_PQ - log_sum_ref[0, 0, head : head + 1, :])
        dweights_PQ = _product(shape, v_PC, gradient_of_head_QC, _OVER_LANES)
        mixing_PQ = weights_PQ.astype(v_PC.dtype)
        if shape.rate:
            where = (seed_ref[row], group * shape.heads + head, block)
            mixing_PQ = _dropped(shape, mixing_PQ, *where)
            dweights_PQ = _dropped(shape, dweights_PQ, *where)
        dv_PC[keys, :] += _product(shape, mixing_PQ, gradient_of_head_QC, _OVER_QUERIES)
        dscores_PQ = weights_PQ * (dweights_PQ - common_HQ[head : head + 1, :])
        if shape.has_bias:
            dbias_ref[head, block] += dscores_PQ
        dscores_PQ = dscores_PQ.astype(q_QC.dtype)
        dk_PC[keys, :] += _product(shape, dscores_PQ, of_head_QC, _OVER_QUERIES)
        dq_of_head_QC = _product(shape, dscores_PQ, k_PC, _OVER_KEYS)
        dq_QC = jnp.where(_is_of_head(shape, dq_QC, head), dq_of_head_QC, dq_QC)
    dq_ref[0] = dq_QC.astype(dq_ref.dtype)

    @pl.when(block == shape.blocks - 1)
    def _() -> None:
        dk_ref[0] = dk_PC[...].astype(dk_ref.dtype)
        dv_ref[0] = dv_PC[...].astype(dv_ref.dtype)

    if shape.has_bias:
        is_last = row == pl.num_programs(1) - 1
        pl.when(is_last)(lambda: _sum_bias(shape, dbias_ref, dvector_ref, block))
