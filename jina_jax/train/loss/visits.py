"""How every device of a mesh visits all keys of a batch with its rows, in a compiled function."""

from collections.abc import Callable
from typing import Any, Literal, TypeVar

import jax
from jax.sharding import Mesh
from jaxtyping import Array, Float32

from jina_jax.train.loss.tiles import Part

_T = TypeVar("_T")

Gather = Literal["all_gather", "ring"]
"""`all_gather` brings all keys to every device; `ring` sends blocks of them around, so that a
device holds two blocks at a time."""


def visit_all_keys(
    own: Any, rows: Any, visit: Callable[[Any, Any], tuple[Any, Any]],
    *, merge: Callable[[Any, Any], Any], reduce: Callable[[Any], Any], mesh: Mesh, gather: Gather,
) -> tuple[Any, Any]:  # fmt: skip
    """Lets every device visit all keys with its rows; called on each device, within `shard_map`.

    Args:
      own: this device's keys and what goes with them.
      rows: what is gathered over the rows of this device.
      visit: (block of keys, rows) → (rows, what is gathered over that block by these rows).
      merge: two of the latter, of the same block, into one.
      reduce: what the rows of this device gathered over all keys → what all devices gathered over
        the keys of this device.
      mesh: rows and keys are divided over all its axes.
      gather: the way that the keys take.
    Returns: (rows, what all devices gathered over the keys of this device).
    """
    axes, size = mesh.axis_names, mesh.size
    if size == 1:
        return visit(own, rows)
    if gather == "all_gather":
        rows, keys = visit(jax.lax.all_gather(own, axes, tiled=True), rows)
        return rows, reduce(keys)

    def send(x: Any) -> Any:
        return jax.lax.ppermute(x, axes, [(i, (i + 1) % size) for i in range(size)])

    # A block goes on while it is being visited. What was gathered over it follows one visit later,
    # so that this transfer, too, has a visit to hide behind.
    def step(_: Any, carry: tuple[Any, Any, Any]) -> tuple[Any, Any, Any]:
        block, rows, keys = carry
        following, before = send(block), send(keys)
        rows, found = visit(block, rows)
        return following, rows, merge(before, found)

    rows, keys = visit(own, rows)
    block, rows, keys = jax.lax.fori_loop(0, size - 2, step, (send(own), rows, keys))
    rows, found = visit(block, rows)
    return rows, send(merge(send(keys), found))


def varying(tree: _T, axes: tuple[str, ...]) -> _T:
    """The same arrays, as ones that may differ between devices: loops must carry one type."""
    return jax.tree.map(lambda x: jax.lax.pcast(x, axes, to="varying"), tree)


def own_part(x_N: Float32[Array, "N"], axes: tuple[str, ...]) -> Float32[Array, "M"]:
    """This device's entries of an array that all devices hold whole."""
    length = len(x_N) // jax.lax.axis_size(axes)
    return Part(jax.lax.axis_index(axes) * length, length).of(x_N)
