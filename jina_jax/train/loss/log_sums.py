"""Log-sum-exps over a similarity matrix that is never held.

For queries q and keys k, divided over all devices of a mesh, `log_sums` gives the log-sum-exp of
every row of scale · q kᵀ and of every column, without the entry of a query and its own positive:
a loss far below the logits would be lost in their difference. Each device compares its own rows
with all keys, which are gathered at once or travel around a ring (`ring_or_gather`). The matrix of
a device is cut into tiles (`walk_tiles`), and each tile is computed, used and let go. Forward, a
tile adds to a running maximum and sum of its rows and columns; backward, it is computed again and
adds its share of the gradients. So memory beside the inputs and their gradients is a few tiles.
"""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Bool, Float32, Int32

_T = TypeVar("_T")

# Stands for the logit of an entry that does not count. Finite, so that no difference is NaN, and so
# low that its share in a sum with any real logit is 0.
LOWEST = -1e30

Gather = Literal["all_gather", "ring"]
"""`all_gather` brings all keys to every device; `ring` sends blocks of them around, so that a
device holds two blocks at a time."""


@dataclass(frozen=True)
class LossSharding:
    """How a similarity matrix is divided over devices, and into tiles."""

    mesh: Mesh
    """Rows and keys are divided over all its axes, on their first axis."""
    gather: Gather = "all_gather"
    """How the keys reach every device."""
    tile_bytes: int = 16 * 2**20
    """Most memory of one float32 tile; two to four are alive at once."""


class Ids(NamedTuple):
    """Of N rows or N keys: which entries of the matrix count.

    Those of a query and another pair's key count, where the two pairs share no text and the key is
    no known match of the query.
    """

    pair_N: Int32[Array, "N"]
    """Number of the pair; negative for a key that is no row's positive."""
    text_NT: Int32[Array, "N T"] | None = None
    """Equal numbers for equal texts; a key's own text is the last. None masks none of them."""
    run_N2: Int32[Array, "N 2"] | None = None
    """Of rows: where the known matches of the query begin in `Matches.text_M`, and their count."""


class Matches(NamedTuple):
    """The known matches of all queries, which every device holds."""

    text_M: Int32[Array, "M"]
    """Positives, in the order of their queries."""
    most: Int32[Array, ""]
    """Of one query; 0 where no query has more than its own positive."""

    def mask(
        self,
        masked_RN: Bool[Array, "R N"],
        run_R2: Int32[Array, "R 2"],
        text_XN: Int32[Array, "X N"],
    ) -> Bool[Array, "R N"]:
        """Adds to a mask the texts that match the query of each row.

        Args:
          masked_RN: what is masked already.
          run_R2: as in `Ids`.
          text_XN: the texts; X is R, or 1 where each row is compared with the same ones.
        """

        def add(number: Array, masked_RN: Array) -> Array:
            match_R1 = jnp.take(self.text_M, run_R2[:, :1] + number, mode="clip")
            return masked_RN | ((match_R1 == text_XN) & (number < run_R2[:, 1:]))

        return jax.lax.fori_loop(0, self.most, add, masked_RN)


def known_matches(
    query_B: Int32[Array, "B"], positive_B: Int32[Array, "B"]
) -> tuple[Matches, Int32[Array, "B 2"]]:
    """The positives of every query, over all pairs that have it.

    Args:
      query_B: equal numbers for equal texts.
      positive_B: in the same numbers.
    Returns: the matches, and each pair's run in them.
    Example: pairs (a, x), (b, y), (a, z) give x z y, and the runs (0, 2), (2, 1), (0, 2).
    """
    order_B = jnp.argsort(query_B)
    sorted_B = query_B[order_B]
    first_B = jnp.searchsorted(sorted_B, query_B).astype(jnp.int32)
    count_B = jnp.searchsorted(sorted_B, query_B, side="right").astype(jnp.int32) - first_B
    most = jnp.max(count_B)
    matches = Matches(positive_B[order_B], jnp.where(most > 1, most, 0))
    return matches, jnp.stack([first_B, count_B], axis=1)


class LogSums(NamedTuple):
    """Result of one pass over the matrix; logits are scale · cosine."""

    row_B: Float32[Array, "B"]
    """Log-sum-exp of each row over the keys that count; its own positive does not."""
    key_N: Float32[Array, "N"]
    """Log-sum-exp of each key over the rows that count; `LOWEST` without `with_keys`."""
    row_max_B: Float32[Array, "B"]
    """Largest logit of each row among the keys that count; not differentiated."""
    masked_B: Float32[Array, "B"]
    """How many keys of other pairs do not count for each row; not differentiated."""
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
    with_keys: bool,
    sharding: LossSharding,
) -> LogSums:
    """Log-sum-exps of the rows, and of the columns, of scale · q kᵀ without each query's positive.

    Args:
      q_BD: any vectors; B divides by the devices of the mesh.
      k_ND: N divides by the devices of the mesh.
      scale: factor of the products, the inverse of a temperature. It has a gradient.
      row_ids: with `key_ids`, says which entries count.
      key_ids: those of the keys.
      matches: of the queries; None where the ids have no texts.
      with_keys: compute the sums of the columns too.
      sharding: mesh, gather and tile size; they change the values in rounding only.
    Returns: LogSums, float32. The sum of a row or key without an entry that counts is near
      `LOWEST`.
    Source: Gao et al. 2021 (arXiv 2101.06983), section 3, for the gradient by recomputation; Cheng
      et al. 2024 (arXiv 2410.17243) for tiles and ring.
    """
    return _forward(q_BD, k_ND, scale, row_ids, key_ids, matches, with_keys, sharding)[0]


def _forward(
    q_BD: Array, k_ND: Array, scale: Array, row_ids: Ids, key_ids: Ids, matches: Matches | None,
    with_keys: bool, sharding: LossSharding,
) -> tuple[LogSums, tuple[Any, ...]]:  # fmt: skip
    split = PartitionSpec(sharding.mesh.axis_names)
    local = jax.shard_map(
        functools.partial(_forward_local, with_keys=with_keys, sharding=sharding),
        mesh=sharding.mesh,
        in_specs=(split, split, PartitionSpec(), split, split, PartitionSpec()),
        out_specs=split,
    )
    sums = local(q_BD, k_ND, scale, row_ids, key_ids, matches)
    return sums, (q_BD, k_ND, scale, row_ids, key_ids, matches, sums)


def _backward(
    with_keys: bool, sharding: LossSharding, residuals: tuple[Any, ...], gradient: LogSums
) -> tuple[Array, Array, Array, None, None, None]:
    q_BD, k_ND, scale, row_ids, key_ids, matches, sums = residuals
    split = PartitionSpec(sharding.mesh.axis_names)
    local = jax.shard_map(
        functools.partial(_backward_local, with_keys=with_keys, sharding=sharding),
        mesh=sharding.mesh,
        in_specs=(split, split, PartitionSpec(), split, split, PartitionSpec(), split, split),
        out_specs=(split, split, PartitionSpec()),
    )
    gradients = local(q_BD, k_ND, scale, row_ids, key_ids, matches, sums, gradient)
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
    masked_B: Array
    total_B: Array

    @staticmethod
    def empty(size: int) -> "_Rows":
        nothing_B = jnp.zeros(size, jnp.float32)
        return _Rows(_Sum.empty(size), nothing_B, nothing_B)

    def add(self, logits_BN: Array, is_own_BN: Array) -> "_Rows":
        is_left_out_BN = logits_BN == LOWEST
        masked_B = jnp.sum((is_left_out_BN & ~is_own_BN).astype(jnp.float32), axis=1)
        total_B = jnp.sum(jnp.where(is_left_out_BN, 0.0, logits_BN), axis=1)
        return _Rows(
            self.sum.add_axis(logits_BN, 1), self.masked_B + masked_B, self.total_B + total_B
        )


def _forward_local(
    q_BD: Array, k_ND: Array, scale: Array, row_ids: Ids, key_ids: Ids, matches: Matches | None,
    *, with_keys: bool, sharding: LossSharding,
) -> LogSums:  # fmt: skip
    axes = sharding.mesh.axis_names

    def compare(block: tuple[Array, Ids], rows: _Rows) -> tuple[_Rows, _Sum]:
        k_MD, ids = block

        def tile(row: Part, key: Part, sums: tuple[_Rows, _Sum]) -> tuple[_Rows, _Sum]:
            rows, keys = sums
            logits, is_own = _logits(
                row.of(q_BD), key.of(k_MD), scale, row.of(row_ids), key.of(ids), matches
            )
            rows = row.put(rows, row.of(rows).add(logits, is_own))
            if with_keys:
                keys = key.put(keys, key.of(keys).add_axis(logits, 0))
            return rows, keys

        keys = varying(_Sum.empty(len(k_MD)), axes)
        return walk_tiles(len(q_BD), len(k_MD), sharding.tile_bytes, tile, (rows, keys))

    def reduce(keys: _Sum) -> _Sum:
        max_N = jax.lax.pmax(keys.max_N, axes)
        total_N = keys.total_N * jnp.exp(keys.max_N - max_N)
        own_N = own_part(max_N, axes)
        return _Sum(own_N, jax.lax.psum_scatter(total_N, axes, tiled=True))

    rows, keys = ring_or_gather(
        (k_ND, key_ids), varying(_Rows.empty(len(q_BD)), axes), compare,
        merge=_Sum.merge, reduce=reduce, mesh=sharding.mesh, gather=sharding.gather,
    )  # fmt: skip
    return LogSums(rows.sum.log(), keys.log(), rows.sum.max_N, rows.masked_B, rows.total_B)


def _backward_local(
    q_BD: Array, k_ND: Array, scale: Array, row_ids: Ids, key_ids: Ids, matches: Matches | None,
    sums: LogSums, gradient: LogSums, *, with_keys: bool, sharding: LossSharding,
) -> tuple[Array, Array, Array]:  # fmt: skip
    axes = sharding.mesh.axis_names
    of_row_B = scale * gradient.row_B
    of_key_N = scale * gradient.key_N if with_keys else None

    def compare(block: Any, dq_BD: Array) -> tuple[Array, Array]:
        k_MD, ids, key_M, of_key_M = block

        def tile(row: Part, key: Part, gradients: tuple[Array, Array]) -> Any:
            dq_BD, dk_MD = gradients
            q, k = row.of(q_BD), key.of(k_MD)
            logits, _ = _logits(q, k, scale, row.of(row_ids), key.of(ids), matches)
            # d logits / scale: the softmax of the row, and of the column.
            weights = row.of(of_row_B)[:, None] * jnp.exp(logits - row.of(sums.row_B)[:, None])
            if with_keys:
                columns = key.of(of_key_M)[None] * jnp.exp(logits - key.of(key_M)[None])
                weights = weights + columns
            dq_BD = row.put(dq_BD, row.of(dq_BD) + _matmul(weights, k))
            return dq_BD, key.put(dk_MD, key.of(dk_MD) + _matmul(weights.T, q))

        dk_MD = varying(jnp.zeros(k_MD.shape, k_MD.dtype), axes)
        return walk_tiles(len(q_BD), len(k_MD), sharding.tile_bytes, tile, (dq_BD, dk_MD))

    dq_BD, dk_ND = ring_or_gather(
        (k_ND, key_ids, sums.key_N if with_keys else None, of_key_N),
        varying(jnp.zeros(q_BD.shape, q_BD.dtype), axes), compare,
        merge=jnp.add, reduce=lambda dk: jax.lax.psum_scatter(dk, axes, tiled=True),
        mesh=sharding.mesh, gather=sharding.gather,
    )  # fmt: skip
    # A logit is scale · q·k: scale · d/dscale is q · d/dq.
    dscale = jax.lax.psum(jnp.sum(q_BD * dq_BD), axes) / scale
    return dq_BD, dk_ND, dscale


def _logits(
    q_BD: Array, k_ND: Array, scale: Array, row_ids: Ids, key_ids: Ids, matches: Matches | None
) -> tuple[Array, Array]:
    """Logits, `LOWEST` where an entry does not count, and whether it is a query's own positive."""
    logits_BN = scale * _matmul(q_BD, k_ND.T)
    is_own_BN = row_ids.pair_N[:, None] == key_ids.pair_N[None]
    is_masked_BN = is_own_BN
    if row_ids.text_NT is not None and key_ids.text_NT is not None:
        for row_B in row_ids.text_NT.T:
            for key_N in key_ids.text_NT.T:
                is_masked_BN |= row_B[:, None] == key_N[None]
        if matches is not None and row_ids.run_N2 is not None:
            is_masked_BN = matches.mask(is_masked_BN, row_ids.run_N2, key_ids.text_NT[None, :, -1])
    return jnp.where(is_masked_BN, LOWEST, logits_BN), is_own_BN


def _matmul(a: Array, b: Array) -> Array:
    # Full precision: TPUs and GPUs would otherwise round the inputs to bfloat16 or tf32.
    return jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)


def ring_or_gather(
    local_keys: Any, rows: Any, compare: Callable[[Any, Any], tuple[Any, Any]],
    *, merge: Callable[[Any, Any], Any], reduce: Callable[[Any], Any], mesh: Mesh, gather: Gather,
) -> tuple[Any, Any]:  # fmt: skip
    """Compares the rows of every device with the keys of all; runs within `shard_map`.

    Args:
      local_keys: this device's keys and what belongs to them.
      rows: running sums of this device's rows.
      compare: (block of keys, rows) → (rows, sums of that block over these rows).
      merge: adds up two sums of the same block.
      reduce: sums of all keys over this device's rows → sums of this device's keys over all rows.
      mesh: rows and keys are divided over all its axes.
      gather: `all_gather` or `ring`.
    Returns: (rows, sums of this device's keys over the rows of all devices).
    """
    axes, size = mesh.axis_names, mesh.size
    if size == 1:
        return compare(local_keys, rows)
    if gather == "all_gather":
        rows, keys = compare(jax.lax.all_gather(local_keys, axes, tiled=True), rows)
        return rows, reduce(keys)

    def send(x: Any) -> Any:
        return jax.lax.ppermute(x, axes, [(i, (i + 1) % size) for i in range(size)])

    # A block is sent on while it is compared. Its sums follow one step later, so that this transfer
    # too overlaps with computing.
    def step(_: Any, carry: tuple[Any, Any, Any]) -> tuple[Any, Any, Any]:
        block, rows, keys = carry
        following, before = send(block), send(keys)
        rows, found = compare(block, rows)
        return following, rows, merge(before, found)

    rows, keys = compare(local_keys, rows)
    block, rows, keys = jax.lax.fori_loop(0, size - 2, step, (send(local_keys), rows, keys))
    rows, found = compare(block, rows)
    return rows, send(merge(send(keys), found))


def varying(tree: _T, axes: tuple[str, ...]) -> _T:
    """The same arrays, as ones that may differ between devices: loops must carry one type."""
    return jax.tree.map(lambda x: jax.lax.pcast(x, axes, to="varying"), tree)


def own_part(x_N: Float32[Array, "N"], axes: tuple[str, ...]) -> Float32[Array, "M"]:
    """This device's entries of an array that all devices hold whole."""
    length = len(x_N) // jax.lax.axis_size(axes)
    return Part(jax.lax.axis_index(axes) * length, length).of(x_N)


class Part(NamedTuple):
    """A run of entries on the first axis of arrays."""

    start: Any
    """First entry, an int or a traced int32."""
    length: int

    def of(self, tree: _T) -> _T:
        """These entries of each array of a pytree."""
        return jax.tree.map(
            lambda x: jax.lax.dynamic_slice_in_dim(x, self.start, self.length), tree
        )

    def put(self, tree: _T, part: _T) -> _T:
        """The pytree with these entries replaced by `part`."""
        return jax.tree.map(
            lambda x, y: jax.lax.dynamic_update_slice_in_dim(x, y, self.start, 0), tree, part
        )


def tile_shape(rows: int, keys: int, tile_bytes: int) -> tuple[int, int]:
    """Rows and keys of a tile of float32 logits.

    As near to a square as the matrix allows, since the traffic of a tile goes with its edges and
    its use with its area. Tiles are equal but for the last ones, and their edges are multiples of
    128 (the width of a TPU's registers) where they are longer.

    Args:
      rows: of the matrix, above 0.
      keys: of the matrix, above 0.
      tile_bytes: most memory of a tile.
    Returns: (rows, keys), at least 1 and at most the matrix.
    """
    area = max(tile_bytes // 4, 1)
    edge = math.isqrt(area)
    if rows <= edge:
        return rows, _even_part(keys, max(area // rows, 1))
    if keys <= edge:
        return _even_part(rows, max(area // keys, 1)), keys
    return _even_part(rows, edge), _even_part(keys, edge)


def _even_part(size: int, most: int) -> int:
    """The longest of the fewest equal parts of `size` of which none is longer than `most`."""
    if size <= most:
        return size
    align = 128 if most >= 128 else 1
    parts = -(-size // (most // align * align))
    return -(-size // (parts * align)) * align


def walk_tiles(
    rows: int, keys: int, tile_bytes: int, tile: Callable[[Part, Part, _T], _T], carry: _T
) -> _T:
    """Calls `tile` for every tile of a matrix, once each.

    Args:
      rows: of the matrix.
      keys: of the matrix.
      tile_bytes: as in `tile_shape`.
      tile: (its rows, its keys, carry) → carry, of the same shapes and dtypes.
      carry: what the first tile is given.
    Returns: what the last tile gave.
    """
    tile_rows, tile_keys = tile_shape(rows, keys, tile_bytes)
    return _each_part(
        rows, tile_rows,
        lambda row, carry: _each_part(keys, tile_keys, lambda key, c: tile(row, key, c), carry),
        carry,
    )  # fmt: skip


def _each_part(size: int, length: int, body: Callable[[Part, _T], _T], carry: _T) -> _T:
    whole, rest = divmod(size, length)
    carry = jax.lax.fori_loop(0, whole, lambda i, c: body(Part(i * length, length), c), carry)
    return body(Part(whole * length, rest), carry) if rest else carry
