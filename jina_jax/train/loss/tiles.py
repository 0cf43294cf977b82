"""A matrix cut into tiles, and a walk over them inside a compiled function."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import jax

_T = TypeVar("_T")


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
