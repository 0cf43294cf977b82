"""Preparation on a Ray cluster: Ray places and repeats tasks, the files carry the records.

All nodes must see the same folder under the same path, and have jina_jax installed.
"""

import socket
from collections.abc import Iterator, Sequence
from pathlib import Path

from jina_jax.data.engine import Task, WorkerLostError, execute
from jina_jax.errors import UserError

_CONNECT_S = 10
_QUEUED_PER_CORE = 4
_MAX_RETRIES = 20
"""Of a task whose node or process died; an error that the task raised is not retried."""


class RayEngine:
    """The same tasks as the local engine's, spread over the nodes of a cluster."""

    def __init__(self, address: str, workers: int):
        """Connects to a cluster.

        Args:
          address: of a running cluster, such as `10.0.0.1:6379` or `auto`; empty starts one here.
          workers: cores of a cluster started here; 0 takes all.
        Raises: UserError when Ray is not installed or the cluster does not answer.
        """
        try:
            import ray
        except ImportError as error:
            raise UserError(
                "data.engine.kind=ray needs Ray: pip install 'jina-jax[ray]'"
            ) from error
        self._ray = ray
        self._is_ours = not ray.is_initialized()
        if self._is_ours:
            _check_reachable(address)
            try:
                ray.init(
                    address or "local",
                    num_cpus=(workers or None) if not address else None,
                    log_to_driver=False,
                    include_dashboard=None if address else False,
                )
            except (ConnectionError, RuntimeError, ValueError) as error:
                raise UserError(f"no Ray cluster at {address or 'local'!r}: {error}") from error

    def run(self, tasks: Sequence[Task], markers: Path) -> Iterator[int]:
        """As in Engine."""
        ray = self._ray
        call = ray.remote(execute).options(
            max_retries=_MAX_RETRIES, retry_exceptions=False, scheduling_strategy="SPREAD"
        )
        waiting = iter(range(len(tasks)))
        running: dict[object, int] = {}
        try:
            while True:
                cores = int(ray.cluster_resources().get("CPU", 1))
                while len(running) < _QUEUED_PER_CORE * max(cores, 1):
                    index = next(waiting, None)
                    if index is None:
                        break
                    task = tasks[index]
                    placed = call.options(**self._accelerator()) if task.needs_accelerator else call
                    running[placed.remote(task, markers)] = index
                if not running:
                    return
                ended, _ = ray.wait(list(running), num_returns=1)
                for reference in ended:
                    self._raise_error_of(reference)
                    yield running.pop(reference)
        finally:
            for reference in running:
                ray.cancel(reference, force=False)

    def _raise_error_of(self, reference: object) -> None:
        try:
            self._ray.get(reference)
        except self._ray.exceptions.RayTaskError as error:
            raise error.cause from error
        except self._ray.exceptions.RayError as error:
            raise WorkerLostError(
                f"a task was lost {_MAX_RETRIES} times with its worker ({error}); "
                f"run the same command again: finished tasks are kept"
            ) from error

    def _accelerator(self) -> dict[str, object]:
        """Where the cluster has accelerators, the whole of one; else any core."""
        has = self._ray.cluster_resources()
        if has.get("TPU"):
            # A TPU host's chips belong to one process.
            chips = max(n["Resources"].get("TPU", 0) for n in self._ray.nodes() if n["Alive"])
            return {"resources": {"TPU": chips}}
        return {"num_gpus": 1} if has.get("GPU") else {}

    def close(self) -> None:
        """Leaves the cluster; one that was started here ends."""
        if self._is_ours:
            self._ray.shutdown()


def _check_reachable(address: str) -> None:
    """Ray itself waits for minutes for a cluster that is not there.

    Raises: UserError when nothing answers at `host:port`.
    """
    host, separator, port = address.removeprefix("ray://").rpartition(":")
    if not separator or not port.isdecimal():
        return
    try:
        socket.create_connection((host, int(port)), timeout=_CONNECT_S).close()
    except OSError as error:
        raise UserError(
            f"no Ray cluster at {address!r} ({error}): start one with `ray start --head --port "
            f"{port}` on {host}, join other nodes with `ray start --address {host}:{port}`, or "
            f"leave data.engine.ray_address empty for a cluster on this machine"
        ) from error
