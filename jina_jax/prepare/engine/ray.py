"""Preparation on a Ray cluster: Ray places and repeats tasks, the files carry the records.

All nodes must reach the same work store, an object store or a folder that all see under the same
path (NFS, Lustre), and have the same jina_jax and libraries installed, which is checked where a
task runs.
"""

import socket
import subprocess
import sys
import time
from collections import Counter, deque
from collections.abc import Iterable, Iterator, MutableMapping, Sequence
from typing import Any

from jina_jax.errors import UserError
from jina_jax.prepare.engine.actors import ActorPool, actor_options, on_any_node
from jina_jax.prepare.engine.task import Task, WorkerLostError
from jina_jax.system.environment import environment_key
from jina_jax.system.store import Store

_CONNECT_S = 10
_ANSWER_S = 30
_LOOK_S = 5
_QUEUED_PER_CORE = 4
_MAX_RETRIES = 20
"""Of a task whose node or process died; an error that the task raised is not retried."""
_LATE_S = 60
_LATE_TIMES = 3
"""A task that runs for so long after others have nothing left to do, and for so many times the
longest that any took, is given to another worker too."""
_MOST_COPIES = 3


class RayEngine:
    """The same tasks as the local engine's, spread over the nodes of a cluster.

    Tasks without a model are Ray tasks, of which more than there are cores wait at any time, so
    that a cluster that grows by demand does. Those with a model go to actors, which keep the model
    and what was learnt loaded.
    """

    def __init__(self, address: str, workers: int, accelerators_per_host: int = 0):
        """Connects to a cluster.

        Args:
          address: of a running cluster, such as `10.0.0.1:6379` or `auto`; empty starts one here.
          workers: cores of a cluster started here; 0 takes all.
          accelerators_per_host: as in EngineConfig.
        Raises: UserError when Ray is not installed or the cluster does not answer.
        """
        try:
            import ray
        except ImportError as error:
            raise UserError(
                "data.engine.kind=ray needs Ray: pip install 'jina-jax[ray]'"
            ) from error
        self._ray = ray
        self._per_host = accelerators_per_host
        self._is_ours = not ray.is_initialized()
        if self._is_ours:
            _check_answers(address)
            try:
                ray.init(
                    address or "local",
                    num_cpus=(workers or None) if not address else None,
                    log_to_driver=False,
                    include_dashboard=None if address else False,
                )
            except (ConnectionError, RuntimeError, ValueError) as error:
                raise UserError(f"no Ray cluster at {address or 'local'!r}: {error}") from error

    def run(self, tasks: Sequence[Task], store: Store) -> Iterator[tuple[int, bytes]]:
        """As in Engine."""
        with_model = [i for i, task in enumerate(tasks) if task.needs_accelerator]
        others = [i for i, task in enumerate(tasks) if not task.needs_accelerator]
        if others:
            yield from self._as_tasks(tasks, others, store)
        if with_model:
            yield from self._in_actors(tasks, with_model, store)

    def _as_tasks(
        self, tasks: Sequence[Task], indices: Iterable[int], store: Store
    ) -> Iterator[tuple[int, bytes]]:
        ray, expected = self._ray, environment_key()
        call = ray.remote(on_any_node()).options(
            max_retries=_MAX_RETRIES, retry_exceptions=False, scheduling_strategy="SPREAD"
        )
        running: dict[Any, int] = {}
        waiting, late = deque(indices), _Stragglers()

        def submit(index: int) -> None:
            pickled = ray.cloudpickle.dumps((tasks[index], store))
            running[call.remote(pickled, expected)] = index

        try:
            while waiting or running:
                cores = max(int(ray.cluster_resources().get("CPU", 1)), 1)
                while waiting and len(running) < _QUEUED_PER_CORE * cores:
                    submit(waiting.popleft())
                for index in late.again(running.values(), not waiting and len(running) < cores):
                    submit(index)
                for reference in ray.wait(list(running), num_returns=1, timeout=_LOOK_S)[0]:
                    index = running.pop(reference)
                    try:
                        marker, took_s = self._result(reference)
                    except ray.exceptions.RayError as error:
                        raise _lost(error) from error
                    late.ended(took_s)
                    self._cancel(running, index)
                    yield index, marker
        finally:
            for index in set(running.values()):
                self._cancel(running, index)

    def _in_actors(
        self, tasks: Sequence[Task], indices: Iterable[int], store: Store
    ) -> Iterator[tuple[int, bytes]]:
        ray, expected = self._ray, environment_key()
        waiting, late, lost = deque(indices), _Stragglers(), Counter[int]()
        pool = ActorPool(ray, *actor_options(ray, self._per_host))
        try:
            while waiting or pool.running:
                pool.grow(len(waiting) + len(pool.running))
                waiting += late.again(pool.running.values(), not waiting and pool.is_idle)
                while waiting and pool.has_room_for(waiting[0]):
                    index = waiting.popleft()
                    pickled = ray.cloudpickle.dumps((tasks[index], store))
                    pool.submit(index, pickled, expected)
                for reference in pool.wait(_LOOK_S):
                    index, actor = pool.running.pop(reference), pool.actor_of(reference)
                    try:
                        marker, took_s = self._result(reference)
                    except ray.exceptions.RayError as error:
                        pool.drop(actor)
                        lost[index] += 1
                        if lost[index] > _MAX_RETRIES:
                            raise _lost(error) from error
                        waiting.appendleft(index)
                        continue
                    late.ended(took_s)
                    self._cancel(pool.running, index)
                    waiting = deque(i for i in waiting if i != index)
                    yield index, marker
        finally:
            pool.close()

    def _result(self, reference: Any) -> tuple[bytes, float]:
        """The marker of a task that ended, and how long it took.

        Raises: what the task raised; UserError where its node cannot run it; Ray's errors where its
          worker is gone.
        """
        try:
            trouble, marker, took_s = self._ray.get(reference)
        except self._ray.exceptions.RayTaskError as error:
            raise error.cause from error
        if trouble:
            raise UserError(f"{trouble}, and run the same command again: finished tasks are kept")
        return bytes(marker), float(took_s)

    def _cancel(self, running: MutableMapping[Any, int], index: int) -> None:
        """Ends what still runs of a task."""
        for reference in [r for r, other in running.items() if other == index]:
            del running[reference]
            self._ray.cancel(reference, force=False)

    def close(self) -> None:
        """Leaves the cluster; one that was started here ends."""
        if self._is_ours:
            self._ray.shutdown()


class _Stragglers:
    """Which tasks are late, once there are workers without any."""

    def __init__(self) -> None:
        self._longest_s = 0.0
        self._since_s = 0.0
        self._copies = 0

    def ended(self, took_s: float) -> None:
        """Takes note of how long a task took."""
        self._longest_s = max(self._longest_s, took_s)

    def again(self, running: Iterable[int], has_idle_worker: bool) -> list[int]:
        """Tasks to be given to another worker too."""
        now = time.monotonic()
        if not has_idle_worker or not self._since_s:
            self._since_s = now
        limit_s = max(_LATE_S, _LATE_TIMES * self._longest_s)
        if now - self._since_s < limit_s or self._copies == _MOST_COPIES:
            return []
        self._since_s, self._copies = now, self._copies + 1
        return sorted(set(running))


def _lost(error: Exception) -> WorkerLostError:
    return WorkerLostError(
        f"a task was lost {_MAX_RETRIES} times with its worker ({error}); run the same command "
        f"again: finished tasks are kept"
    )


def _check_answers(address: str) -> None:
    """Ray itself waits for minutes for a cluster that is not there, and then ends the process.

    Raises: UserError when no cluster answers at `host:port`.
    """
    host, separator, port = address.removeprefix("ray://").rpartition(":")
    if not separator or not port.isdecimal():
        return
    try:
        socket.create_connection((host, int(port)), timeout=_CONNECT_S).close()
        if not address.startswith("ray://"):
            ask = [sys.executable, "-m", "ray.scripts.scripts", "status", "--address", address]
            # A list of this module's own words, without a shell.
            subprocess.run(ask, capture_output=True, check=True, timeout=_ANSWER_S)  # noqa: S603
    except (OSError, subprocess.SubprocessError) as error:
        said = "it does not answer as Ray does" if not isinstance(error, OSError) else error
        raise UserError(
            f"no Ray cluster at {address!r} ({said}): start one with `ray start --head --port "
            f"{port}` on {host}, join other nodes with `ray start --address {host}:{port}`, or "
            f"leave data.engine.ray_address empty for a cluster on this machine"
        ) from error
