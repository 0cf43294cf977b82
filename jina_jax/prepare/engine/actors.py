"""Ray's actors that run tasks with a model: each has an accelerator, and keeps what it loaded."""

import time
from collections import Counter
from collections.abc import Callable
from typing import Any

from jina_jax.errors import UserError
from jina_jax.prepare.engine.task import WorkerLostError
from jina_jax.system.terminal import say

_AHEAD = 2
"""Tasks that an actor has at a time, so that it need not wait for the next."""
_MOST_FAILED = 20
"""Actors in a row that end before they have begun."""
_SAID_AFTER_S = 60


def actor_options(ray: Any, per_host: int) -> tuple[dict[str, Any], int]:
    """What an actor asks Ray for, and how many of them the hosts that are up have room for.

    A GPU each, or all chips of a TPU host, which belong to one process; where no host has either,
    all cores of a host. With `per_host` that many on each host, which divide what it has.

    Args:
      ray: the module, connected to a cluster.
      per_host: `data.engine.accelerators_per_host`.
    Raises: UserError when a host has fewer than `per_host`.
    """
    hosts = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    kind = next((k for k in ("TPU", "GPU") if any(host.get(k) for host in hosts)), "CPU")
    counts = [int(host[kind]) for host in hosts if host.get(kind, 0) >= 1] or [1]
    each = min(counts) // per_host if per_host else 1 if kind == "GPU" else min(counts)
    if not each:
        raise UserError(
            f"data.engine.accelerators_per_host={per_host} is more than the {min(counts)} {kind}s "
            f"of a host of the cluster; lower it"
        )
    asked = {"CPU": {"num_cpus": each}, "GPU": {"num_cpus": 1, "num_gpus": each}}.get(
        kind, {"num_cpus": 1, "resources": {kind: each}}
    )
    return asked, sum(count // each for count in counts)


class ActorPool:
    """Actors of one stage. One that is lost is replaced; and while there is work for one more than
    the hosts have room for, one more is asked for, so that a cluster that grows by demand does.
    """

    def __init__(self, ray: Any, options: dict[str, Any], room: int):
        """Starts none yet.

        Args:
          ray: the module, connected to a cluster.
          options: of an actor.
          room: for how many the hosts that are up have room.
        """
        self._ray, self._room = ray, room
        self._class = ray.remote(_worker_class()).options(
            max_restarts=0, max_task_retries=0, scheduling_strategy="SPREAD", **options
        )
        self._asked = ", ".join(f"{name}={value}" for name, value in options.items())
        self._starting: dict[Any, Any] = {}
        self._ready: list[Any] = []
        self._actors: dict[Any, Any] = {}
        self._failed, self._waits_since_s = 0, time.monotonic()
        self.running: dict[Any, int] = {}
        """What `submit` began → number of the task."""

    @property
    def is_idle(self) -> bool:
        """Whether an actor has nothing to do."""
        return len(self._loads()) < len(self._ready)

    def grow(self, unfinished: int) -> None:
        """Asks for actors.

        Args:
          unfinished: tasks that there are.
        """
        known = max(self._room, len(self._ready))
        wanted = min(unfinished, known + max(1, known // 2))
        while len(self._ready) + len(self._starting) < wanted:
            actor = self._class.remote()
            self._starting[actor.begin.remote()] = actor

    def has_room_for(self, index: int) -> bool:
        """Whether an actor can take a task that it does not have already."""
        return self._free(index) is not None

    def submit(self, index: int, pickled: bytes, expected: str) -> None:
        """Gives a task to the actor that has the fewest."""
        actor = self._free(index)
        assert actor is not None
        reference = actor.execute.remote(pickled, expected)
        self.running[reference], self._actors[reference] = index, actor

    def wait(self, timeout_s: float) -> list[Any]:
        """Waits until something has ended, but not for longer than a time.

        Returns: those of `running` that have ended.
        Raises: WorkerLostError when actors end before they have begun, again and again.
        """
        ray = self._ray
        ended, _ = ray.wait([*self._starting, *self.running], num_returns=1, timeout=timeout_s)
        for reference in [r for r in ended if r in self._starting]:
            actor = self._starting.pop(reference)
            try:
                ray.get(reference)
            except ray.exceptions.RayError as error:
                self._failed += 1
                if self._failed > _MOST_FAILED:
                    raise WorkerLostError(
                        f"no worker for a model can be started ({error}); run the same command "
                        f"again: finished tasks are kept"
                    ) from error
                continue
            self._failed = 0
            self._ready.append(actor)
        if self._ready:
            self._waits_since_s = time.monotonic()
        elif time.monotonic() - self._waits_since_s > _SAID_AFTER_S:
            self._waits_since_s = time.monotonic()
            say(f"waiting for a host of the Ray cluster with {self._asked} free")
        return [r for r in ended if r in self.running]

    def actor_of(self, reference: Any) -> Any:
        """Who had the task that ended."""
        return self._actors.pop(reference)

    def drop(self, actor: Any) -> None:
        """Does without an actor that is lost."""
        if actor in self._ready:
            self._ready.remove(actor)
            self._ray.kill(actor)

    def close(self) -> None:
        """Ends all actors."""
        for actor in (*self._ready, *self._starting.values()):
            self._ray.kill(actor)

    def _loads(self) -> Counter[Any]:
        return Counter(self._actors[reference] for reference in self.running)

    def _free(self, index: int) -> Any:
        loads = self._loads()
        busy = {self._actors[r] for r, other in self.running.items() if other == index}
        free = [a for a in self._ready if a not in busy and loads[a] < _AHEAD]
        return min(free, key=loads.__getitem__, default=None)


def on_any_node() -> Callable[[bytes, str], tuple[str, bytes, float]]:
    """A function that runs a pickled task, and can itself be read where jina_jax is missing.

    Returns: what hinders it or nothing, the marker, and how many seconds the task took.
    """

    # A function inside another is sent whole; one of a module only by its name.
    def execute_pickled(pickled: bytes, expected: str) -> tuple[str, bytes, float]:
        import pickle
        import socket
        import sys
        import time

        here = f"the Ray node {socket.gethostname()} ({sys.executable})"
        install = (
            "install the same jina_jax and libraries on all nodes, with the Python that "
            "`ray start` is called with"
        )
        try:
            from jina_jax.prepare.engine.task import execute
            from jina_jax.system.environment import environment_key

            own = environment_key()
        except Exception as error:
            return f"{here} cannot import jina_jax: {error!r}; {install}", b"", 0.0
        if own != expected:
            other = "has another version of jina_jax or of a library, which may write other bytes"
            return f"{here} {other}; {install}", b"", 0.0
        task, store = pickle.loads(pickled)  # noqa: S301  Of the process that started it.
        if not store.is_known():
            give = "give a URL as data.engine.work_dir, or a folder of a file system of all nodes"
            return f"{here} does not see {store.root}; {give}", b"", 0.0
        started_s = time.monotonic()
        return "", execute(task, store), time.monotonic() - started_s

    return execute_pickled


def _worker_class() -> type:
    run = on_any_node()

    class Worker:
        def begin(self) -> None:
            pass

        def execute(self, pickled: bytes, expected: str) -> tuple[str, bytes, float]:
            return run(pickled, expected)

    return Worker
