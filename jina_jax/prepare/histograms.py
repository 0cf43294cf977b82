"""How the scores of a filter are distributed: as text, and as a picture."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from jina_jax.errors import UserError
from jina_jax.shards.manifest import ScoreHistogram
from jina_jax.system.plots import save_figure, style

_BARS = " ▁▂▃▄▅▆▇█"

Histograms = Mapping[tuple[str, str], ScoreHistogram]
"""(source, filter) → scores, as `data.explain.score_histograms` gives them."""


def bars(counts: tuple[int, ...], most: int) -> str:
    """A bar a bin, whose height is its share of `most`; what is not empty shows.

    Example: counts 0, 1, 100 of 100 give " ▁█".
    """
    heights = -(-np.array(counts) * (len(_BARS) - 1) // max(most, 1))
    return "".join(_BARS[height] for height in heights.tolist())


def text_histograms(histograms: Histograms) -> str:
    """Kept and dropped records by score, a pair of lines each, on a common scale."""
    blocks = []
    for (source, stage), h in histograms.items():
        most = max(*h.kept, *h.dropped)
        title = f"{source}: scores of {stage}, {h.low:g} to {h.high:g}, highest bar {most:,}"
        lines = [
            f"  {name:8}|{bars(counts, most)}| {sum(counts):,}"
            for name, counts in (("kept", h.kept), ("dropped", h.dropped))
        ]
        blocks.append("\n".join([title, *lines]))
    return "\n\n".join(blocks)


def plot_histograms(histograms: Histograms, path: Path) -> None:
    """Draws all histograms into one picture.

    Args:
      histograms: at least one.
      path: .png, .svg or .pdf.
    Raises: UserError when there is nothing to draw, or the ending is another one.
    """
    if not histograms:
        raise UserError("no filter of this folder gave scores: there is nothing to draw")
    if path.suffix not in (".png", ".svg", ".pdf"):
        raise UserError(f"cannot draw into {path}: give a name that ends in .png, .svg or .pdf")
    from matplotlib.figure import Figure

    with style():
        figure = Figure(figsize=(8, 2.4 * len(histograms)))
        axes = figure.subplots(len(histograms), squeeze=False)[:, 0]
        for axis, ((source, stage), h) in zip(axes, histograms.items(), strict=True):
            edges = np.linspace(h.low, h.high, len(h.kept) + 1)
            widths = np.diff(edges)
            axis.bar(edges[:-1], h.kept, widths, align="edge", label="kept")
            axis.bar(edges[:-1], h.dropped, widths, align="edge", bottom=h.kept, label="dropped")
            axis.set(title=f"{source}: {stage}", xlabel="score", ylabel="records", yscale="symlog")
            axis.legend()
    save_figure(figure, path, dpi=120)
