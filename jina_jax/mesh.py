"""The device mesh and how arrays lie on it."""

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jina_jax.config import FeedConfig
from jina_jax.errors import UserError, multiples_near

DATA = "data"


def make_mesh(num_devices: int | None = None) -> Mesh:
    """A data-parallel mesh over the first `num_devices` devices, or over all.

    Raises: UserError when there are fewer devices.
    """
    devices = jax.devices()
    count = len(devices) if num_devices is None else num_devices
    if not 0 < count <= len(devices):
        raise UserError(f"train.devices={count}, but this machine has {len(devices)} devices")
    return jax.make_mesh((count,), (DATA,), axis_types=(AxisType.Auto,), devices=devices[:count])


def replicated(mesh: Mesh) -> NamedSharding:
    """The same values on every device."""
    return NamedSharding(mesh, PartitionSpec())


def split_first_axis(mesh: Mesh) -> NamedSharding:
    """Rows of a batch divided over the devices."""
    return NamedSharding(mesh, PartitionSpec(DATA))


def check_divides(feed: FeedConfig, mesh: Mesh) -> None:
    """Every device must get the same number of rows and of pairs.

    Raises: UserError naming the nearest sizes that divide.
    """
    for name in ("global_batch_size", "rows_multiple"):
        value = getattr(feed, name)
        if value % mesh.size:
            raise UserError(
                f"feed.{name}={value} does not divide by {mesh.size} devices; "
                f"use {multiples_near(value, mesh.size)}"
            )
