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
    """Watches one thread from another: what it does within a limit ends in time, or the process
    does, with the stacks of all threads on standard error and an exit code of its own.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._limit: tuple[float, ExitCode, str] | None = None
        self._closed = False
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def __enter__(self) -> "Watchdog":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    @contextmanager
    def limit(self, timeout_s: float, code: ExitCode, message: str) -> Iterator[None]:
        """Limits what is done inside.

        Args:
          timeout_s: seconds; 0 sets no limit.
          code: what the process ends with when they are over.
          message: for a person: what did not come, and what to do.
        """
        limit = (time.monotonic() + timeout_s, code, message) if timeout_s else None
        self._set(limit)
        try:
            yield
        finally:
            self._set(None)

    def _set(self, limit: tuple[float, ExitCode, str] | None) -> None:
        # Without a wake-up: the thread looks every second, which is near enough to minutes.
        self._limit = limit

    def _watch(self) -> None:
        while True:
            with self._changed:
                if self._closed or self._changed.wait_for(lambda: self._closed, timeout=1.0):
                    return
            limit = self._limit
            if limit is not None and time.monotonic() > limit[0]:
                end_at_once(limit[1], f"{limit[2]} (process {os.getpid()})")


class Limits:
    """What a run may take how long."""

    def __init__(self, config: RunConfig, watchdog: Watchdog):
        self._config, self._watchdog = config, watchdog

    def batch(self, *, is_first: bool) -> AbstractContextManager[None]:
        """Limits the wait for a batch; workers start before the first."""
        timeout_s = self._config.faults.batch_timeout_s * (4 if is_first else 1)
        return self._watchdog.limit(
            timeout_s, ExitCode.DATA_STALLED,
            f"no batch came within {timeout_s:g} s (faults.batch_timeout_s): "
            f"{'one of the workers' if self._config.feed.workers else 'reading'} hangs, or the "
            f"disk below {self._config.data_path} does. The same command goes on from the newest "
            f"checkpoint",
        )  # fmt: skip

    def compiling(self, step: int) -> AbstractContextManager[None]:
        """Limits the compilation of a step."""
        return self._of_step(f"the compilation of step {step}", 4)

    def step(self, step: int) -> AbstractContextManager[None]:
        """Limits a step."""
        return self._of_step(f"step {step}", 1)

    def saving(self, step: int) -> AbstractContextManager[None]:
        """Limits the wait for the disk."""
        return self._of_step(f"the save after step {step}", 4)

    def evaluation(self, step: int) -> AbstractContextManager[None]:
        """Limits an evaluation, which compiles too."""
        return self._of_step(f"the evaluation after step {step}", 4)

    def _of_step(self, what: str, times: int) -> AbstractContextManager[None]:
        timeout_s = self._config.faults.step_timeout_s * times
        return self._watchdog.limit(
            timeout_s, ExitCode.STEP_STALLED,
            f"{what} did not end within {timeout_s:g} s ({f'{times} · ' if times > 1 else ''}"
            f"faults.step_timeout_s): a device, a disk or another host hangs. The same command "
            f"goes on from the newest checkpoint",
        )  # fmt: skip
