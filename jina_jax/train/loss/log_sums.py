"""Log-sum-exps over a similarity matrix that is never held: a walk over its tiles.

For queries q and keys k, divided over all devices of a mesh, `log_sums` gives the log-sum-exp of
every row of scale · q kᵀ and of every column. Both passes compute a tile, use it and let it go:
forward, a running maximum and sum a row and a column; backward, the tile again and its share of the
gradients. What is held beside the inputs and their gradients is a few tiles.
"""

import functools
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Float32, Int32

from jina_jax.train.loss.tiles import Part, walk_tiles
from jina_jax.train.loss.visits import Gather, own_part, varying, visit_all_keys

# Stands for the logit of an entry that does not count. Finite, so that no difference is NaN, and so
# low that its share in a sum with any real logit is 0.
LOWEST = -1e30


@dataclass(frozen=True)
class Spread:
    """How a similarity matrix is divided over devices and time."""

    mesh: Mesh
    """Rows and keys are divided over all its axes, on their first axis."""
    gather: Gather = "all_gather"
    """How the keys come to every device."""
    tile_bytes: int = 16 * 2**20
    """Most memory of one float32 tile; two to four are alive at once."""


class Marks(NamedTuple):
    """What says which entries of the matrix count, for N rows or for N keys.

    An entry counts where the numbers of row and key are equal, or where none of the identities of
    the row is one of the key's.
    """

    number_N: Int32[Array, "N"]
    """Number of the pair; negative for a key that is no row's positive."""
    identity_NT: Int32[Array, "N T"]
    """Equal numbers for equal texts."""


class LogSums(NamedTuple):
    """What one pass over the matrix gives; logits are scale · cosine."""

    row_B: Float32[Array, "B"]
    """Log-sum-exp of each row over the keys that count."""
    key_N: Float32[Array, "N"]
    """Log-sum-exp of each key over the rows that count; `LOWEST` where it was not asked for."""
    row_max_B: Float32[Array, "B"]
    """Largest logit of each row among the keys that count; not differentiated."""
    masked_B: Float32[Array, "B"]
    """How many keys do not count for each row; not differentiated."""
    total_B: Float32[Array, "B"]
    """Sum of the logits of each row over the keys that count; not differentiated."""


@functools.partial(jax.custom_vjp, nondiff_argnums=(5, 6))
def log_sums(
    q_BD: Float32[Array, "B D"],
    k_ND: Float32[Array, "N D"],
    scale: Float32[Array, ""],
    row_marks: Marks | None,
    key_marks: Marks | None,
    of_keys: bool,
    spread: Spread,
) -> LogSums:
    """Log-sum-exps of the rows, and of the columns, of scale · q kᵀ.

    Args:
      q_BD: any vectors; B divides by the devices of the mesh.
      k_ND: N divides by the devices of the mesh.
      scale: factor of the products, the inverse of a temperature. It has a gradient.
      row_marks: with `key_marks`, which entries count; all do where either is None.
      key_marks: those of the keys.
      of_keys: whether the sums of the columns are wanted too.
      spread: mesh, way of gathering and size of a tile; none of them changes the values but in
        rounding.
    Returns: LogSums, float32. The sum of a row or key without an entry that counts is near
      `LOWEST`.
    Source: Gao et al. 2021 (arXiv 2101.06983), section 3, for the gradient by recomputation; Cheng
      et al. 2024 (arXiv 2410.17243) for tiles and ring.
    """
    return _forward(q_BD, k_ND, scale, row_marks, key_marks, of_keys, spread)[0]


def _forward(
    q_BD: Array, k_ND: Array, scale: Array, row_marks: Marks | None, key_marks: Marks | None,
    of_keys: bool, spread: Spread,
) -> tuple[LogSums, tuple[Any, ...]]:  # fmt: skip
    split = PartitionSpec(spread.mesh.axis_names)
    local = jax.shard_map(
        functools.partial(_forward_local, of_keys=of_keys, spread=spread),
        mesh=spread.mesh,
        in_specs=(split, split, PartitionSpec(), split, split),
        out_specs=split,
    )
    sums = local(q_BD, k_ND, scale, row_marks, key_marks)
    return sums, (q_BD, k_ND, scale, row_marks, key_marks, sums)


def _backward(
    of_keys: bool, spread: Spread, residuals: tuple[Any, ...], gradient: LogSums
) -> tuple[Array, Array, Array, None, None]:
    q_BD, k_ND, scale, row_marks, key_marks, sums = residuals
    split = PartitionSpec(spread.mesh.axis_names)
    local = jax.shard_map(
        functools.partial(_backward_local, of_keys=of_keys, spread=spread),
        mesh=spread.mesh,
        in_specs=(split, split, PartitionSpec(), split, split, split, split),
        out_specs=(split, split, PartitionSpec()),
    )
    gradients = local(q_BD, k_ND, scale, row_marks, key_marks, sums, gradient)
    return (*gradients, None, None)


log_sums.defvjp(_forward, _backward)


class _Sum(NamedTuple):
    """A log-sum-exp under way: max + log(total)."""

    max_N: Array
    total_N: Array

    @staticmethod
    def empty(size: int) -> "_Sum":
        return _Sum(jnp.full(size, LOWEST, jnp.float32), jnp.zeros(size, jnp.float32))

    def add_axis(self, logits: Array, axis: int) -> "_Sum":
        max_N = jnp.maximum(self.max_N, logits.max(axis))
        kept_N = self.total_N * jnp.exp(self.max_N - max_N)
        return _Sum(max_N, kept_N + jnp.exp(logits - jnp.expand_dims(max_N, axis)).sum(axis))

    def merge(self, other: "_Sum") -> "_Sum":
        max_N = jnp.maximum(self.max_N, other.max_N)
        totals = (s.total_N * jnp.exp(s.max_N - max_N) for s in (self, other))
        return _Sum(max_N, sum(totals))

    def log(self) -> Array:
        # A sum of nothing, 0, is as low as one of entries that do not count.
        return self.max_N + jnp.log(jnp.maximum(self.total_N, 1e-30))


class _Rows(NamedTuple):
    """What is gathered over the rows of a device."""

    sum: _Sum
    masked_B: Array
    total_B: Array

    @staticmethod
    def empty(size: int) -> "_Rows":
        nothing_B = jnp.zeros(size, jnp.float32)
        return _Rows(_Sum.empty(size), nothing_B, nothing_B)

    def add(self, logits_BN: Array) -> "_Rows":
        is_masked_BN = logits_BN == LOWEST
        masked_B = jnp.sum(is_masked_BN.astype(jnp.float32), axis=1)
        total_B = jnp.sum(jnp.where(is_masked_BN, 0.0, logits_BN), axis=1)
        return _Rows(
            self.sum.add_axis(logits_BN, 1), self.masked_B + masked_B, self.total_B + total_B
        )


def _forward_local(
    q_BD: Array, k_ND: Array, scale: Array, row_marks: Marks | None, key_marks: Marks | None,
    *, of_keys: bool, spread: Spread,
) -> LogSums:  # fmt: skip
    axes = spread.mesh.axis_names

    def visit(block: tuple[Array, Marks | None], rows: _Rows) -> tuple[_Rows, _Sum]:
        k_MD, marks = block

        def tile(row: Part, key: Part, sums: tuple[_Rows, _Sum]) -> tuple[_Rows, _Sum]:
            rows, keys = sums
            logits = _logits(
                row.of(q_BD), key.of(k_MD), scale, row.of(row_marks), key.of(marks)
            )  # fmt: skip
            rows = row.put(rows, row.of(rows).add(logits))
            if of_keys:
                keys = key.put(keys, key.of(keys).add_axis(logits, 0))
            return rows, keys

        keys = varying(_Sum.empty(len(k_MD)), axes)
        return walk_tiles(len(q_BD), len(k_MD), spread.tile_bytes, tile, (rows, keys))

    def reduce(keys: _Sum) -> _Sum:
        max_N = jax.lax.pmax(keys.max_N, axes)
        total_N = keys.total_N * jnp.exp(keys.max_N - max_N)
        own_N = own_part(max_N, axes)
        return _Sum(own_N, jax.lax.psum_scatter(total_N, axes, tiled=True))

    rows, keys = visit_all_keys(
        (k_ND, key_marks), varying(_Rows.empty(len(q_BD)), axes), visit,
        merge=_Sum.merge, reduce=reduce, mesh=spread.mesh, gather=spread.gather,
    )  # fmt: skip
    return LogSums(rows.sum.log(), keys.log(), rows.sum.max_N, rows.masked_B, rows.total_B)


def _backward_local(
    q_BD: Array, k_ND: Array, scale: Array, row_marks: Marks | None, key_marks: Marks | None,
    sums: LogSums, gradient: LogSums, *, of_keys: bool, spread: Spread,
) -> tuple[Array, Array, Array]:  # fmt: skip
    axes = spread.mesh.axis_names
    of_row_B = scale * gradient.row_B
    of_key_N = scale * gradient.key_N if of_keys else None

    def visit(block: Any, dq_BD: Array) -> tuple[Array, Array]:
        k_MD, marks, key_M, of_key_M = block

        def tile(row: Part, key: Part, gradients: tuple[Array, Array]) -> Any:
            dq_BD, dk_MD = gradients
            q, k = row.of(q_BD), key.of(k_MD)
            logits = _logits(q, k, scale, row.of(row_marks), key.of(marks))
            # d logits / scale: the softmax of the row, and of the column.
            weights = row.of(of_row_B)[:, None] * jnp.exp(logits - row.of(sums.row_B)[:, None])
            if of_keys:
                columns = key.of(of_key_M)[None] * jnp.exp(logits - key.of(key_M)[None])
                weights = weights + columns
            dq_BD = row.put(dq_BD, row.of(dq_BD) + _matmul(weights, k))
            return dq_BD, key.put(dk_MD, key.of(dk_MD) + _matmul(weights.T, q))

        dk_MD = varying(jnp.zeros(k_MD.shape, k_MD.dtype), axes)
        return walk_tiles(len(q_BD), len(k_MD), spread.tile_bytes, tile, (dq_BD, dk_MD))

    dq_BD, dk_ND = visit_all_keys(
        (k_ND, key_marks, sums.key_N if of_keys else None, of_key_N),
        varying(jnp.zeros(q_BD.shape, q_BD.dtype), axes), visit,
        merge=jnp.add, reduce=lambda dk: jax.lax.psum_scatter(dk, axes, tiled=True),
        mesh=spread.mesh, gather=spread.gather,
    )  # fmt: skip
    # A logit is scale · q·k: scale · d/dscale is q · d/dq.
    dscale = jax.lax.psum(jnp.sum(q_BD * dq_BD), axes) / scale
    return dq_BD, dk_ND, dscale


def _logits(
    q_BD: Array, k_ND: Array, scale: Array, row_marks: Marks | None, key_marks: Marks | None
) -> Array:
    logits_BN = scale * _matmul(q_BD, k_ND.T)
    if row_marks is None or key_marks is None:
        return logits_BN
    counts_BN = row_marks.number_N[:, None] == key_marks.number_N[None]
    is_shared_BN = jnp.zeros_like(counts_BN)
    for row_B in row_marks.identity_NT.T:
        for key_N in key_marks.identity_NT.T:
            is_shared_BN |= row_B[:, None] == key_N[None]
    return jnp.where(counts_BN | ~is_shared_BN, logits_BN, LOWEST)


def _matmul(a: Array, b: Array) -> Array:
    # Full precision: TPUs and GPUs would otherwise round the inputs to bfloat16 or tf32.
    return jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)
