"""Brings the embeddings of each pair together from the slots of packed rows."""

import math

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, Mesh, PartitionSpec
from jaxtyping import Array, Float32, Int32

_PARTS, _WITHIN = "parts", "within"


def take_slots(
    z_ND: Float32[Array, "N D"], slot_BT: Int32[Array, "B T"], groups: int, mesh: Mesh
) -> Float32[Array, "B T D"]:
    """The vector in each text's slot, divided over all devices by pairs, with zeros where no text.

    Groups stay among their own devices: where these are whole groups' nothing travels. Where
    several devices share groups, each puts its texts into their places among those of these
    groups, zeros into the others, and these are added.

    Args:
      z_ND: a vector per slot, group by group; N divides by the devices.
      slot_BT: which slot of its group holds each text, or -1; B divides by the devices.
      groups: that both are of; divides N and B.
      mesh: of the devices.
    Returns: [B, T, D].
    """
    parts = math.gcd(groups, mesh.size)
    divided = Mesh(
        mesh.devices.reshape(parts, -1), (_PARTS, _WITHIN), axis_types=(AxisType.Auto,) * 2
    )
    sharers, groups_of_part = mesh.size // parts, groups // parts
    slots_of_group = len(z_ND) // groups

    def local(z_MD: Array, slot_bT: Array) -> Array:
        group_b1 = jnp.arange(len(slot_bT))[:, None] // (len(slot_bT) // groups_of_part)
        first = jax.lax.axis_index(_WITHIN) * len(z_MD)
        offset_bT = slot_bT + group_b1 * slots_of_group - first
        is_here_bT = (slot_bT >= 0) & (offset_bT >= 0) & (offset_bT < len(z_MD))
        found_bTD = z_MD[jnp.clip(offset_bT, 0, len(z_MD) - 1)]
        found_bTD = jnp.where(is_here_bT[..., None], found_bTD, 0)
        return found_bTD if sharers == 1 else jax.lax.psum_scatter(found_bTD, _WITHIN, tiled=True)

    everyone = PartitionSpec((_PARTS, _WITHIN))
    return jax.shard_map(
        local, mesh=divided, in_specs=(everyone, PartitionSpec(_PARTS)), out_specs=everyone
    )(z_ND, slot_BT)
