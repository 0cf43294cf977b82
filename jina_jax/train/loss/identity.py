"""Which texts of a batch are the same: from hashes, which travel once, to small numbers."""

from collections.abc import Callable
from functools import partial
from typing import TypeVar

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Bool, Int32, UInt32

T = TypeVar("T")


def number_texts(
    identity_BTH: UInt32[Array, "B T 4"], is_text_BT: Bool[Array, "B T"], mesh: Mesh
) -> Int32[Array, "B T"]:
    """Numbers the texts of a batch, on every device those of all.

    Args:
      identity_BTH: 64 bits of the text's hash and 64 of its tokens' hash.
      is_text_BT: where there is a text.
      mesh: whose devices the records are divided over.
    Returns: 0 or more, and equal for two texts whose hashes are equal, or whose tokens are, or both
      of them with a third; -1 where there is no text. Half of a hash tells texts apart but for
      2⁻⁶⁴ a comparison.
    """
    # What isn't there goes with the rest, so that one array travels.
    there_BT1 = is_text_BT.astype(jnp.uint32)[..., None]
    return _of_all(_numbers, jnp.concatenate([identity_BTH, there_BT1], axis=2), mesh)


def number_labels(label_B2: UInt32[Array, "B 2"], mesh: Mesh) -> Int32[Array, "B"]:
    """Numbers labels, on every device those of all: 0 or more, -1 where both words are 0."""
    return _of_all(
        lambda label_B2: jnp.where((label_B2 > 0).any(1), _ranks(label_B2), -1), label_B2, mesh
    )


def on_each(compute: Callable[..., T], *arrays: Array, mesh: Mesh) -> T:
    """What every device computes from whole arrays that all have, without asking another."""
    nothing = PartitionSpec()
    found: T = jax.shard_map(
        compute, mesh=mesh, in_specs=(nothing,) * len(arrays), out_specs=nothing, check_vma=False
    )(*arrays)
    return found


def _of_all(compute: Callable[[Array], Array], x: Array, mesh: Mesh) -> Array:
    """`on_each`, from an array that is divided over the devices, and gathered once."""
    gather = partial(jax.lax.all_gather, axis_name=mesh.axis_names, tiled=True)
    return jax.shard_map(
        lambda x: compute(gather(x)), mesh=mesh, in_specs=PartitionSpec(mesh.axis_names),
        out_specs=PartitionSpec(), check_vma=False,
    )(x)  # fmt: skip


def _numbers(all_BTH: UInt32[Array, "B T 5"]) -> Int32[Array, "B T"]:
    all_NH = all_BTH.reshape(-1, 5)
    text_N, tokens_N = _ranks(all_NH[:, :2]), _ranks(all_NH[:, 2:4])
    size = len(text_N)

    def lowest(number_N: Array, of_N: Array) -> Array:
        return jax.ops.segment_min(number_N, of_N, num_segments=size)[of_N]

    def join(state: tuple[Array, Array]) -> tuple[Array, Array]:
        number_N, _ = state
        joined_N = lowest(lowest(number_N, tokens_N), text_N)
        return joined_N, jnp.any(joined_N != number_N)

    number_N, _ = jax.lax.while_loop(lambda state: state[1], join, (text_N, jnp.array(True)))
    return jnp.where(all_NH[:, 4] > 0, number_N, -1).reshape(all_BTH.shape[:2])


def _ranks(hash_N2: UInt32[Array, "N 2"]) -> Int32[Array, "N"]:
    """Equal numbers in 0..N-1 for equal hashes."""
    order_N = jnp.lexsort((hash_N2[:, 1], hash_N2[:, 0]))
    sorted_N2 = hash_N2[order_N]
    is_new_N = (sorted_N2[1:] != sorted_N2[:-1]).any(1)
    rank_N = jnp.cumsum(jnp.concatenate([jnp.zeros(1, jnp.int32), is_new_N.astype(jnp.int32)]))
    return jnp.zeros(len(hash_N2), jnp.int32).at[order_N].set(rank_N)
