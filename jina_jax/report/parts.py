"""What a page is made of: figures, tables and plots, all in one style.

A page can exchange the colours of its plots for those of a dark one.
"""

import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

from jina_jax.system.plots import GRID, INK, MUTED, SERIES, save_figure, style


class Tile(NamedTuple):
    """A figure that stands for itself."""

    label: str
    value: str
    note: str = ""


class Table(NamedTuple):
    """Cells as text; the first column names the row, the others are aligned to the right."""

    caption: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    words: bool = False
    """Cells are words rather than numbers: all columns are aligned to the left."""


class About(NamedTuple):
    """What a picture is of."""

    name: str
    """Of its files: letters, digits, '_' and '-'."""
    title: str
    says: str
    """What it shows, in a sentence, for whoever cannot see it."""


class Plot(NamedTuple):
    """A picture, in words and numbers too."""

    about: About
    figure: Figure
    numbers: Table
    """What was drawn, or some of it."""


class Sample(NamedTuple):
    """A record that was dropped."""

    where: str
    detail: str
    texts: Sequence[tuple[str, str]]
    """(query, positive or negative; text)."""


class Samples(NamedTuple):
    """Dropped records of one source and reason."""

    title: str
    samples: Sequence[Sample]


class Code(NamedTuple):
    """A text as it is, folded away."""

    title: str
    text: str


class Group(NamedTuple):
    """Parts under a heading of their own; plots beside each other where the page is wide."""

    title: str
    parts: Sequence["Tile | Table | Plot | Samples | Code"]
    text: str = ""


@dataclass(frozen=True)
class Section:
    """A chapter of the page."""

    key: str
    """Anchor on the page, and beginning of the names of its plots."""
    title: str
    text: str
    groups: Sequence[Group]


_DASHES = ("-", (0, (5, 1.5)), (0, (1.5, 1.2)), (0, (6, 1.5, 1.5, 1.5)))
_WIDTH_INCHES = 4.1
_POINTS_SHOWN = 12

Line = Sequence[tuple[float, float]]
"""x and y of each point."""


def curves(
    about: About, lines: Mapping[str, Line], *, y_label: str = "", log: bool = False,
    from_zero: bool = False,
) -> Plot:  # fmt: skip
    """Lines over steps, told apart by colour and dash.

    Args:
      about: the picture.
      lines: by name, at least one.
      y_label: with the unit, where there is one.
      log: a logarithmic y axis.
      from_zero: the y axis begins at 0.
    """
    with style():
        figure, axes = _axes(2.5)
        for number, (label, points) in enumerate(lines.items()):
            marker = "o" if len(points) < 15 else ""
            axes.plot(*np.transpose(points), label=label, marker=marker, markersize=3.5,
                      linestyle=_DASHES[number % len(_DASHES)])  # fmt: skip
        axes.set(xlabel="step", ylabel=y_label, yscale="log" if log else "linear")
        if from_zero:
            axes.set_ylim(0, 1.08 * max(y for points in lines.values() for _, y in points) or 1)
        _legend(figure, list(lines))
    rows = []
    for label, points in lines.items():
        at = np.unique(np.linspace(0, len(points) - 1, _POINTS_SHOWN).round().astype(int))
        rows += [[label, f"{x:g}", f"{y:.4g}"] for x, y in (points[i] for i in at)]
    header = ["line", "step", y_label or about.title]
    return Plot(about, figure, Table(about.title, header, rows))


def bars(
    about: About, values: Mapping[str, Mapping[str, float | None]], *,
    x_label: str, digits: int = 1, spreads: Mapping[str, Mapping[str, float]] | None = None,
) -> Plot:  # fmt: skip
    """Horizontal bars in groups, each with its number.

    Args:
      about: the picture.
      values: group → bar → length; None leaves it out.
      x_label: with the unit.
      digits: decimals of the numbers.
      spreads: group → bar → half length of its error bar.
    """
    labels = list(dict.fromkeys(label for group in values.values() for label in group))
    height = 0.8 / len(labels)
    top = max((v for group in values.values() for v in group.values() if v), default=1.0)
    with style({"axes.grid.axis": "x"}):
        figure, axes = _axes(0.9 + 0.24 * len(values) * max(len(labels), 1.6))
        for number, label in enumerate(labels):
            there = [(i, g) for i, g in enumerate(values) if values[g].get(label) is not None]
            y = [row - 0.4 + height * (number + 0.5) for row, _ in there]
            width = [float(values[group][label] or 0) for _, group in there]
            error = [(spreads or {}).get(group, {}).get(label, 0.0) for _, group in there]
            axes.barh(
                y, width, height * 0.86, xerr=error if spreads else None, ecolor=INK, label=label,
                color=SERIES[number % len(SERIES)],
            )  # fmt: skip
            for at, value, half in zip(y, width, error, strict=True):
                end = max(value, 0) + half + 0.015 * top
                axes.text(end, at, f"{value:,.{digits}f}", va="center", fontsize=8.5)
        axes.set(xlabel=x_label, yticks=range(len(values)), yticklabels=[_short(g) for g in values])
        axes.set_xlim(right=1.16 * top)
        axes.invert_yaxis()
        _legend(figure, labels)
    rows = []
    for group, of_group in values.items():
        cells = [of_group.get(label) for label in labels]
        rows.append([group, *["" if v is None else f"{v:,.{digits}f}" for v in cells]])
    return Plot(about, figure, Table(f"{about.title} ({x_label})", ["", *labels], rows))


def stacked(about: About, values: Mapping[str, Mapping[str, int]], *, x_label: str) -> Plot:
    """One horizontal bar a group, made of parts.

    Args:
      about: the picture.
      values: group → part → length.
      x_label: with the unit.
    """
    labels = list(dict.fromkeys(label for group in values.values() for label in group))
    with style({"axes.grid.axis": "x"}):
        figure, axes = _axes(1.0 + 0.42 * len(values) + 0.18 * (-(-len(labels) // 3)))
        left = np.zeros(len(values))
        for number, label in enumerate(labels):
            width = np.array([group.get(label, 0) for group in values.values()], float)
            axes.barh(
                range(len(values)), width, 0.62, left=left, label=label,
                color=SERIES[number % len(SERIES)], hatch="" if number < len(SERIES) else "//",
            )  # fmt: skip
            left += width
        axes.set(xlabel=x_label, yticks=range(len(values)), yticklabels=[_short(g) for g in values])
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        axes.invert_yaxis()
        _legend(figure, labels)
    rows = [
        [g, *[f"{of_group.get(part, 0):,}" for part in labels]] for g, of_group in values.items()
    ]
    return Plot(about, figure, Table(f"{about.title} ({x_label})", ["", *labels], rows))


def histogram(
    about: About, edges: np.ndarray, counts: Mapping[str, np.ndarray], *,
    x_label: str, y_label: str, log: bool = False, side_by_side: bool = False,
) -> Plot:  # fmt: skip
    """Counts in bins, one on the other or as outlines over each other.

    Args:
      about: the picture.
      edges: of the bins, one more than there are bins.
      counts: by name, of each bin.
      x_label: with the unit.
      y_label: likewise.
      log: a logarithmic axis of the counts.
      side_by_side: outlines, where what is one on the other would make no sum.
    """
    with style():
        figure, axes = _axes(2.5)
        base = np.zeros(len(edges) - 1)
        for number, (label, values) in enumerate(counts.items()):
            if side_by_side:
                axes.stairs(values, edges, label=label, linewidth=1.8,
                            linestyle=_DASHES[number % len(_DASHES)])  # fmt: skip
            else:
                axes.bar(edges[:-1], values, np.diff(edges), bottom=base, align="edge", label=label)
                base = base + values
        axes.set(xlabel=x_label, ylabel=y_label, yscale="symlog" if log else "linear")
        axes.set_ylim(bottom=0)
        _legend(figure, list(counts))
    rows = [
        [f"{edges[i]:g} to {edges[i + 1]:g}", *[f"{v[i]:,.4g}" for v in counts.values()]]
        for i in range(len(edges) - 1)
        if any(v[i] for v in counts.values())
    ]
    return Plot(about, figure, Table(f"{about.title} ({y_label})", [x_label, *counts], rows))


def _axes(height_inches: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(_WIDTH_INCHES, height_inches))
    return figure, figure.subplots()


def _legend(figure: Figure, labels: Sequence[str]) -> None:
    """Below the axes, in as many columns as there is room for."""
    if len(labels) > 1:
        longest = max(map(len, labels))
        figure.legend(loc="outside lower center", ncols=max(1, min(3, 60 // (longest + 5))))


def _short(text: str) -> str:
    return text if len(text) <= 24 else text[:23] + "…"


def write_files(plot: Plot, folder: Path) -> None:
    """Writes NAME.png and NAME.svg, on white, into a folder."""
    for ending in ("png", "svg"):
        save_figure(plot.figure, folder / f"{plot.about.name}.{ending}", dpi=160)


def inline_svg(plot: Plot) -> str:
    """The picture as an element of a page: transparent, its colours as variables of the page."""
    text = io.StringIO()
    with style({"svg.hashsalt": plot.about.name, "svg.id": plot.about.name}):
        plot.figure.savefig(text, format="svg", transparent=True, metadata={"Date": None})
    svg = text.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    # Ids are only unique within a picture, and the page has many.
    name = plot.about.name
    svg = re.sub(rf'\bid="(?!{re.escape(name)})', f'id="{name}-', svg)
    svg = re.sub(r'((?:xlink:)?href="#|url\(#)', rf"\g<1>{name}-", svg)
    for number, colour in enumerate(SERIES):
        svg = svg.replace(colour, f"var(--series-{number})")
    for variable, colour in (("ink", INK), ("muted", MUTED), ("grid", GRID)):
        svg = svg.replace(colour, f"var(--{variable})")
    svg = re.sub(r"font: ([\d.]+px) [^;\"]+", r"font-size: \1; font-family: inherit", svg)
    return svg.replace("<svg ", f'<svg role="img" aria-labelledby="{name}-title" ', 1)
