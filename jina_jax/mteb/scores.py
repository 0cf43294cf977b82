"""Scores of the tasks of a suite."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class TaskScore(NamedTuple):
    """A task's figures, in percent."""

    group: str
    task: str
    measure: str
    """What mteb takes as the task's score."""
    score: float
    """The mean over the splits and subsets that were run."""
    map_at_10: float | None
    """Of reranking."""
    measures: dict[tuple[str, str], dict[str, float]]
    """Split and subset → measure → value."""


def averages(scores: Sequence[TaskScore]) -> dict[str, float]:
    """Mean score of each group, in percent."""
    groups = dict.fromkeys(s.group for s in scores)
    return {g: float(np.mean([s.score for s in scores if s.group == g])) for g in groups}
