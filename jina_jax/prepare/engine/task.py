"""Runs idempotent tasks over files, and remembers which of them are done.

A task reads files, writes files and returns a few numbers. When it has ended, a marker beside the
others says so: a JSON file with the numbers, under a key that hashes everything the task depends
on. Whatever kills the work, only tasks without a marker run again; and since a task's outputs
depend on its arguments alone, neither the engine nor the number of workers nor the order in which
they finish changes a byte.
"""

import dataclasses
import json
import typing
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from jina_jax.errors import UserError
from jina_jax.system.atomic import write_atomically
from jina_jax.system.untrusted import from_json


@dataclass(frozen=True)
class Task:
    """A call of a module's function, which says that it returns a JSON value, or dataclasses and
    tuples of such.
    """

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
    marker = json.dumps({"key": task.key, "result": result}, default=dataclasses.asdict)
    write_atomically(_marker(task, markers), marker.encode())


def _marker(task: Task, markers: Path) -> Path:
    return markers / f"{task.name}.json"


def _result(task: Task, markers: Path) -> Any:
    """What the task returned when it ran; None when it has not, or otherwise."""
    try:
        marker = json.loads(_marker(task, markers).read_bytes())
        kind = typing.get_type_hints(task.function)["return"]
        return from_json(kind, marker["result"]) if marker["key"] == task.key else None
    except (FileNotFoundError, ValueError):
        return None


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
