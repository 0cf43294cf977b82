"""Preparation on a Ray cluster: Ray places and repeats tasks, the files carry the records.

All nodes must see the same folder under the same path (NFS, Lustre, a bucket mounted by GCS-fuse),
and have the same jina_jax and libraries installed, which is checked where a task runs.
"""

import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path

from jina_jax.errors import UserError
from jina_jax.prepare.engine.task import Task, WorkerLostError
from jina_jax.system.environment import environment_key

_CONNECT_S = 10
_ANSWER_S = 30
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

    def run(self, tasks: Sequence[Task], markers: Path) -> Iterator[int]:
        """As in Engine."""
        ray = self._ray
        call = ray.remote(_on_any_node()).options(
            max_retries=_MAX_RETRIES, retry_exceptions=False, scheduling_strategy="SPREAD"
        )
        expected = environment_key()
        waiting = iter(range(len(tasks)))
        running: dict[object, int] = {}
        try:
            while True:
                cores = int(ray.cluster_resources().get("CPU", 1))
                room = _QUEUED_PER_CORE * max(cores, 1) - len(running)
                for index in islice(waiting, max(room, 0)):
                    task = tasks[index]
                    placed = call.options(**self._accelerator()) if task.needs_accelerator else call
                    pickled = ray.cloudpickle.dumps(task)
                    running[placed.remote(pickled, str(markers), expected)] = index
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
            trouble = self._ray.get(reference)
        except self._ray.exceptions.RayTaskError as error:
            raise error.cause from error
        except self._ray.exceptions.RayError as error:
            raise WorkerLostError(
                f"a task was lost {_MAX_RETRIES} times with its worker ({error}); "
                f"run the same command again: finished tasks are kept"
            ) from error
        if trouble:
            raise UserError(
                f"{trouble}. Install the same jina_jax and libraries on all nodes, with the Python "
                f"that `ray start` is called with, and run the same command again: finished tasks "
                f"are kept"
            )

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


def _on_any_node() -> Callable[[bytes, str, str], str]:
    """A function that runs a pickled task, and can itself be read where jina_jax is missing."""

    # A function inside another is sent whole; one of a module only by its name.
    def execute_pickled(task: bytes, markers: str, expected: str) -> str:
        import pickle
        import socket
        import sys
        from pathlib import Path

        here = f"the Ray node {socket.gethostname()} ({sys.executable})"
        try:
            from jina_jax.prepare.engine.task import execute
            from jina_jax.system.environment import environment_key

            own = environment_key()
        except Exception as error:
            return f"{here} cannot import jina_jax: {error!r}"
        if own != expected:
            return (
                f"{here} has another version of jina_jax or of a library, "
                f"which may write other bytes"
            )
        if not Path(markers).is_dir():
            return f"{here} does not see {markers}, which must be on a file system of all nodes"
        execute(pickle.loads(task), Path(markers))  # noqa: S301  Of the process that started it.
        return ""

    return execute_pickled


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
