"""The tasks of a suite, from the hub or from a local mirror of it."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mteb

from jina_jax.config import Suite, SuiteTask
from jina_jax.config.evaluate import set_problems
from jina_jax.errors import UserError
from jina_jax.mteb.own import own_task


def suite_tasks(suite: Suite, mirror: Path | None) -> dict[str, list[Any]]:
    """Makes mteb's tasks of a suite, by group.

    Args:
      suite: names of the tasks, and sets of one's own.
      mirror: folder that holds data sets as OWNER/NAME, as `hf download` writes them; None reads
        them from the hub.
    Raises: UserError naming every task that mteb doesn't know, every folder that is missing, and
      what is wrong with a set of one's own.
    """
    _check_names(suite)
    of_mteb: list[Any] = []
    groups: dict[str, list[Any]] = {}
    for group, chosen in suite.groups.items():
        groups[group] = []
        for one in chosen:
            if isinstance(one, SuiteTask):
                groups[group].append(_task(one))
                of_mteb.append(groups[group][-1])
            else:
                groups[group].append(own_task(one))
    if mirror is not None:
        _read_from(mirror, [leaf for task in of_mteb for leaf in _leaves(task)])
    return groups


def _check_names(suite: Suite) -> None:
    """Results lie in files by the names of the tasks, so that no two may have the same."""
    chosen = [one for tasks in suite.groups.values() for one in tasks]
    unknown = [t.name for t in chosen if isinstance(t, SuiteTask) and not _is_known(t.name)]
    if unknown:
        raise UserError(f"suite {suite.name}: mteb {mteb.__version__} has no {', '.join(unknown)}")
    names = [one.name for one in chosen]
    for one in chosen:
        which = f"suite {suite.name}: {one.name!r}"
        if names.count(one.name) > 1:
            raise UserError(f"{which} is the name of several tasks: names must differ")
        if isinstance(one, SuiteTask):
            continue
        if _is_known(one.name):
            raise UserError(f"{which} is the name of a task of mteb; choose another for the set")
        for problem in set_problems(one):
            raise UserError(f"{which}{problem}")


def _is_known(name: str) -> bool:
    try:
        mteb.get_task(name)
    except KeyError:
        return False
    return True


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
