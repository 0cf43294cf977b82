"""Several processes that work as one: how they start, agree, tell and watch each other.

Every process runs the identical command. The first alone writes metrics, run files and results, and
all write their parts of a checkpoint.
"""

import hashlib
import itertools
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import jax
import numpy as np
from jax._src import distributed as jax_distributed  # No public name leads to the client.
from jax.experimental import multihost_utils

from jina_jax.config import DistributedConfig
from jina_jax.errors import ExitCode, Interrupted, RunFailed, UserError
from jina_jax.system.processes import end_at_once
from jina_jax.system.terminal import say

CLUSTER = "auto"
"""Asks the cluster (Cloud TPU, GKE, SLURM, Open MPI) where the processes are."""


def start(config: DistributedConfig, heartbeat_s: float) -> None:
    """Joins the processes of a run, before JAX looks for its devices.

    Args:
      config: where they are.
      heartbeat_s: seconds after which `HostWatch` takes a process for lost.
    Raises: UserError when the others do not come in time, or this is one host of a TPU slice and
      the configuration says nothing of the others.
    """
    hosts = [h for h in os.environ.get("TPU_WORKER_HOSTNAMES", "").split(",") if h]
    if not config.coordinator:
        if len(hosts) > 1:
            raise UserError(
                f"this is one of {len(hosts)} hosts of a TPU slice; run the same command on each, "
                f"with --distributed.coordinator {CLUSTER}"
            )
        return
    if jax.distributed.is_initialized():
        return
    given: dict[str, object] = {}
    if config.coordinator != CLUSTER:
        given = {
            "coordinator_address": config.coordinator,
            "num_processes": config.processes,
            "process_id": config.process_id,
        }
    who = f"process {config.process_id} of {config.processes}" if given else "this process"
    text = (
        f"{who} could not join the others at distributed.coordinator={config.coordinator} within "
        f"{config.timeout_s} s; check that every process runs this command with a "
        f"--distributed.process-id of its own, that all reach the coordinator's port, and that no "
        f"earlier run still holds it"
    )
    # When JAX's own time is over it aborts the process with a stack trace, so ours is over first.
    timer = threading.Timer(config.timeout_s, _give_up, (text,))
    timer.daemon = True
    timer.start()
    try:
        jax.distributed.initialize(
            **given,  # type: ignore[arg-type]
            initialization_timeout=config.timeout_s + 60,
            # `HostWatch` is first, and says who is lost.
            heartbeat_timeout_seconds=max(10, round(3 * heartbeat_s)),
        )
    except (RuntimeError, ValueError) as error:
        raise UserError(
            f"{who} could not start with distributed.coordinator={config.coordinator}: {error}"
        ) from error
    finally:
        timer.cancel()


def _give_up(text: str) -> None:
    say(f"jina-jax: {text}")
    os._exit(ExitCode.USER_ERROR)


def is_first() -> bool:
    """Whether this process is the one that writes files of which a run has one."""
    return jax.process_index() == 0


def check_agreement(
    text: str,
    what: str = "another configuration, other data or another checkpoint",
    remedy: str = "give every process the same command and folders",
) -> None:
    """All processes must have been given the same `text`, such as a configuration.

    Args:
      text: of this process.
      what: they have where their text is another.
      remedy: for them.
    Raises: UserError on every process when they have not.
    """
    if jax.process_count() == 1:
        return
    digest = np.frombuffer(hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest(), np.uint8)
    of_all = next(gathered(digest[None]))[:, 0]
    if differing := [i for i, other in enumerate(of_all) if (other != of_all[0]).any()]:
        who = ", ".join(map(str, differing))
        raise UserError(f"processes {who} have {what} than process 0: {remedy}")


_GATHERED_BYTES = 64 << 20


def gathered(x_NX: np.ndarray) -> Iterator[np.ndarray]:
    """What each process has of an array, in all of them; all must come here.

    Args:
      x_NX: of this process; of 32 or fewer bits, and of the same shape and dtype in all.
    Returns: an iterator over [P, n, ...], P processes: rows of `x_NX` in order, at most 64 MiB at a
      time where a row is not more.
    """
    wait_for_all()
    count = jax.process_count()
    rows = max(1, _GATHERED_BYTES // max(1, count * x_NX[:1].nbytes))
    for first in range(0, len(x_NX), rows):
        yield np.asarray(multihost_utils.process_allgather(x_NX[first : first + rows])).reshape(
            count, -1, *x_NX.shape[1:]
        )


_PROBLEM_BYTES = 2048


def share_problem(problem: str) -> None:
    """Ends all processes where one has a problem; all must come here.

    Args:
      problem: of this process, empty for none.
    Raises: UserError in every process: with its own problem, or else the first of the others'.
    """
    others = _problem_of_others(problem)
    if problem or others:
        raise UserError(problem or others)


@contextmanager
def shared_problems() -> Iterator[None]:
    """Ends all processes where what the block does fails in one; all must come here.

    Raises: in every process the error of its own, or a UserError with that of another.
    """
    own: UserError | RunFailed | OSError | None = None
    try:
        yield
    except (UserError, RunFailed, OSError) as error:
        own = error
    others = _problem_of_others("" if own is None else str(own) or repr(own))
    if own is not None:
        raise own
    if others:
        raise UserError(others)


def _problem_of_others(own: str) -> str:
    """Tells the others of a problem; gives the first that any has, empty for none."""
    if jax.process_count() == 1:
        return ""
    words = np.zeros((1, _PROBLEM_BYTES), np.uint8)
    data = np.frombuffer(own.encode()[:_PROBLEM_BYTES], np.uint8)
    words[0, : len(data)] = data
    for number, row in enumerate(next(gathered(words))[:, 0]):
        if text := row.tobytes().rstrip(b"\0").decode(errors="replace"):
            return f"process {number}: {text}"
    return ""


def from_first(make: Callable[[], Any]) -> Any:
    """What the first process makes, in all of them; the others wait. All must come here.

    Args:
      make: gives a JSON value; called in the first process alone.
    Raises: what `shared_problems` raises.
    """
    if jax.process_count() == 1:
        return make()
    data = np.zeros(0, np.uint8)
    with shared_problems():
        if is_first():
            data = np.frombuffer(json.dumps(make()).encode(), np.uint8)
    size = int(next(gathered(np.array([len(data)], np.int32)))[0, 0])
    padded = data if is_first() else np.zeros(size, np.uint8)
    return json.loads(np.asarray(multihost_utils.broadcast_one_to_all(padded)).tobytes())


def gather_at_first(key: str, text: str) -> list[str]:
    """Gives the first process the text of each, without the devices: other threads may use them.

    Args:
      key: of this gathering, the same in all processes and never used twice.
      text: of this process.
    Returns: in the first process the texts in the processes' order; nothing in others.
    """
    if jax.process_count() == 1:
        return [text]
    client: Any = jax_distributed.global_state.client
    if not is_first():
        client.key_value_set(f"jina_jax/gather/{key}/{jax.process_index()}", f"={text}")
        return []
    texts = [text]
    for rank in range(1, jax.process_count()):
        name = f"jina_jax/gather/{key}/{rank}"
        texts.append(client.blocking_key_value_get(name, _A_WEEK_MS)[1:])
        client.key_value_delete(name)
    return texts


_waits = itertools.count()


def wait_for_all() -> None:
    """Waits until all processes of a run are here; each must come here equally often.

    The wait has no end of its own: `HostWatch` and the caller's `Watchdog` have.
    """
    if jax.process_count() > 1:
        client: Any = jax_distributed.global_state.client
        client.wait_at_barrier(f"jina_jax/wait/{next(_waits)}", _A_WEEK_MS)


_A_WEEK_MS = 7 * 24 * 3600 * 1000


@contextmanager
def joined(config: DistributedConfig, heartbeat_s: float) -> Iterator[None]:
    """Joins the processes of a command, and watches that none is lost while the block runs.

    Args:
      config: where they are; nothing is joined or watched where it names none.
      heartbeat_s: seconds without a sign of life after which a process counts as lost.
    Raises: UserError as `start` does.
    """
    start(config, heartbeat_s)
    with HostWatch(heartbeat_s) as hosts:
        try:
            yield
        except (jax.errors.JaxRuntimeError, ValueError) as error:
            # ValueError is what Gloo raises when a connection is cut.
            hosts.explain(error)
            raise


_KEY = "jina_jax/alive"
_LEFT = "left"


class HostWatch:
    """Notices that another process of a run is gone or hangs, and says which; does nothing alone.

    Every process reports to JAX's coordination service that it lives, and checks the others. JAX
    does that too, but ends a process with a C++ stack and the number of a task.
    """

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
        self._is_lost = False

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
            # An error of this process alone leaves the others waiting: for them it is lost.
            of_all = (UserError, RunFailed, Interrupted)
            self._is_lost = kind is not None and not issubclass(kind, of_all)
            self._closed.set()
            self._threads[0].join(self._timeout_s)

    def explain(self, error: BaseException) -> None:
        """Waits to see whether a process is lost, after an error that its end may have caused.

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
            if self._is_lost:
                return
            number += 1
            word = _LEFT if is_last else str(number)
            try:
                client.key_value_set(f"{_KEY}/{self._rank}", f"{word} {self._me}", True)
                alive = dict(client.key_value_dir_get(_KEY))
            except jax.errors.JaxRuntimeError:
                if is_last:
                    return
                continue
            now = self._answered = time.monotonic()
            for key, value in alive.items():
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
            f"on all hosts again, and it goes on from what is saved",
        )
