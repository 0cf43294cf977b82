"""Scores of systems on tasks, and their mean."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np

Results = dict[str, dict[str, dict[str, float]]]
"""Task → system → measure → value."""
System = TypeVar("System")


def score_all(
    tasks: Sequence[Any],
    systems: Mapping[str, System],
    score: Callable[[Any, System], dict[str, float]],
) -> Results:
    """Scores every system on every task.

    Args:
      tasks: each has a `name`.
      systems: by name, such as an encoder.
      score: task and system → measure → value; the same measures for all tasks.
    Returns: the results, and as the task `average` the plain mean over the tasks; without tasks,
      nothing.
    """
    results = {
        task.name: {name: score(task, system) for name, system in systems.items()} for task in tasks
    }
    if not results:
        return {}
    average = {
        system: {
            measure: float(np.mean([by_system[system][measure] for by_system in results.values()]))
            for measure in measures
        }
        for system, measures in next(iter(results.values())).items()
    }
    return results | {"average": average}
