"""The device mesh and how arrays lie on it."""

from collections.abc import Sequence

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jina_jax.config import RunConfig
from jina_jax.errors import UserError, multiples_near

DATA = "data"


def make_mesh(num_devices: int | None = None, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A data-parallel mesh over the first `num_devices` devices, or over all.

    Args:
      num_devices: how many; all by default.
      devices: those to choose from; they need not be attached. This machine's by default.
    Raises: UserError when there are fewer devices.
    """
    devices = jax.devices() if devices is None else devices
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


def check_divides(config: RunConfig, mesh: Mesh) -> None:
    """Every device must get the same number of rows and of pairs, also of a chunk's.

    Raises: UserError naming the nearest sizes that divide.
    """
    sizes = {
        "feed.global_batch_size": config.feed.global_batch_size,
        "feed.rows_multiple": config.feed.rows_multiple,
        "train.grad_cache_rows": config.train.grad_cache_rows,
    }
    for name, value in sizes.items():
        if value % mesh.size:
            raise UserError(
                f"{name}={value} does not divide by {mesh.size} devices; "
                f"use {multiples_near(value, mesh.size)}"
            )
