"""Runs idempotent tasks over files, and remembers which of them are done.

A task reads files, writes files and returns a few numbers. When it has ended, a marker beside the
others says so: a JSON file with the numbers, under a key that hashes everything the task depends
on. Whatever kills the work, only tasks without a marker run again; and since a task's outputs
depend on its arguments alone, neither the engine nor the number of workers nor the order in which
they finish changes a byte.
"""

import dataclasses
import functools
import json
import multiprocessing
import os
import signal
import typing
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from jina_jax.config.run.run import EngineConfig
from jina_jax.errors import UserError
from jina_jax.system.atomic import write_atomically
from jina_jax.system.processes import die_with_parent
from jina_jax.system.untrusted import from_json

_SMALL_BYTES = 16 << 20
_QUEUED_PER_WORKER = 8
"""Tasks handed out ahead, which bounds what a cancelled stage still does."""


@dataclass(frozen=True)
class Task:
    """A call of a module's function whose result is a frozen dataclass of JSON values."""

    name: str
    """Names the marker; unique, and fit for a file name."""
    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    key: str
    """`content_key` of everything that the outputs depend on."""
    needs_accelerator: bool = False


class WorkerLostError(UserError):
    """A process that ran a task was killed; the same command goes on from the finished tasks."""


class Engine(Protocol):
    """Runs tasks somewhere that sees the same files."""

    def run(self, tasks: Sequence[Task], markers: Path) -> Iterator[int]:
        """Calls `execute` for each task; gives the index of each that ended, in any order."""
        ...

    def close(self) -> None:
        """Lets go of what the engine holds."""
        ...


def execute(task: Task, markers: Path) -> None:
    """Runs a task to its end and marks it as done."""
    result = task.function(*task.arguments)
    marker = {"key": task.key, "result": dataclasses.asdict(result)}
    write_atomically(_marker(task, markers), json.dumps(marker).encode())


def _marker(task: Task, markers: Path) -> Path:
    return markers / f"{task.name}.json"


@functools.cache
def _result_type(function: Callable[..., Any]) -> Any:
    return typing.get_type_hints(function)["return"]


def _result(task: Task, markers: Path) -> Any:
    """What the task returned when it ran; None when it has not, or with other inputs."""
    try:
        marker = json.loads(_marker(task, markers).read_bytes())
    except (FileNotFoundError, ValueError):
        return None
    if marker["key"] != task.key:
        return None
    return from_json(_result_type(task.function), marker["result"])


def run_tasks(engine: Engine, tasks: Sequence[Task], markers: Path) -> Iterator[Any]:
    """Results of tasks in their order, running those that are not done yet.

    Args:
      engine: runs them.
      tasks: may run in any order.
      markers: existing folder; tasks whose key it holds are not run again.
    Returns: results; closing the iterator early leaves the remaining tasks undone.
    """
    results = {i: r for i, task in enumerate(tasks) if (r := _result(task, markers)) is not None}
    missing = [i for i in range(len(tasks)) if i not in results]
    ended = engine.run([tasks[i] for i in missing], markers)
    for wanted in range(len(tasks)):
        while wanted not in results:
            index = missing[next(ended)]
            results[index] = _result(tasks[index], markers)
            assert results[index] is not None, f"task {tasks[index].name} left no marker"
        yield results.pop(wanted)


class LocalEngine:
    """Processes of this machine, which die with this one."""

    def __init__(self, workers: int):
        """Starts nothing yet.

        Args:
          workers: processes; with 1 the tasks run in this one. Tasks that need an accelerator
            always do, since a device serves one process.
        """
        self._workers = workers
        self._pool: ProcessPoolExecutor | None = None

    def run(self, tasks: Sequence[Task], markers: Path) -> Iterator[int]:
        """As in Engine."""
        alone = self._workers == 1 or len(tasks) == 1
        here = [i for i, task in enumerate(tasks) if alone or task.needs_accelerator]
        for index in here:
            execute(tasks[index], markers)
            yield index
        if len(here) < len(tasks):
            yield from self._spread(tasks, markers, sorted({*range(len(tasks))} - {*here}))

    def _spread(
        self, tasks: Sequence[Task], markers: Path, indices: Sequence[int]
    ) -> Iterator[int]:
        if self._pool is None:
            # Not forked: a fork of a process with threads may hang.
            self._pool = ProcessPoolExecutor(
                self._workers, multiprocessing.get_context("spawn"), _start_worker, (os.getpid(),)
            )
        waiting = iter(indices)
        running: dict[Future[None], int] = {}
        try:
            while True:
                while len(running) < _QUEUED_PER_WORKER * self._workers:
                    index = next(waiting, None)
                    if index is None:
                        break
                    running[self._pool.submit(execute, tasks[index], markers)] = index
                if not running:
                    return
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    index = running.pop(future)
                    future.result()
                    yield index
        except BrokenProcessPool as error:
            self.close()
            raise WorkerLostError(
                "a worker process was killed, perhaps for want of memory: run the same command "
                "again (finished tasks are kept), with a lower data.engine.workers if it recurs"
            ) from error
        finally:
            # What is running ends, so that nothing works beside whoever comes next.
            wait([future for future in running if not future.cancel()])

    def close(self) -> None:
        """Ends the processes."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
            self._pool = None


def _start_worker(parent: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle.
    # A worker must not go on writing beside the run that resumes the work of a killed one.
    die_with_parent(parent)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # The processes are the parallelism.


def build_engine(config: EngineConfig, input_bytes: int) -> Engine:
    """The engine that a configuration asks for.

    Args:
      config: kind and workers.
      input_bytes: for so little input that starting processes takes longer than the work, workers=0
        starts none.
    Raises: UserError when Ray is asked for and cannot be had.
    """
    if config.kind == "ray":
        from jina_jax.data.ray_engine import RayEngine

        return RayEngine(config.ray_address, config.workers)
    cores = len(os.sched_getaffinity(0))
    return LocalEngine(config.workers or (1 if input_bytes < _SMALL_BYTES else cores))
