"""When a run saves its state, and how it tries again when a save fails."""

import time
from collections.abc import Callable
from typing import Any

import jax

from jina_jax.checkpoint.checkpoints import Checkpoints
from jina_jax.checkpoint.state import TrainState
from jina_jax.config import RunConfig
from jina_jax.errors import SaveFailed
from jina_jax.system.terminal import say

ATTEMPTS = 5
"""Saves in a row that may fail before the run ends."""


class Saves:
    """Saves every `checkpoint_every_steps`, and tries again what could not be saved.

    The run goes on while a save is written. One that fails is tried again with the state of a
    later step: after `save_retry_s` seconds, or, with several processes, when the next one is due.
    """

    def __init__(
        self, config: RunConfig, checkpoints: Checkpoints, metadata: Callable[[], dict[str, Any]]
    ):
        """Args: config of the run; where to save; returns the metadata of a checkpoint."""
        self._every, self._pause_s = config.train.checkpoint_every_steps, config.faults.save_retry_s
        self._checkpoints, self._metadata = checkpoints, metadata
        self._in_a_row = 0
        self._retry_at: float | None = None
        self.failures = 0
        """Saves of this process that failed."""

    def after(self, state: TrainState, step: int, *, is_last: bool) -> None:
        """Saves a state where it is due after `step` steps; the last one until it is done.

        Raises: SaveFailed when `ATTEMPTS` in a row have failed.
        """
        self._look()
        is_retry = self._retry_at is not None and time.monotonic() >= self._retry_at
        if is_last:
            self._finish(state)
        elif step % self._every == 0 or is_retry:
            self._start(state)

    def _look(self) -> None:
        """Notices a failure as soon as it is known, where no other process must be asked."""
        if jax.process_count() == 1 and self._checkpoints.failure and self._retry_at is None:
            self._count(None)

    def _start(self, state: TrainState) -> None:
        """Starts to save a state; the one before has ended then."""
        try:
            if self._checkpoints.wait():
                self._in_a_row = 0
        except SaveFailed as error:
            if self._retry_at is None:
                self._count(error)
        self._retry_at = None
        self._checkpoints.save(state, self._metadata())

    def _finish(self, state: TrainState) -> None:
        """Saves a state and waits until that is done, trying again for a while."""
        while True:
            self._start(state)
            try:
                self._checkpoints.wait()
                return
            except SaveFailed as error:
                self._count(error)
                time.sleep(self._pause_s)

    def _count(self, error: SaveFailed | None) -> None:
        self.failures += 1
        self._in_a_row += 1
        if self._in_a_row >= ATTEMPTS:
            raise error or self._checkpoints.failed()
        self._retry_at = time.monotonic() + self._pause_s
        say(f"the save is tried again ({self._in_a_row} of {ATTEMPTS} in a row have failed)")
