"""Tiles of a matrix of rows and keys, and how the keys of all devices meet the rows of each."""

import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, TypeVar

import jax
from jax.sharding import Mesh
from jaxtyping import Array, Float32

_T = TypeVar("_T")

Gather = Literal["all_gather", "ring"]
"""`all_gather` brings all keys to every device; `ring` sends blocks of them around, so that a
device holds two blocks at a time."""


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
