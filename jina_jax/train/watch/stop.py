"""How a run ends early: it is asked to stop by a signal, or it hangs."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from types import FrameType

import jax
from jax.experimental import multihost_utils

from jina_jax.config import RunConfig
from jina_jax.errors import ExitCode
from jina_jax.system.processes import end_at_once


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


class Watchdog:
    """Ends a run that stands still, instead of letting it hang for days.

    It watches the training thread from another one. When a limit is over, the process ends with the
    stacks of all threads on standard error and an exit code of its own.
    """

    def __init__(self, config: RunConfig) -> None:
        self._config = config
        self._deadline: tuple[float, ExitCode, str] | None = None
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def __enter__(self) -> "Watchdog":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closed.set()
        self._thread.join()

    def batch(self, *, is_first: bool) -> AbstractContextManager[None]:
        """Limits the wait for a batch; workers start before the first."""
        timeout_s = self._config.faults.batch_timeout_s * (4 if is_first else 1)
        return self._limit(
            timeout_s, ExitCode.DATA_STALLED,
            f"no batch came within {timeout_s:g} s (faults.batch_timeout_s): "
            f"{'one of the workers' if self._config.feed.workers else 'reading'} hangs, or the "
            f"disk below {self._config.data_path} does. The same command goes on from the newest "
            f"checkpoint",
        )  # fmt: skip

    def step(self, what: str, times: int = 4) -> AbstractContextManager[None]:
        """Limits a step, or what belongs to it and may take several times as long."""
        timeout_s = self._config.faults.step_timeout_s * times
        return self._limit(
            timeout_s, ExitCode.STEP_STALLED,
            f"{what} did not end within {timeout_s:g} s ({f'{times} · ' if times > 1 else ''}"
            f"faults.step_timeout_s): a device, a disk or another host hangs. The same command "
            f"goes on from the newest checkpoint",
        )  # fmt: skip

    @contextmanager
    def _limit(self, timeout_s: float, code: ExitCode, message: str) -> Iterator[None]:
        """Limits what is done inside; a timeout of 0 sets no limit."""
        # The thread is not woken up: it looks every second, which is near enough to minutes.
        self._deadline = (time.monotonic() + timeout_s, code, message) if timeout_s else None
        try:
            yield
        finally:
            self._deadline = None

    def _watch(self) -> None:
        while not self._closed.wait(1.0):
            deadline = self._deadline
            if deadline is not None and time.monotonic() > deadline[0]:
                end_at_once(deadline[1], f"{deadline[2]} (process {os.getpid()})")
