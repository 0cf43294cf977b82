"""The `mteb` verb: a suite of tasks, in mteb's own results."""

from pathlib import Path
from typing import Any

import mteb
import numpy as np

from jina_jax.config import Suite
from jina_jax.mteb.model import MtebModel
from jina_jax.mteb.published import TaskScore
from jina_jax.mteb.tasks import suite_tasks
from jina_jax.system.terminal import say

_MAP = "map_at_10"


def run_suite(
    model: MtebModel, suite: Suite, output: Path, mirror: Path | None = None
) -> list[TaskScore]:
    """Runs the tasks that have no results yet.

    Every task's results are written when it is done, as OUTPUT/results/MODEL/REVISION/TASK.json;
    the same call goes on after an interruption. A set of one's own whose files have changed is run
    again.

    Args:
      model: to measure.
      suite: tasks by group.
      output: folder of mteb's result cache.
      mirror: as for `suite_tasks`.
    Returns: the scores in the order of the suite.
    Raises: UserError as `suite_tasks` does.
    """
    tasks = [(group, one) for group, of in suite_tasks(suite, mirror).items() for one in of]
    cache = mteb.ResultCache(output)
    scores = []
    for number, (group, task) in enumerate(tasks, 1):
        say(f"{task.metadata.name}: task {number} of {len(tasks)}")
        result = mteb.evaluate(
            model, [task], cache=cache, show_progress_bar=False, co2_tracker=False,
            overwrite_strategy=_strategy(cache, task, model),
        ).task_results[0]  # fmt: skip
        scores.append(_score(group, task.metadata, result))
    return scores


def _strategy(cache: mteb.ResultCache, task: Any, model: MtebModel) -> str:
    """Runs a task again where its data have changed: mteb takes what is there."""
    before = cache.load_task_result(task.metadata.name, model.mteb_model_meta)
    is_other = before is not None and before.dataset_revision != task.metadata.revision
    return "always" if is_other else "only-missing"


def _score(group: str, task: mteb.TaskMetadata, result: Any) -> TaskScore:
    measures = {
        (split, one["hf_subset"]): {
            name: 100 * float(value)
            for name, value in one.items()
            if isinstance(value, int | float)
        }
        for split, subsets in result.scores.items()
        for one in subsets
    }
    # Some queries are several texts, of which the nearest counts.
    name = f"{task.main_score.rpartition('map_at_')[0]}{_MAP}"
    maps = [of[name] for of in measures.values() if name in of]
    return TaskScore(
        group, task.name, task.main_score, 100 * float(result.get_score()),
        float(np.mean(maps)) if task.type == "Reranking" and maps else None, measures,
    )  # fmt: skip
