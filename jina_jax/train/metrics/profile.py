"""Traces of a few steps for TensorBoard and Perfetto."""

import jax

from jina_jax.config import RunConfig

_WARM_UP_STEPS = 10
"""Steps that compile and fill queues: what is traced comes after them."""


class Profiler:
    """Writes a `jax.profiler` trace of some steps below the run folder."""

    def __init__(self, config: RunConfig, start: int):
        """Plans the trace that a run configures, which starts or resumes at step `start`."""
        self._folder = config.run_path / "profile"
        self._first = start + _WARM_UP_STEPS
        self._end = self._first + config.train.profile_steps
        self._running = False

    def __enter__(self) -> "Profiler":
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()

    def before(self, step: int, previous: object) -> None:
        """Starts or ends the trace where `step` is the first or the one after the last.

        Args:
          step: about to be dispatched.
          previous: arrays of the step before; they are waited for, so that the trace holds whole
            steps.
        """
        if self._first <= step < self._end and not self._running:
            jax.block_until_ready(previous)
            jax.profiler.start_trace(str(self._folder))
            self._running = True
        elif step >= self._end and self._running:
            jax.block_until_ready(previous)
            self._stop()

    def _stop(self) -> None:
        if self._running:
            self._running = False
            jax.profiler.stop_trace()
