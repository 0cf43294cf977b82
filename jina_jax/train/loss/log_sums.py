"""Log-sum-exps over a similarity matrix that is never held.

For queries q and keys k, divided over all devices of a mesh, `log_sums` gives the log-sum-exp of
every row of scale · q kᵀ and of every column, without the entry of a record and itself: a loss far
below the logits would be lost in their difference. Each device compares its own rows with all keys,
which are gathered at once or travel around a ring (`ring_or_gather`). The matrix of a device is cut
into tiles (`walk_tiles`), and each tile is computed, used and let go. Forward, a tile adds to a
running maximum and sum of its rows and columns; backward, it is computed again and adds its share
of the gradients. So memory beside the inputs and their gradients is a few tiles. What does not
count in a sum is decided within the tile too: known matches, records of one label, and cosines
above a limit, by the model or by a guide, whose products are made beside the model's.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Float32

from jina_jax.config.fields import ProductPrecision
from jina_jax.train.loss.matches import RULES, Ids, Matches, share_a_label, share_a_text
from jina_jax.train.loss.tiles import (
    Gather,
    Part,
    own_part,
    ring_or_gather,
    varying,
    walk_tiles,
)

_T = TypeVar("_T")

# Stands for the logit of an entry that does not count. Finite, so that no difference is NaN, and so
# low that its share in a sum with any real logit is 0.
LOWEST = -1e30


@dataclass(frozen=True)
class LossSharding:
    """How a similarity matrix is divided over devices, and into tiles."""

    mesh: Mesh
    """Rows and keys are divided over all its axes, on their first axis."""
    gather: Gather = "all_gather"
    """How the keys reach every device."""
    tile_bytes: int = 16 * 2**20
    """Most memory of one float32 tile; two to four are alive at once."""
    precision: ProductPrecision = "highest"
    """Of products of float32 on TPUs and GPUs."""


class Compare(NamedTuple):
    """What is summed, beside which entries count."""

    keys_too: bool = False
    """The columns too; without, the sums of the keys are `LOWEST`."""
    itself: bool = False
    """The keys are the rows: the sum of a row is over all others. Half of the matrix is computed,
    each entry for its row and its column."""
    hardness: float = 0.0
    """A key weighs exp(hardness · its cosine) more in the sum of a row; the weight has no gradient.
    The sums of the keys are without."""


class LogSums(NamedTuple):
    """Result of one pass over the matrix. Logits are scale · cosine; those of rows have the factor
    scale + hardness.
    """

    row_B: Float32[Array, "B"]
    """Log-sum-exp of each row over the keys that count; its own positive does not."""
    key_N: Float32[Array, "N"]
    """Log-sum-exp of each key over the rows that count; `LOWEST` without `with_keys`."""
    row_max_B: Float32[Array, "B"]
    """Largest logit of each row among the keys that count; not differentiated."""
    masked_BK: Float32[Array, "B K"]
    """How many keys of other records do not count for each row, by each of the `RULES`; not
    differentiated, and not counted where the keys are the rows."""
    total_B: Float32[Array, "B"]
    """Sum of the logits of each row over the keys that count; not differentiated."""


@functools.partial(jax.custom_vjp, nondiff_argnums=(6, 7))
def log_sums(
    q_BD: Float32[Array, "B D"],
    k_ND: Float32[Array, "N D"],
    scale: Float32[Array, ""],
    row_ids: Ids,
    key_ids: Ids,
    matches: Matches | None,
    compare: Compare,
    sharding: LossSharding,
) -> LogSums:
    """Log-sum-exps of the rows, and of the columns, of scale · q kᵀ without each record and itself.

    Args:
      q_BD: any vectors; B divides by the devices of the mesh.
      k_ND: N divides by the devices of the mesh.
      scale: factor of the products, the inverse of a temperature. It has a gradient.
      row_ids: with `key_ids`, says which entries count.
      key_ids: those of the keys; the same where rows are compared with themselves.
      matches: of the queries; None where the ids have no runs.
      compare: what is summed.
      sharding: mesh, gather and tile size; they change the values in rounding only.
    Returns: LogSums, float32. The sum of a row or key without an entry that counts is near
      `LOWEST`.
    Source: Gao et al. 2021 (arXiv 2101.06983), section 3, for the gradient by recomputation; Cheng
      et al. 2024 (arXiv 2410.17243) for tiles and ring; Lan et al. 2025 (arXiv 2503.04812), eq. 5,
      for hardness.
    """
    return _forward(q_BD, k_ND, scale, row_ids, key_ids, matches, compare, sharding)[0]


def _forward(
    q_BD: Array, k_ND: Array, scale: Array, row_ids: Ids, key_ids: Ids, matches: Matches | None,
    compare: Compare, sharding: LossSharding,
) -> tuple[LogSums, tuple[Any, ...]]:  # fmt: skip
    split, whole = PartitionSpec(sharding.mesh.axis_names), PartitionSpec()
    local = jax.shard_map(
        functools.partial(_forward_local, what=compare, sharding=sharding),
        mesh=sharding.mesh,
        in_specs=(split, split, whole, split, split, whole, whole),
        out_specs=split,
    )
    sums = local(q_BD, k_ND, scale, row_ids, *_apart(key_ids), matches)
    return sums, (q_BD, k_ND, scale, row_ids, key_ids, matches, sums)


def _backward(
    compare: Compare, sharding: LossSharding, residuals: tuple[Any, ...], gradient: LogSums
) -> tuple[Array, Array | None, Array, None, None, None]:
    q_BD, k_ND, scale, row_ids, key_ids, matches, sums = residuals
    split, whole = PartitionSpec(sharding.mesh.axis_names), PartitionSpec()
    local = jax.shard_map(
        functools.partial(_backward_local, what=compare, sharding=sharding),
        mesh=sharding.mesh,
        in_specs=(split, split, whole, split, split, whole, whole, split, split),
        out_specs=(split, None if compare.itself else split, whole),
    )
    gradients = local(q_BD, k_ND, scale, row_ids, *_apart(key_ids), matches, sums, gradient)
    return (*gradients, None, None, None)


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
    """Running sums of the rows of a device."""

    sum: _Sum
    masked_BK: Array
    total_B: Array

    @staticmethod
    def empty(size: int) -> "_Rows":
        nothing_B = jnp.zeros(size, jnp.float32)
        return _Rows(_Sum.empty(size), jnp.zeros((size, len(RULES)), jnp.float32), nothing_B)

    def add(self, tile: "_Tile") -> "_Rows":
        logits_BN, masked_BK = tile.of_rows, self.masked_BK
        total_B = self.total_B + jnp.sum(jnp.where(logits_BN == LOWEST, 0.0, logits_BN), axis=1)
        for rule, mask_BN in enumerate(tile.masked):
            if mask_BN is not None:
                masked_BK = masked_BK.at[:, rule].add(jnp.sum(mask_BN, axis=1, dtype=jnp.float32))
        return _Rows(self.sum.add_axis(logits_BN, 1), masked_BK, total_B)


class _Side(NamedTuple):
    """Rows or keys."""

    x_ND: Array
    ids: Ids


class _Measured(NamedTuple):
    """Of ids, what is computed from vectors."""

    limit_N: Array | None
    guide_NG: Array | None


def _apart(ids: Ids) -> tuple[_Measured, Ids]:
    """What travels with the keys, and the numbers, which every device has of all."""
    return _Measured(ids.limit_N, ids.guide_NG), ids._replace(limit_N=None, guide_NG=None)


class _Keys(NamedTuple):
    """A block of keys that travels."""

    x_ND: Array
    measured: _Measured
    first_1: Array
    """Place of its first key among all; one for each device where they are all here."""

    @staticmethod
    def of_device(k_ND: Array, measured: _Measured, axes: tuple[str, ...]) -> "_Keys":
        return _Keys(k_ND, measured, (jax.lax.axis_index(axes) * len(k_ND))[None])

    def side(self, ids: Ids) -> _Side:
        """With their part of the numbers of all."""
        own = Part(self.first_1[0], len(self.x_ND)).of(ids)
        return _Side(self.x_ND, own._replace(**self.measured._asdict()))


class _Tile(NamedTuple):
    """Logits, `LOWEST` where an entry does not count."""

    of_rows: Array
    of_keys: Array
    """Those in the sums of the columns, which may have other limits."""
    masked: tuple[Array | None, ...]
    """By rule, entries of other records that do not count in the sums of the rows."""


class _Matrix(NamedTuple):
    """The matrix of all rows and keys, of which tiles are computed."""

    scale: Array
    matches: Matches | None
    what: Compare
    records: int
    """Rows on all devices."""
    tile_bytes: int
    precision: ProductPrecision

    def walk(
        self, rows: _Side, keys: _Side, tile: Callable[[Part, Part, "_Tile", _T], _T], carry: _T
    ) -> _T:
        """Calls `tile` with (its rows, its keys, itself, carry), as `walk_tiles` does.

        Of rows and themselves, those tiles are left out whose entries count in others.
        """

        def full(row: Part, key: Part, carry: _T) -> _T:
            return tile(row, key, self._tile(row.of(rows), key.of(keys)), carry)

        def half(row: Part, key: Part, carry: _T) -> _T:
            row_0, key_0 = row.of(rows.ids.pair_N)[0], key.of(keys.ids.pair_N)[0]
            # The differences of numbers of a key and a row run from here on, modulo the records.
            first = (key_0 - row_0 - (row.length - 1)) % self.records
            reaches_0 = first + row.length + key.length - 2 >= self.records
            is_needed = (2 * first <= self.records) | reaches_0
            return jax.lax.cond(is_needed, lambda c: full(row, key, c), lambda c: c, carry)

        sizes = len(rows.x_ND), len(keys.x_ND)
        if not self.what.itself:
            return walk_tiles(*sizes, self.tile_bytes, full, carry)
        # Smaller tiles follow the border of the half more closely.
        return walk_tiles(*sizes, self.tile_bytes // 4, half, carry)

    def _tile(self, row: _Side, key: _Side) -> _Tile:
        cosine_BN = _matmul(row.x_ND, key.x_ND.T, self.precision)
        row_B1, key_1N = row.ids.pair_N[:, None], key.ids.pair_N[None]
        left_out_BN = row_B1 == key_1N
        if self.what.itself:
            # Of two records, each finds the other within half of the batch, but for those that are
            # exactly half of it apart.
            apart_BN = (key_1N - row_B1) % self.records
            is_half_BN = 2 * apart_BN == self.records
            left_out_BN |= (2 * apart_BN > self.records) | (is_half_BN & (key_1N < row_B1))
        masked: list[Array | None] = []
        for mask_BN in (
            share_a_text(row.ids, key.ids, self.matches), share_a_label(row.ids, key.ids)
        ):  # fmt: skip
            masked.append(None if mask_BN is None else mask_BN & ~left_out_BN)
            if mask_BN is not None:
                left_out_BN |= mask_BN
        of_rows = of_keys = jnp.where(left_out_BN, LOWEST, self.scale * cosine_BN)
        if self.what.hardness:
            hard_BN = (self.scale + self.what.hardness) * cosine_BN
            of_rows = jnp.where(left_out_BN, LOWEST, hard_BN)
        if row.ids.limit_N is None:
            return _Tile(of_rows, of_keys, (*masked, None))
        if row.ids.guide_NG is not None and key.ids.guide_NG is not None:
            cosine_BN = jnp.matmul(
                of_unit_length(row.ids.guide_NG), of_unit_length(key.ids.guide_NG).T
            )
        is_over_BN = cosine_BN >= row.ids.limit_N[:, None]
        of_rows = jnp.where(is_over_BN, LOWEST, of_rows)
        if key.ids.limit_N is not None:
            of_keys = jnp.where(cosine_BN >= key.ids.limit_N[None], LOWEST, of_keys)
        return _Tile(of_rows, of_keys, (*masked, is_over_BN & ~left_out_BN))


def of_unit_length(x: Array) -> Float32[Array, "... G"]:
    """Vectors of float32 or int8 at length 1, in float32; those of zeros stay zeros."""
    x = x.astype(jnp.float32)
    length = jnp.sqrt(jnp.sum(jnp.square(x), axis=-1, keepdims=True))
    return x / jnp.where(length > 0, length, 1.0)


def _forward_local(
    q_BD: Array, k_ND: Array, scale: Array, row_ids: Ids, of_keys: _Measured, key_ids: Ids,
    matches: Matches | None, *, what: Compare, sharding: LossSharding,
) -> LogSums:  # fmt: skip
    axes, rows_side = sharding.mesh.axis_names, _Side(q_BD, row_ids)
    records = len(q_BD) * sharding.mesh.size
    matrix = _Matrix(scale, matches, what, records, sharding.tile_bytes, sharding.precision)

    def compare(block: _Keys, rows: _Rows) -> tuple[_Rows, _Sum]:
        def tile(
            row: Part, key: Part, found: _Tile, sums: tuple[_Rows, _Sum]
        ) -> tuple[_Rows, _Sum]:
            rows, keys = sums
            rows = row.put(rows, row.of(rows).add(found))
            if what.keys_too or what.itself:
                keys = key.put(keys, key.of(keys).add_axis(found.of_keys, 0))
            return rows, keys

        keys = varying(_Sum.empty(len(block.x_ND)), axes)
        return matrix.walk(rows_side, block.side(key_ids), tile, (rows, keys))

    def reduce(keys: _Sum) -> _Sum:
        max_N = jax.lax.pmax(keys.max_N, axes)
        total_N = keys.total_N * jnp.exp(keys.max_N - max_N)
        own_N = own_part(max_N, axes)
        return _Sum(own_N, jax.lax.psum_scatter(total_N, axes, tiled=True))

    rows, keys = ring_or_gather(
        _Keys.of_device(k_ND, of_keys, axes), varying(_Rows.empty(len(q_BD)), axes), compare,
        merge=_Sum.merge, reduce=reduce, mesh=sharding.mesh, gather=sharding.gather,
    )  # fmt: skip
    row_sum = rows.sum.merge(keys) if what.itself else rows.sum
    return LogSums(row_sum.log(), keys.log(), row_sum.max_N, rows.masked_BK, rows.total_B)


def _backward_local(
    q_BD: Array, k_ND: Array, scale: Array, row_ids: Ids, of_keys: _Measured, key_ids: Ids,
    matches: Matches | None, sums: LogSums, gradient: LogSums, *, what: Compare,
    sharding: LossSharding,
) -> tuple[Array, Array | None, Array]:  # fmt: skip
    axes, rows_side = sharding.mesh.axis_names, _Side(q_BD, row_ids)
    records = len(q_BD) * sharding.mesh.size
    matrix = _Matrix(scale, matches, what, records, sharding.tile_bytes, sharding.precision)
    of_row_B, of_key_N, key_N = scale * gradient.row_B, None, None
    if what.itself:
        of_key_N, key_N = of_row_B, sums.row_B
    elif what.keys_too:
        of_key_N, key_N = scale * gradient.key_N, sums.key_N

    def compare(block: Any, dq_BD: Array) -> tuple[Array, Array | None]:
        keys, key_M, of_key_M = block
        keys_side = keys.side(key_ids)

        def tile(row: Part, key: Part, found: _Tile, gradients: tuple[Array, Array | None]) -> Any:
            dq_BD, dk_MD = gradients
            # d logits / scale: the softmax of the row, and of the column.
            softmax = jnp.exp(found.of_rows - row.of(sums.row_B)[:, None])
            weights = row.of(of_row_B)[:, None] * softmax
            if of_key_M is not None:
                softmax = jnp.exp(found.of_keys - key.of(key_M)[None])
                weights = weights + key.of(of_key_M)[None] * softmax
            of_rows = _matmul(weights, key.of(keys_side.x_ND), sharding.precision)
            dq_BD = row.put(dq_BD, row.of(dq_BD) + of_rows)
            of_keys = _matmul(weights.T, row.of(q_BD), sharding.precision)
            if dk_MD is None:
                return key.put(dq_BD, key.of(dq_BD) + of_keys), None
            return dq_BD, key.put(dk_MD, key.of(dk_MD) + of_keys)

        # All rows are here, and are the keys: there is one gradient.
        if what.itself and sharding.mesh.size == 1:
            return matrix.walk(rows_side, keys_side, tile, (dq_BD, None))
        k_MD = keys_side.x_ND
        dk_MD = varying(jnp.zeros(k_MD.shape, k_MD.dtype), axes)
        return matrix.walk(rows_side, keys_side, tile, (dq_BD, dk_MD))

    dq_BD, dk_ND = ring_or_gather(
        (_Keys.of_device(k_ND, of_keys, axes), key_N, of_key_N),
        varying(jnp.zeros(q_BD.shape, q_BD.dtype), axes), compare,
        merge=jnp.add, reduce=lambda dk: jax.lax.psum_scatter(dk, axes, tiled=True),
        mesh=sharding.mesh, gather=sharding.gather,
    )  # fmt: skip
    if what.itself:
        dq_BD, dk_ND = dq_BD if dk_ND is None else dq_BD + dk_ND, None
    # A logit is scale · q·k: scale · d/dscale is q · d/dq, and half of it where q is k.
    of_scale = jnp.sum(q_BD * dq_BD) / (2 if what.itself else 1)
    return dq_BD, dk_ND, jax.lax.psum(of_scale, axes) / scale


def _matmul(a: Array, b: Array, precision: ProductPrecision) -> Array:
    return jnp.matmul(a, b, precision=precision)
