"""The tasks of a suite, from the hub or from a local mirror of it."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mteb

from jina_jax.errors import UserError
from jina_jax.suite_config import Suite, SuiteTask


def suite_tasks(suite: Suite, mirror: Path | None) -> dict[str, list[Any]]:
    """Makes mteb's tasks of a suite, by group.

    Args:
      suite: names of the tasks.
      mirror: folder that holds data sets as OWNER/NAME, as `hf download` writes them; None reads
        them from the hub.
    Raises: UserError naming every task that mteb doesn't know, and every folder that is missing.
    """
    groups: dict[str, list[Any]] = {}
    unknown = []
    for group, chosen in suite.groups.items():
        groups[group] = []
        for one in chosen:
            try:
                groups[group].append(_task(one))
            except KeyError:
                unknown.append(one.name)
    if unknown:
        raise UserError(f"suite {suite.name}: mteb {mteb.__version__} has no {', '.join(unknown)}")
    if mirror is not None:
        _read_from(
            mirror, [leaf for tasks in groups.values() for t in tasks for leaf in _leaves(t)]
        )
    return groups


def _task(chosen: SuiteTask) -> Any:
    return mteb.get_task(
        chosen.name, hf_subsets=chosen.subsets or None, eval_splits=chosen.splits or None
    )


def _leaves(task: Any) -> Iterator[Any]:
    """A task, or those that it puts together."""
    parts = getattr(task, "tasks", None)
    for part in parts or ():
        yield from _leaves(part)
    if not parts:
        yield task


def _read_from(mirror: Path, tasks: list[Any]) -> None:
    """Points every task at its folder of the mirror."""
    folders = {
        task.metadata.dataset["path"]: mirror / task.metadata.dataset["path"] for task in tasks
    }
    missing = sorted(name for name, folder in folders.items() if not folder.is_dir())
    if missing:
        lines = [
            f"hf download --repo-type dataset {name} --local-dir {mirror / name}"
            for name in missing
        ]
        raise UserError(
            f"the mirror {mirror} lacks {len(missing)} of {len(folders)} data sets; fetch them "
            f"where there is a network:\n  " + "\n  ".join(lines)
        )
    for task in tasks:
        dataset = task.metadata.dataset
        # Of this task alone: mteb's metadata belong to the class.
        task.metadata = task.metadata.model_copy(
            update={"dataset": dataset | {"path": str(folders[dataset["path"]].absolute())}}
        )
