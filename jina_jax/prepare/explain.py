"""What became of one record, and how the scores of a filter are distributed."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq

from jina_jax.errors import UserError
from jina_jax.prepare.ledger import Dropped, dropped_with
from jina_jax.prepare.sorted_runs import TEXTS
from jina_jax.shards.manifest import Manifest, ScoreHistogram, SourceSummary, load_manifest
from jina_jax.shards.remote import places
from jina_jax.shards.shard_set import ShardSet
from jina_jax.system.plots import save_figure, style
from jina_jax.text.identity import text_hash


class Fate(NamedTuple):
    """Where a record that holds the text is now."""

    fate: str
    """`trained`, `held_out` or `dropped`."""
    source: str
    text: str
    """Which of its texts: `query`, `positive` or `negative`."""
    file: str
    """Shard or held-out file, relative to the folder; for what was dropped, the ledger."""
    number: int
    """Record of the shard or row of the held-out file, from 0; for what was dropped, its row in
    the source."""
    dropped: Dropped | None = None
    """Stage, reason, detail and score of what was dropped."""


def explain(folder: Path, text: str) -> Iterator[Fate]:
    """Finds every record with a text, whatever its spelling; reads the folder as it goes.

    Args:
      folder: the prepared folder.
      text: a query, positive or negative; it matches what `normalise`s to the same.
    Returns: records dropped, then held out, then trained on; none for a text that was not read, or
      stood in a record that could not be.
    Raises: UserError when the folder is not whole.
    """
    manifest = load_manifest(folder)
    for name, lost in dropped_with(folder, text):
        yield Fate("dropped", lost.source, name, lost.file, lost.row, lost)
    wanted = text_hash(text)
    for source in manifest.sources:
        yield from _held_out(folder, source, wanted)
        yield from _trained(folder, source, wanted)


def _held_out(folder: Path, source: SourceSummary, wanted: bytes) -> Iterator[Fate]:
    if source.eval_path is None:
        return
    table = pq.read_table(folder / source.eval_path)
    for name in TEXTS:
        if name in table.column_names:
            same = pc.equal(table.column(f"{name}_hash"), wanted).to_numpy()
            for row in np.flatnonzero(same).tolist():
                yield Fate("held_out", source.name, name, source.eval_path, row)


def _trained(folder: Path, source: SourceSummary, wanted: bytes) -> Iterator[Fate]:
    half_2 = np.frombuffer(wanted, "<u8")
    for place, shard in zip(places(folder, source), source.shards, strict=True):
        before = 0
        for records in ShardSet([place], [shard.records]).batches():
            same_NS = (records.hashes_NSx2 == half_2[None, None]).all(2)
            for record, text in np.argwhere(same_NS).tolist():
                yield Fate("trained", source.name, TEXTS[min(text, 2)], shard.path, before + record)
            before += len(records)


def score_histograms(manifest: Manifest) -> dict[tuple[str, str], ScoreHistogram]:
    """(source, filter) → its scores, for filters that give scores and sources they looked at."""
    return {
        (source.name, stage.stage): stage.scores
        for source in manifest.sources
        for stage in source.stages
        if stage.scores is not None
    }


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
