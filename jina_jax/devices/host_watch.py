"""Notices that another process of a run is gone or hangs, and says which.

Every process tells the coordination service of JAX that it lives, and looks whether the others do.
JAX does that too, but ends a process with a stack of C++ and the number of a task.
"""

import socket
import threading
import time
from typing import Any

import jax
from jax._src import distributed as jax_distributed  # No public name leads to the client.

from jina_jax.errors import ExitCode
from jina_jax.system.processes import end_at_once
from jina_jax.system.terminal import say

_KEY = "jina_jax/alive"
_LEFT = "left"


class HostWatch:
    """A context in which the processes of a run watch each other; with one it does nothing."""

    def __init__(self, timeout_s: float):
        """Args: seconds without a sign of life after which a process counts as lost."""
        self._timeout_s = timeout_s
        self._closed = threading.Event()
        self._count = jax.process_count()
        self._rank = jax.process_index()
        self._me = f"{socket.gethostname()} {threading.get_native_id()}"
        self._seen: dict[int, tuple[str, float]] = {}
        self._names: dict[int, str] = {}
        self._answered = time.monotonic()
        self._threads: list[threading.Thread] = []

    def __enter__(self) -> "HostWatch":
        if self._count > 1:
            for target in (self._beat, self._judge):
                thread = threading.Thread(
                    target=target, name=f"hosts{target.__name__}", daemon=True
                )
                thread.start()
                self._threads.append(thread)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._count > 1:
            self._closed.set()
            self._threads[0].join(self._timeout_s)

    def explain(self, error: BaseException) -> None:
        """Waits, after an error that another process's end may have caused, whether one is lost.

        Returns only when all others live: then the error has another cause.
        """
        if self._count > 1:
            say(f"jina-jax: {str(error).splitlines()[0][:300]}; looking which process is lost")
            time.sleep(1.5 * self._timeout_s)

    def _beat(self) -> None:
        client: Any = jax_distributed.global_state.client
        pause_s, number = min(10.0, self._timeout_s / 5), 0
        while True:
            is_last = self._closed.wait(pause_s if number else 0)
            number += 1
            word = _LEFT if is_last else str(number)
            try:
                client.key_value_set(f"{_KEY}/{self._rank}", f"{word} {self._me}", True)
                told = dict(client.key_value_dir_get(_KEY))
            except jax.errors.JaxRuntimeError:
                if is_last:
                    return
                continue
            now = self._answered = time.monotonic()
            for key, value in told.items():
                rank, (word, _, name) = int(key.rpartition("/")[2]), value.partition(" ")
                self._names[rank] = name.partition(" ")[0]
                if self._seen.get(rank, ("", 0.0))[0] != word:
                    self._seen[rank] = word, now
            if is_last:
                return

    def _judge(self) -> None:
        began = time.monotonic()
        while not self._closed.wait(min(1.0, self._timeout_s / 10)):
            now = time.monotonic()
            if now - self._answered > self._timeout_s:
                self._lost([0], "the coordinator on it does not answer")
            silent = [
                rank
                for rank in range(self._count)
                if rank != self._rank
                and self._seen.get(rank, ("", began))[0] != _LEFT
                and now - self._seen.get(rank, ("", began))[1] > self._timeout_s
            ]
            # While this process itself stood still, it saw nobody.
            if silent and now - self._answered < self._timeout_s / 2:
                self._lost(silent, "no sign of life")

    def _lost(self, ranks: list[int], why: str) -> None:
        if self._closed.is_set():
            return
        who = ", ".join(f"{r} (host {self._names.get(r, 'unknown')})" for r in ranks)
        end_at_once(
            ExitCode.HOST_LOST,
            f"process {who} of {self._count} is gone or hangs: {why} for {self._timeout_s:g} s "
            f"(faults.heartbeat_s). This process, {self._rank}, stops; start the same command "
            f"on all hosts again, and it goes on from the newest checkpoint",
        )
