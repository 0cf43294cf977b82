"""Scores of a suite's tasks; published scores of other models, and ours beside them."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any, NamedTuple

import numpy as np

from jina_jax.errors import UserError


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


_FILE = "published.json"
"""Of this package: the figures, and where they were published."""
COMPARISON_FILE = "comparison.json"
"""Of a folder of results: a `Comparison`."""


class Published(NamedTuple):
    """What `published.json` holds."""

    source: str
    """Where the figures stand, with commit and date."""
    notes: list[dict[str, Any]]
    """tasks and models that a text is about; no models means all."""
    tasks: dict[str, dict[str, str]]
    """Task → group, split, subset, measure (as mteb calls it now) and published_measure."""
    scores: dict[str, dict[str, float]]
    """Model → task → percent."""


@dataclass(frozen=True)
class ComparisonRow:
    """A task: ours beside the published figures, in percent."""

    group: str
    task: str
    """With its subset, where it has several."""
    measure: str
    ours: float
    published: dict[str, float]
    """Model → figure; empty where none is published, or ours is of another split or subset."""
    source: str
    """Of the published figures."""


@dataclass(frozen=True)
class ComparisonMean:
    """Means of a group, over the tasks that both have."""

    group: str
    model: str
    tasks: int
    ours: float
    published: float


@dataclass(frozen=True)
class Comparison:
    """A table of ours beside published scores."""

    rows: list[ComparisonRow]
    means: list[ComparisonMean]
    notes: list[str]
    """What should be known of the figures in the table."""


def load_published() -> Published:
    """Reads the published figures of this package."""
    text = resources.files("jina_jax.mteb").joinpath(_FILE).read_text(encoding="utf-8")
    published: dict[str, Any] = json.loads(text)
    source = "{title}, {url}, commit {commit}, {date}".format(**published["source"])
    scores = {name: model["scores"] for name, model in published["models"].items()}
    return Published(source, published["notes"], published["tasks"], scores)


def check_models(models: Sequence[str]) -> None:
    """Refuses a model that has no published figures here.

    Raises: UserError naming those that have.
    """
    known = load_published().scores
    for model in models:
        if model not in known:
            raise UserError(f"no published scores of {model!r}; there are {', '.join(known)}")


def compare(scores: Sequence[TaskScore], models: Sequence[str]) -> Comparison:
    """Ours beside the published figures, like with like.

    A task is compared on the split, the subset and by the measure of the published figure: of a
    task that was run in several languages, only the one that was published counts.

    Args:
      scores: of `run_suite`.
      models: names in `published.json`.
    Returns: a row for each score, in its order, and for each group and model the means over the
      tasks that both have.
    Raises: UserError for a model that is not there.
    """
    check_models(models)
    published = load_published()
    rows = [_row(one, models, published) for one in scores]
    shown = {(one.task, m) for one, row in zip(scores, rows, strict=True) for m in row.published}
    notes = [
        note["text"]
        for note in published.notes
        if any(task in note["tasks"] and m in (note["models"] or [m]) for task, m in shown)
    ]
    return Comparison(rows, list(_means(rows, models)), notes)


def _row(one: TaskScore, models: Sequence[str], published: Published) -> ComparisonRow:
    task = published.tasks.get(one.task)
    values = one.measures.get((task["split"], task["subset"]), {}) if task else {}
    if not task or task["measure"] not in values:
        return ComparisonRow(one.group, one.task, one.measure, one.score, {}, "")
    theirs = {
        model: published.scores[model][one.task]
        for model in models
        if one.task in published.scores[model]
    }
    subset = "" if task["subset"] == "default" else f" ({task['subset']})"
    return ComparisonRow(
        one.group, f"{one.task}{subset}", task["measure"], values[task["measure"]], theirs,
        published.source if theirs else "",
    )  # fmt: skip


def _means(rows: Sequence[ComparisonRow], models: Sequence[str]) -> Iterator[ComparisonMean]:
    for group in dict.fromkeys(row.group for row in rows):
        for model in models:
            both = [row for row in rows if row.group == group and model in row.published]
            if both:
                ours = float(np.mean([row.ours for row in both]))
                theirs = float(np.mean([row.published[model] for row in both]))
                yield ComparisonMean(group, model, len(both), ours, theirs)
