"""How a run is asked to stop: by SIGINT or SIGTERM, between two steps, on all processes at once."""

import os
import signal
from types import FrameType

import jax
from jax.experimental import multihost_utils


class StopLatch:
    """Remembers that a signal came, so that the loop stops between steps; SIGINT twice kills.

    With several processes, a signal to one of them stops all after the same step. JAX handles
    SIGTERM then and agrees on the step; SIGINT is passed on to it.
    """

    _signal: int | None = None

    def __enter__(self) -> "StopLatch":
        self._is_alone = jax.process_count() == 1
        numbers = (signal.SIGINT, signal.SIGTERM) if self._is_alone else (signal.SIGINT,)
        self._before = {number: signal.signal(number, self._catch) for number in numbers}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def requested(self, step: int) -> int | None:
        """The signal, if the run is to stop after `step`; to be asked once for every step."""
        if not self._is_alone and multihost_utils.reached_preemption_sync_point(step):
            return signal.SIGTERM
        return self._signal if self._is_alone else None

    def _catch(self, number: int, _frame: FrameType | None) -> None:
        if self._signal is not None:
            raise KeyboardInterrupt
        self._signal = number
        if not self._is_alone:
            os.kill(os.getpid(), signal.SIGTERM)
