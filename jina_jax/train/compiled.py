"""The train step, compiled for each shape of batch that comes, if it fits the devices."""

from typing import Any

import jax
from jax.sharding import Mesh

from jina_jax.checkpoint.state import TrainState
from jina_jax.config import RunConfig
from jina_jax.devices.mesh import local_memory_bytes
from jina_jax.devices.out_of_memory import advice
from jina_jax.errors import OutOfMemory
from jina_jax.feed.batch import PackedBatch
from jina_jax.train.step import Metrics, make_train_step

_GIB = 2**30


class CompiledStep:
    """`make_train_step`, which says so where a step does not fit, before it runs."""

    def __init__(self, config: RunConfig, mesh: Mesh):
        self._config, self._mesh = config, mesh
        self._step: Any = make_train_step(config, mesh)
        self._compiled: dict[tuple[tuple[int, ...], ...], Any] = {}

    def knows(self, batch: PackedBatch) -> bool:
        """Whether the step is compiled for batches of this shape."""
        return _shape(batch) in self._compiled

    def compile(self, state: TrainState, batch: PackedBatch) -> None:
        """Compiles the step for the shape of a batch.

        Raises: OutOfMemory with what to change, when it doesn't fit.
        """
        try:
            compiled = self._step.lower(state, batch).compile()
        except jax.errors.JaxRuntimeError as error:
            raise as_out_of_memory(error, self._config, self._mesh) from error
        memory = compiled.memory_analysis()
        if memory is not None:
            needed = (
                memory.argument_size_in_bytes + memory.temp_size_in_bytes
                + memory.output_size_in_bytes - memory.alias_size_in_bytes
            )  # fmt: skip
            available = local_memory_bytes(self._mesh.local_devices)
            if needed > available:
                raise OutOfMemory(
                    f"a step of {len(batch.ids_RL)} rows of {batch.ids_RL.shape[1]} tokens needs "
                    f"{needed / _GIB:,.2f} GiB a device, and there are {available / _GIB:,.2f}; "
                    f"{advice(self._config, self._mesh.size)}"
                )
        self._compiled[_shape(batch)] = compiled

    def __call__(self, state: TrainState, batch: PackedBatch) -> tuple[TrainState, Metrics]:
        """Runs a step, which was compiled before; it reuses the memory of the state."""
        found: tuple[TrainState, Metrics] = self._compiled[_shape(batch)](state, batch)
        return found


def _shape(batch: PackedBatch) -> tuple[tuple[int, ...], ...]:
    return tuple(array.shape for array in batch)


def as_out_of_memory(
    error: jax.errors.JaxRuntimeError, config: RunConfig, mesh: Mesh
) -> OutOfMemory | jax.errors.JaxRuntimeError:
    """The error with what to change, where it is one of memory; else as it is."""
    if "RESOURCE_EXHAUSTED" not in str(error):
        return error
    what = str(error).splitlines()[0]
    return OutOfMemory(f"a step does not fit the devices ({what}); {advice(config, mesh.size)}")
