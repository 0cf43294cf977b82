"""The figures of an ablation, as tables and as a picture."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jina_jax.ablate.noise import Detection
from jina_jax.system.plots import INK, SERIES, save_figure, style
from jina_jax.system.terminal import table

ABLATION_FILE = "ablation.json"
"""Of the work folder: an `AblationReport`."""


@dataclass(frozen=True)
class ArmReport:
    """One arm, over all seeds."""

    name: str
    changes: dict[str, Any]
    """Field → value, as in `Arm`."""
    read: int
    """Records of its sources."""
    trained_on: int
    """Records left to train on."""
    removed: dict[str, int]
    """Filter → records that it dropped."""
    measures: dict[str, tuple[float, ...]]
    """Measure → value in 0..1 of each seed."""
    found: dict[str, Detection]
    """Filter → what it found of planted noise; empty where none was planted."""


@dataclass(frozen=True)
class AblationReport:
    """All arms."""

    name: str
    seeds: tuple[int, ...]
    injected: dict[str, int]
    """Pairs by what they are; empty where nothing was planted."""
    references: dict[str, dict[str, float]]
    """`untrained` and `bm25` → measure → value in 0..1, on the same held-out pairs."""
    arms: tuple[ArmReport, ...]


def mean_and_spread(values: Sequence[float]) -> tuple[float, float]:
    """Mean and standard deviation (of a sample: n - 1) of the seeds; the latter 0 of one seed.

    Example: 1, 2 and 3 give (2.0, 1.0).
    """
    spread = statistics.stdev(values) if len(values) > 1 else 0.0
    return statistics.fmean(values), spread


def gains(arm: ArmReport, first: ArmReport, name: str) -> tuple[float, ...]:
    """By how much an arm is above the first in a measure, seed by seed.

    Both start a seed from the same weights, so that the differences vary less than the values.
    """
    pairs = zip(arm.measures[name], first.measures[name], strict=True)
    return tuple(value - of_first for value, of_first in pairs)


class Cells(NamedTuple):
    """A table; the first cell of the header says what it is of."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]


def ablation_tables(report: AblationReport) -> list[Cells]:
    """All tables of an ablation."""
    tables = [_measures(report)]
    if len(report.seeds) > 1:
        tables.append(_seeds(report))
    if report.injected:
        tables.append(_found(report))
    return tables


def ablation_text(report: AblationReport) -> str:
    """All tables of an ablation, for the terminal."""
    return "\n\n".join(table(*cells) for cells in ablation_tables(report))


def _percent(value: float | None, digits: int = 2) -> str:
    return "" if value is None else f"{100 * value:.{digits}f}"


def _filters(report: AblationReport) -> list[str]:
    return list(dict.fromkeys(f for arm in report.arms for f in arm.removed))


def _measures(report: AblationReport) -> Cells:
    """Means over the seeds, and what each filter removed."""
    filters = _filters(report)
    names = list(report.arms[0].measures)
    header = [
        f"{report.name} ({_seed_words(report)}, in %)", "trained on",
        *[f"removed: {f}" for f in filters], *names, f"{names[0]} − {report.arms[0].name}",
    ]  # fmt: skip
    rows = [_measures_row(arm, report.arms[0], filters, names) for arm in report.arms]
    for system, values in report.references.items():
        shown = [_percent(values.get(name)) for name in names]
        rows.append([f"({system})", "", *[""] * len(filters), *shown, ""])
    return Cells(header, rows)


def _seed_words(report: AblationReport) -> str:
    count = len(report.seeds)
    return f"mean ± standard deviation of {count} seeds" if count > 1 else "one seed"


def _measures_row(
    arm: ArmReport, first: ArmReport, filters: list[str], names: list[str]
) -> list[str]:
    removed = [_percent(arm.removed[f] / arm.read) if f in arm.removed else "" for f in filters]
    values = [_with_spread(arm.measures[name]) for name in names]
    gain = "" if arm is first else _with_spread(gains(arm, first, names[0]), sign="+")
    return [arm.name, f"{arm.trained_on:,}", *removed, *values, gain]


def _with_spread(values: tuple[float, ...], sign: str = "") -> str:
    mean, spread = mean_and_spread(values)
    shown = f"{100 * mean:{sign}.2f}"
    return f"{shown} ± {100 * spread:.2f}" if len(values) > 1 else shown


def _seeds(report: AblationReport) -> Cells:
    """The first measure, seed by seed."""
    name = next(iter(report.arms[0].measures))
    rows = [[arm.name, *[_percent(v) for v in arm.measures[name]]] for arm in report.arms]
    return Cells([f"{name} (%)", *[f"seed {seed}" for seed in report.seeds]], rows)


def _found(report: AblationReport) -> Cells:
    """What each filter found of the planted noise."""
    planted = ", ".join(
        f"{count:,} {kind}" for kind, count in report.injected.items() if kind != "held_out"
    )
    rows = [
        [
            f"{arm.name} · {name}", f"{found.clean:,}", f"{found.mismatched:,}",
            f"{found.foreign:,}", _percent(found.precision), _percent(found.recall),
            f"{found.sought:,} {found.kind}",
        ]
        for arm in report.arms
        for name, found in arm.found.items()
    ]  # fmt: skip
    header = [
        f"of {planted} pairs", "clean dropped", "mismatched dropped", "foreign dropped",
        "precision (%)", "recall (%)", "of",
    ]  # fmt: skip
    return Cells(header, rows)


def plot_ablation(report: AblationReport, path: Path) -> None:
    """Draws every measure, and what each filter removed.

    Args:
      report: at least one arm.
      path: .png, .svg or .pdf.
    """
    from matplotlib.figure import Figure

    names = list(report.arms[0].measures)
    has_filters = any(arm.removed for arm in report.arms)
    panels = len(names) + has_filters
    with style({"axes.grid.axis": "x"}):
        figure = Figure(figsize=(4.2 * panels, 0.55 * len(report.arms) + 2.0))
        axes = figure.subplots(1, panels, sharey=True, squeeze=False)[0]
        for axis, name in zip(axes, names, strict=False):
            _plot_measure(axis, report, name)
        if has_filters:
            _plot_removed(axes[-1], report)
        axes[0].set_yticks(range(len(report.arms)), [arm.name for arm in report.arms])
        axes[0].invert_yaxis()
        figure.suptitle(report.name)
    save_figure(figure, path, dpi=120)


def _plot_measure(axis: Any, report: AblationReport, name: str) -> None:
    """Each seed is a dot, their mean a line, with a standard deviation to either side.

    The references are left out: they are far from the arms and would press these together.
    """
    for place, arm in enumerate(report.arms):
        values = [100 * value for value in arm.measures[name]]
        mean, spread = mean_and_spread(values)
        axis.plot(values, [place] * len(values), "o", color=SERIES[0], markersize=5, alpha=0.6)
        axis.errorbar(mean, place, xerr=spread, fmt="|", color=INK, capsize=6, markersize=18)
    seeds = f"{len(report.seeds)} seeds, mean ± deviation" if len(report.seeds) > 1 else "one seed"
    axis.set(xlabel=f"{name} (%)", title=seeds)


def _plot_removed(axis: Any, report: AblationReport) -> None:
    left = np.zeros(len(report.arms))
    for name in _filters(report):
        shares = np.array([100 * arm.removed.get(name, 0) / arm.read for arm in report.arms])
        axis.barh(range(len(shares)), shares, left=left, label=name)
        left += shares
    axis.set(xlabel="removed (% of what was read)", title="filters")
    axis.legend()
