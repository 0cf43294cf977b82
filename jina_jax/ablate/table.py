"""The report of an ablation in tables: one row an arm, as those of the paper have."""

from collections.abc import Sequence
from typing import NamedTuple

from jina_jax.ablate.report import AblationReport, ArmReport, gains, mean_and_spread
from jina_jax.system.terminal import table


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


def _measures(report: AblationReport) -> Cells:
    """Means over the seeds, and what each filter removed."""
    filters = list(dict.fromkeys(f for arm in report.arms for f in arm.removed))
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
