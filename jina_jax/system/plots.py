"""The style of all plots. matplotlib is imported where something is drawn."""

from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

INK, MUTED, GRID = "#1d2733", "#5d6876", "#d8dee6"
SERIES = (
    "#2f6fbb", "#c8591a", "#2b8a57", "#8a4fa8", "#b3304a", "#6b6a20", "#227e8c", "#7a5a44",
)  # fmt: skip
"""Of lines and bars, in this order; the page of a report has variables of these numbers."""
_STYLE = {
    "axes.axisbelow": True,
    "axes.edgecolor": MUTED,
    "axes.grid": True,
    "axes.labelcolor": MUTED,
    "axes.labelsize": 9,
    "axes.prop_cycle": f"cycler(color={list(SERIES)})",
    "axes.spines.right": False,
    "axes.spines.top": False,
    "figure.constrained_layout.use": True,
    "font.size": 10,
    "grid.color": GRID,
    "grid.linewidth": 0.7,
    "legend.fontsize": 9,
    "legend.frameon": False,
    "lines.linewidth": 1.8,
    "svg.fonttype": "none",
    "text.color": INK,
    "xtick.color": MUTED,
    "xtick.labelsize": 9,
    "ytick.color": MUTED,
    "ytick.labelsize": 9,
}


def style(changes: Mapping[str, Any] | None = None) -> AbstractContextManager[None]:
    """Draws in the style of the house, with some of matplotlib's settings changed."""
    import matplotlib as mpl

    return mpl.rc_context(_STYLE | dict(changes or {}))


def save_figure(figure: Any, path: Path, *, dpi: int) -> None:
    """Writes a picture on white: .png, .svg or .pdf. The same picture gives the same bytes."""
    # The date of the file stands in SVG and PDF.
    metadata = {".svg": {"Date": None}, ".pdf": {"CreationDate": None}}.get(path.suffix)
    with style({"svg.hashsalt": path.stem}):
        figure.savefig(path, dpi=dpi, facecolor="white", metadata=metadata)
