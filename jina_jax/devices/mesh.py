"""The device mesh, and the sharding of batches and parameters.

The mesh has three axes. `data` and `fsdp` divide the rows of a batch; `fsdp` divides each matrix of
the parameters too, which is gathered where it is used; `tensor` divides heads and the inner
dimension of the feed-forward, so that its devices work on the same rows (Shoeybi et al. 2019, arXiv
1909.08053). The results do not depend on the mesh, but for rounding.
"""

import fnmatch
import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jina_jax.config import MeshConfig, ModelConfig, RunConfig
from jina_jax.errors import UserError, multiples_near
from jina_jax.model.encoder import DENSE, family_of, param_name
from jina_jax.model.lora import matrix_of_factor

DATA, FSDP, TENSOR = AXES = ("data", "fsdp", "tensor")
ROWS = (DATA, FSDP)
"""The axes that divide the rows of a batch."""


def make_mesh(
    config: MeshConfig | None = None, devices: Sequence[jax.Device] | None = None
) -> Mesh:
    """A mesh of ('data', 'fsdp', 'tensor') over the first devices that its sizes need, or over all.

    Devices of several TPU slices are laid out so that only `data` crosses from slice to slice.

    Args:
      config: sizes of the axes; -1 for `data` takes what the others leave. All on `data` by
        default.
      devices: those to choose from; they need not be attached. All processes' by default.
    Raises: UserError when the sizes do not fit the devices.
    """
    devices = jax.devices() if devices is None else devices
    shape = _shape(config or MeshConfig(), len(devices))
    count = math.prod(shape)
    if count < len(devices) and len({d.process_index for d in devices}) > 1:
        raise UserError(
            f"mesh.data={shape[0]} · fsdp={shape[1]} · tensor={shape[2]} uses {count} of "
            f"{len(devices)} devices, but each process must use its own; leave mesh.data at -1"
        )
    devices = devices[:count]
    slices = len({getattr(d, "slice_index", 0) for d in devices})
    if slices == 1:
        return jax.make_mesh(shape, AXES, axis_types=(AxisType.Auto,) * 3, devices=devices)
    if shape[0] % slices:
        raise UserError(
            f"mesh.data={shape[0]} does not divide by {slices} slices, which only mesh.data may "
            f"cross; mesh.fsdp · mesh.tensor must divide the {len(devices) // slices} devices of "
            f"a slice"
        )
    within = (shape[0] // slices, *shape[1:])
    grid = mesh_utils.create_hybrid_device_mesh(within, (slices, 1, 1), devices)
    return Mesh(grid, AXES, axis_types=(AxisType.Auto,) * 3)


def _shape(config: MeshConfig, count: int) -> tuple[int, int, int]:
    inner = config.fsdp * config.tensor
    data = config.data if config.data != -1 else count // inner
    if config.data == -1 and (data == 0 or count % inner):
        raise UserError(
            f"mesh.fsdp={config.fsdp} · mesh.tensor={config.tensor} does not divide {count} "
            f"devices; their product must be one of "
            f"{', '.join(str(n) for n in range(1, count + 1) if count % n == 0)}"
        )
    if data * inner > count:
        raise UserError(
            f"mesh.data={data} · fsdp={config.fsdp} · tensor={config.tensor} needs "
            f"{data * inner} devices, and there are {count}; leave mesh.data at -1 to use them all"
        )
    return data, config.fsdp, config.tensor


def all_on_data(mesh: Mesh) -> Mesh:
    """The same devices in the same order, all along `data`."""
    return Mesh(mesh.devices.reshape(-1, 1, 1), AXES, axis_types=(AxisType.Auto,) * 3)


def of_this_process(mesh: Mesh) -> Mesh:
    """The devices of a mesh that are this process's, all along `data`."""
    own = [d for d in mesh.devices.flat if d.process_index == jax.process_index()]
    return Mesh(np.array(own).reshape(-1, 1, 1), AXES, axis_types=(AxisType.Auto,) * 3)


def replicated(mesh: Mesh) -> NamedSharding:
    """The same values on every device."""
    return NamedSharding(mesh, PartitionSpec())


def split_first_axis(mesh: Mesh) -> NamedSharding:
    """Rows of a batch divided over the devices; those of one `tensor` group hold the same."""
    return NamedSharding(mesh, PartitionSpec(ROWS))


def split_records(mesh: Mesh) -> NamedSharding:
    """Records of a batch divided over all devices, whatever the axes of the mesh are for."""
    return NamedSharding(mesh, PartitionSpec(AXES))


def param_shardings(params: Any, mesh: Mesh, model: ModelConfig) -> Any:
    """Sharding of the parameters of an encoder.

    Args:
      params: of `model.encoder.init_params`, as arrays or as shapes.
      mesh: one that `check_divides` has passed.
      model: shape of the encoder, whose family says how a matrix is divided. Vectors, which are
        norms and biases, are everywhere. An adapter is divided as its matrix is.
    Returns: a pytree like `params`.
    Raises: ValueError naming a matrix that no rule divides.
    """
    rules = {**family_of(model).shardings, f"{DENSE}/kernel": PartitionSpec("fsdp", None)}

    def of(path: Any, leaf: Any) -> NamedSharding:
        name = param_name(path)
        matrix, common = matrix_of_factor(name) or (name, None)
        specs = [spec for rule, spec in rules.items() if fnmatch.fnmatchcase(matrix, rule)]
        if leaf.ndim > 1 and not specs:
            raise ValueError(f"no rule of the family says how the matrix {name} is divided")
        spec = specs[0] if specs else PartitionSpec()
        if common is not None:
            spec = PartitionSpec(
                *(axis if side == common else None for side, axis in enumerate(spec))
            )
        return NamedSharding(mesh, spec)

    return jax.tree_util.tree_map_with_path(of, params)


def whole_on_each(tree: Any, mesh: Mesh) -> Any:
    """Arrays as a whole on each of this process's devices of a mesh.

    Where devices of other processes hold parts of them, all processes call it together.
    """
    here = replicated(of_this_process(mesh))

    def one(x: Any) -> jax.Array:
        if not isinstance(x, jax.Array) or x.is_fully_addressable:
            return jax.device_put(x, here)
        everywhere = jax.device_put(x, replicated(mesh))
        parts = [shard.data for shard in everywhere.addressable_shards]
        return jax.make_array_from_single_device_arrays(x.shape, here, parts)

    return jax.tree.map(one, tree)


def local_groups(mesh: Mesh, groups: int) -> tuple[int, ...]:
    """The groups of a batch that devices of this process hold a part of, ascending."""
    count = groups * mesh.size
    found: set[int] = set()
    for sharding in (split_first_axis(mesh), split_records(mesh)):
        for index in sharding.addressable_devices_indices_map((count,)).values():
            assert index is not None
            start, stop, _ = index[0].indices(count)
            found.update(range(start // mesh.size, -(-stop // mesh.size)))
    return tuple(sorted(found))


def put(tree: Any, shardings: Any, *, own: Sequence[int] = (0,), groups: int = 1) -> Any:
    """Arrays of this process onto the mesh of all processes.

    Args:
      tree: of arrays whose first axis is that of some groups, one after another; one without axes
        is the same in every process. Where it is None, nothing is put.
      shardings: a tree that `tree` begins like: a sharding holds for all that is below it.
      own: the groups that the arrays hold, ascending; of `local_groups`. By default they hold all.
      groups: of the whole arrays.
    """
    place = {group: number for number, group in enumerate(own)}

    def one(sharding: NamedSharding, x: Any) -> jax.Array:
        host = np.asarray(x)
        if host.ndim == 0:
            return jax.make_array_from_callback((), sharding, lambda _: host)
        size = len(host) // len(own)
        shape = (size * groups, *host.shape[1:])

        def part(index: tuple[slice, ...] | None) -> np.ndarray:
            assert index is not None
            start, stop, _ = index[0].indices(shape[0])
            first = place[start // max(size, 1)] * size + start % max(size, 1)
            return host[(slice(first, first + stop - start), *index[1:])]

        return jax.make_array_from_callback(shape, sharding, part)

    return jax.tree.map(
        lambda sharding, x: jax.tree.map(partial(one, sharding), x), shardings, tree
    )


def check_divides(config: RunConfig, mesh: Mesh) -> None:
    """Every device must get as many rows, pairs and columns of each matrix, and run what is asked.

    Raises: UserError naming the nearest sizes that divide, or an option that needs other devices.
    """
    asked = config.train.attention
    wanted = {"cudnn": ("gpu", "NVIDIA GPUs"), "pallas": ("tpu", "TPUs")}
    if asked in wanted and mesh.devices.flat[0].platform != wanted[asked][0]:
        raise UserError(
            f"train.attention={asked} needs {wanted[asked][1]}, and the mesh is of "
            f"{mesh.devices.flat[0].device_kind} devices; use train.attention=auto"
        )
    feed = config.feed
    rows = math.prod(mesh.shape[axis] for axis in ROWS)
    sizes = {
        "feed.global_batch_size": (feed.global_batch_size, mesh.size, "devices"),
        "feed.rows_multiple": (feed.rows_multiple, rows, "devices of mesh.data · mesh.fsdp"),
        "train.grad_cache_rows": (
            config.train.grad_cache_rows, rows, "devices of mesh.data · mesh.fsdp",
        ),
    } | {
        f"model.{name}": (getattr(config.model, name), mesh.shape[axis], f"devices of mesh.{axis}")
        for name, axis in family_of(config.model).divided.items()
    }  # fmt: skip
    for name, (value, divisor, of) in sizes.items():
        if value % divisor:
            raise UserError(
                f"{name}={value} does not divide by {divisor} {of}; "
                f"use {multiples_near(value, divisor)}"
            )
    slots = feed.rows_multiple * feed.texts_per_row
    if slots % mesh.size:
        raise UserError(
            f"feed.rows_multiple · feed.texts_per_row = {slots} does not divide by {mesh.size} "
            f"devices; use {multiples_near(slots, mesh.size)}"
        )
