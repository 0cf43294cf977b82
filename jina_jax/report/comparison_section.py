"""Runs side by side: what they differ in, and how they went."""

from collections.abc import Iterator, Mapping, Sequence

from jina_jax.report.evaluation_section import KINDS, about_measure
from jina_jax.report.facts import RunFacts
from jina_jax.report.parts import Group, Line, Plot, Section, Table, bars
from jina_jax.report.setup_section import changed_fields
from jina_jax.report.training_section import LEARNING, SPEED, draw_curve, line


def comparison_section(runs: list[RunFacts]) -> Section:
    """The chapter that a page of several runs begins with."""
    names = ", ".join(run.name for run in runs)
    groups = [
        Group("What differs", [changed_fields(runs)]),
        Group("Scores", [*_scores(runs), _table(runs)]),
        Group("Training", list(_curves(runs))),
    ]
    return Section("comparison", "Side by side", f"{names}.", groups)


def _values(run: RunFacts) -> dict[str, float]:
    """KIND/TASK/MEASURE → what the trained model reached, in percent."""
    return {
        f"{kind}/{task}/{measure}": 100 * value
        for kind in KINDS
        for task, systems in run.results.get(kind, {}).items()
        for measure, value in systems.get("trained", {}).items()
    }


def _scores(runs: Sequence[RunFacts]) -> Iterator[Plot]:
    by_run = {run.name: _values(run) for run in runs}
    keys = list(dict.fromkeys(key for values in by_run.values() for key in values))
    measures = dict.fromkeys((k.split("/")[0], k.split("/")[2]) for k in keys)
    for kind, measure in measures:
        tasks = [k.split("/")[1] for k in keys if k.startswith(f"{kind}/") and k.endswith(measure)]
        values: dict[str, Mapping[str, float | None]] = {
            task: {name: v.get(f"{kind}/{task}/{measure}") for name, v in by_run.items()}
            for task in tasks
        }
        of = "of each run, by task."
        about = about_measure(f"comparison-{kind}", measure, of, before=f"{KINDS[kind].heading}: ")
        yield bars(about, values, x_label="%")


def _table(runs: Sequence[RunFacts]) -> Table:
    first, *others = [_values(run) for run in runs]
    keys = list(dict.fromkeys(key for values in (first, *others) for key in values))
    rows = []
    for key in keys:
        cells = [f"{v[key]:.2f}" if key in v else "" for v in (first, *others)]
        changes = [
            f"{v[key] - first[key]:+.2f}" if key in v and key in first else "" for v in others
        ]
        rows.append([key.replace("/", " · "), *cells, *changes])
    header = ["measure", *[run.name for run in runs],
              *[f"{run.name} − {runs[0].name}" for run in runs[1:]]]  # fmt: skip
    return Table("Scores after training (%)", header, rows)


def _curves(runs: Sequence[RunFacts]) -> Iterator[Plot]:
    for curve in (*LEARNING, *SPEED):
        metric = next(iter(curve.lines.values()))
        lines: dict[str, Line] = {run.name: line(run.metrics, metric, curve.scale) for run in runs}
        yield from draw_curve(curve, lines, "comparison", "each run")
