"""Gathers the embeddings of each pair from the slots of packed rows on all devices."""

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Float32, Int32

from jina_jax.train.loss.log_sums import LossSharding


def take_slots(
    z_ND: Float32[Array, "N D"], slot_BT: Int32[Array, "B T"], sharding: LossSharding
) -> Float32[Array, "B T D"]:
    """`z_ND[slot_BT]`, divided over all devices by pairs, with zeros for missing texts.

    Args:
      z_ND: a vector per slot; N divides by the devices.
      slot_BT: which slot holds each text, in 0..N-1, or -1; B divides by the devices.
      sharding: `all_gather` brings all slots to every device, `ring` sends blocks of them around.
    Returns: [B, T, D].
    """
    mesh = sharding.mesh
    axes, size = mesh.axis_names, mesh.size
    pairs = PartitionSpec(axes)
    if sharding.gather == "all_gather":
        everywhere = NamedSharding(mesh, PartitionSpec())
        z_BTD = jax.lax.with_sharding_constraint(z_ND, everywhere)[slot_BT]
        z_BTD = jnp.where(slot_BT[..., None] >= 0, z_BTD, 0)
        return jax.lax.with_sharding_constraint(z_BTD, NamedSharding(mesh, pairs))

    def local(block_MD: Array, slot_bT: Array) -> Array:
        slots = len(block_MD)

        def step(carry: tuple[Array, Array], number: Array) -> tuple[tuple[Array, Array], None]:
            block_MD, z_bTD = carry
            following = jax.lax.ppermute(block_MD, axes, [(i, (i + 1) % size) for i in range(size)])
            owner = (jax.lax.axis_index(axes) - number) % size
            offset_bT = slot_bT - owner * slots
            is_here_bT = (offset_bT >= 0) & (offset_bT < slots)
            found_bTD = block_MD[jnp.clip(offset_bT, 0, slots - 1)]
            return (following, jnp.where(is_here_bT[..., None], found_bTD, z_bTD)), None

        empty_bTD = jnp.zeros((*slot_bT.shape, block_MD.shape[1]), block_MD.dtype)
        carry = block_MD, jax.lax.pcast(empty_bTD, axes, to="varying")
        return jax.lax.scan(step, carry, jnp.arange(size))[0][1]

    return jax.shard_map(local, mesh=mesh, in_specs=pairs, out_specs=pairs)(z_ND, slot_BT)
