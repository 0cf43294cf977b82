"""Results of several tasks, and their mean."""

import numpy as np

Results = dict[str, dict[str, dict[str, float]]]
"""Task → system → measure → value."""


def with_average(results: Results) -> Results:
    """The results with one task more, `average`: the plain mean over the tasks.

    Args:
      results: all tasks have the same systems and measures; of no task, there is no mean either.
    """
    if not results:
        return {}
    systems = next(iter(results.values()))
    average = {
        system: {
            measure: float(np.mean([task[system][measure] for task in results.values()]))
            for measure in measures
        }
        for system, measures in systems.items()
    }
    return results | {"average": average}
