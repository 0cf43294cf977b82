"""Runs idempotent tasks over files, and remembers which of them are done.

A task reads files, writes files and returns a few numbers. When it has ended, a marker says so: a
JSON file with the numbers, named by a key that hashes everything the task depends on, as its other
files are. Whatever kills the work, only tasks without a marker run again; and since a task's
outputs depend on its arguments alone, neither the engine nor the number of workers nor the order in
which they finish changes a byte. Another configuration finds what it has in common with an earlier
one.
"""

import dataclasses
import json
import typing
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from jina_jax.errors import UserError
from jina_jax.system.store import Store, StoredFile, is_full, let_go, make_room
from jina_jax.system.untrusted import from_json


@dataclass(frozen=True, slots=True)
class Task:
    """A call of a module's function, which says that it returns a JSON value, or dataclasses and
    tuples of such.
    """

    stage: str
    """Names the folder of the marker."""
    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    key: str
    """`content_key` of everything that the outputs depend on, unlike that of any other task of the
    stage."""
    needs_accelerator: bool = False

    def marker(self, store: Store) -> StoredFile:
        """Holds what the task returned; is there when it has ended."""
        return store.output(f"done/{self.stage}", self.key, ".json")


def marker_of(output: StoredFile) -> StoredFile:
    """The marker of the task whose key names a file."""
    stage, folder, name = output.name.rsplit("/", 2)
    return output.store.file(f"done/{stage}/{folder}/{name.split('.')[0]}.json")


class WorkerLostError(UserError):
    """A process that ran a task was killed; the same command goes on from the finished tasks."""


class Engine(Protocol):
    """Runs tasks somewhere that reaches the same store."""

    def run(self, tasks: Sequence[Task], store: Store) -> Iterator[tuple[int, bytes]]:
        """Calls `execute` for each task; gives the index of each that ended, in any order, and what
        `execute` gave.
        """
        ...

    def close(self) -> None:
        """Lets go of what the engine holds."""
        ...


def execute(task: Task, store: Store) -> bytes:
    """Runs a task to its end and marks it as done; again where the disk was full and room can be
    made for it.

    Returns: what the marker holds.
    """
    try:
        result = task.function(*task.arguments)
    except Exception as error:
        if not (store.is_remote and is_full(error)):
            raise
        make_room(store)
        result = task.function(*task.arguments)
    finally:
        let_go(store)
    marker = json.dumps({"result": result}, default=dataclasses.asdict).encode()
    task.marker(store).put(marker)
    return marker


def _result(task: Task, marker: bytes | None) -> Any:
    """What the task returned when it ran; None when it has not."""
    if marker is None:
        return None
    try:
        kind = typing.get_type_hints(task.function)["return"]
        return from_json(kind, json.loads(marker)["result"])
    except (ValueError, KeyError, TypeError):
        return None


def run_tasks(engine: Engine, tasks: Sequence[Task], store: Store) -> Iterator[Any]:
    """Results of tasks in their order, running those that are not done yet.

    Args:
      engine: runs them.
      tasks: may run in any order.
      store: tasks whose marker it holds are not run again.
    Returns: results; closing the iterator early leaves the remaining tasks undone.
    """
    names = [task.marker(store).name for task in tasks]
    markers = store.contents(names)
    found = ((i, _result(tasks[i], markers.get(name))) for i, name in enumerate(names))
    results = {i: result for i, result in found if result is not None}
    del markers
    missing = [i for i in range(len(tasks)) if i not in results]
    ended = engine.run([tasks[i] for i in missing], store)
    for wanted in range(len(tasks)):
        while wanted not in results:
            number, marker = next(ended)
            index = missing[number]
            results[index] = _result(tasks[index], marker)
            assert results[index] is not None, f"{names[index]} holds no result"
        yield results.pop(wanted)
