"""What became of one record, and how a filter's scores are distributed."""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq

from jina_jax.prepare.ledger import Dropped, ledger_batches
from jina_jax.prepare.sorted_runs import TEXTS
from jina_jax.shards.array_record import ShardSet
from jina_jax.shards.manifest import Manifest, ScoreHistogram, SourceSummary, load_manifest
from jina_jax.text.identity import normalise, text_hash

_RECORDS = 8192


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
    yield from _dropped(folder, normalise(text))
    wanted = text_hash(text)
    for source in manifest.sources:
        yield from _held_out(folder, source, wanted)
        yield from _trained(folder, source, wanted)


def _dropped(folder: Path, wanted: str) -> Iterator[Fate]:
    for batch in ledger_batches(folder):
        rows = range(len(batch))
        for name in TEXTS:
            column = batch.column(name).to_pylist()
            for i in rows:
                if column[i] is not None and normalise(column[i]) == wanted:
                    lost = Dropped(**batch.slice(i, 1).to_pylist()[0])
                    yield Fate("dropped", lost.source, name, lost.file, lost.row, lost)


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
    for shard in source.shards:
        reader = ShardSet([folder / shard.path])
        for start in range(0, shard.records, _RECORDS):
            end = min(start + _RECORDS, shard.records)
            same_NS = (reader.read(range(start, end)).hashes_NSx2 == half_2[None, None]).all(2)
            for record, text in np.argwhere(same_NS).tolist():
                yield Fate("trained", source.name, TEXTS[min(text, 2)], shard.path, start + record)


def score_histograms(manifest: Manifest) -> dict[tuple[str, str], ScoreHistogram]:
    """(source, filter) → its scores, for filters that give scores and sources they looked at."""
    return {
        (source.name, stage.stage): stage.scores
        for source in manifest.sources
        for stage in source.stages
        if stage.scores is not None
    }
