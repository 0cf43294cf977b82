"""The report of an ablation as a picture."""

from pathlib import Path
from typing import Any

from jina_jax.ablate.report import AblationReport, mean_and_spread


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
    figure = Figure(figsize=(4.2 * panels, 0.55 * len(report.arms) + 2.0), layout="constrained")
    axes = figure.subplots(1, panels, sharey=True, squeeze=False)[0]
    for axis, name in zip(axes, names, strict=False):
        _plot_measure(axis, report, name)
    if has_filters:
        _plot_removed(axes[-1], report)
    axes[0].set_yticks(range(len(report.arms)), [arm.name for arm in report.arms])
    axes[0].invert_yaxis()
    figure.suptitle(report.name)
    # Without the date, the same figures give the same file.
    metadata = {"Date": None} if path.suffix == ".svg" else None
    figure.savefig(path, dpi=120, metadata=metadata)


def _plot_measure(axis: Any, report: AblationReport, name: str) -> None:
    """Each seed a dot, their mean a line, a standard deviation to either side.

    The references are left out: far from the arms, they would press these together.
    """
    for place, arm in enumerate(report.arms):
        values = [100 * value for value in arm.measures[name]]
        mean, spread = mean_and_spread(values)
        axis.plot(values, [place] * len(values), "o", color="tab:blue", markersize=5, alpha=0.6)
        axis.errorbar(mean, place, xerr=spread, fmt="|", color="black", capsize=6, markersize=18)
    seeds = f"{len(report.seeds)} seeds, mean ± deviation" if len(report.seeds) > 1 else "one seed"
    axis.set(xlabel=f"{name} (%)", title=seeds)
    axis.grid(axis="x", alpha=0.3)


def _plot_removed(axis: Any, report: AblationReport) -> None:
    filters = list(dict.fromkeys(f for arm in report.arms for f in arm.removed))
    left = [0.0] * len(report.arms)
    for name in filters:
        shares = [100 * arm.removed.get(name, 0) / arm.read for arm in report.arms]
        axis.barh(range(len(shares)), shares, left=left, label=name)
        left = [a + b for a, b in zip(left, shares, strict=True)]
    axis.set(xlabel="removed (% of what was read)", title="filters")
    axis.legend(fontsize="small")
