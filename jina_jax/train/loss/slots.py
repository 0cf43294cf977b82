"""Brings the embeddings of each pair together from the slots of packed rows on all devices."""

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float32, Int32

from jina_jax.train.loss.log_sums import LossSharding, Part


def take_slots(
    z_ND: Float32[Array, "N D"], slot_BT: Int32[Array, "B T"], sharding: LossSharding
) -> Float32[Array, "B T D"]:
    """`z_ND[slot_BT]`, divided over all devices by pairs, with zeros for missing texts.

    Texts travel, and their gradients back, but no slots without one: each device puts its texts
    into their places among those of all pairs, zeros into the others, and these are added.

    Args:
      z_ND: a vector per slot; N divides by the devices.
      slot_BT: which slot holds each text, in 0..N-1, or -1; B divides by the devices.
      sharding: `all_gather` adds the texts of all pairs at once; in a `ring`, those of one device's
        pairs at a time go around, so that no device holds all.
    Returns: [B, T, D].
    """
    axes, size = sharding.mesh.axis_names, sharding.mesh.size
    pairs = PartitionSpec(axes)

    def local(z_MD: Array, slot_BT: Array) -> Array:
        device = jax.lax.axis_index(axes)

        def own(slot_bT: Array) -> Array:
            offset_bT = slot_bT - device * len(z_MD)
            is_here_bT = (offset_bT >= 0) & (offset_bT < len(z_MD))
            found_bTD = z_MD[jnp.clip(offset_bT, 0, len(z_MD) - 1)]
            return jnp.where(is_here_bT[..., None], found_bTD, 0)

        if sharding.gather == "all_gather":
            return jax.lax.psum_scatter(own(slot_BT), axes, tiled=True)
        length = len(slot_BT) // size

        def of_goal(number: int | Array) -> Array:
            """What this device has for the device whose pairs are here at that time."""
            goal = (device - 1 - number) % size
            return own(Part(goal * length, length).of(slot_BT))

        def step(z_bTD: Array, number: Array) -> tuple[Array, None]:
            sent = jax.lax.ppermute(z_bTD, axes, [(i, (i + 1) % size) for i in range(size)])
            return sent + of_goal(number), None

        return jax.lax.scan(step, of_goal(0), jnp.arange(1, size))[0]

    return jax.shard_map(
        local, mesh=sharding.mesh, in_specs=(pairs, PartitionSpec()), out_specs=pairs
    )(z_ND, slot_BT)
