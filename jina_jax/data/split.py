"""The third step: holds pairs out for evaluation, and out of training what shares their texts."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from jina_jax.data.ledger import LedgerWriter, dropped_pair
from jina_jax.data.runs import batches, count_sources, map_table, write_table

SPLIT_VERSION = 1
"""Goes into the manifest; raise it when what is held out or dropped here changes."""


def held_out_pairs(unique: int, wanted: int) -> int:
    """How many pairs of a source to hold out: `wanted`, or a tenth where that is over half.

    Args:
      unique: pairs of the source.
      wanted: `eval_pairs`.
    Example: of 1,999 pairs 199 are held out for 1,000 wanted; of 2,000, 1,000; of 5, one.
    """
    if unique >= 2 * wanted:
        return wanted
    return min(wanted, max(1, unique // 10)) if unique > 1 else 0


def hold_out_task(
    tables: Sequence[Path], wanted: Sequence[int], files: Sequence[Path], hashes: Path
) -> list[tuple[int, ...]]:
    """Takes the first pairs of each source in shuffle order for evaluation.

    Args:
      tables: unique pairs, by key range in order.
      wanted: pairs per source.
      files: per source, the Parquet file for its held-out pairs; none is written for 0 pairs.
      hashes: file for the hashes of all held-out texts.
    Returns: per key range and source, how many pairs were taken from its start.
    """
    left = np.array(wanted)
    taken, found = [], []
    for path in tables:
        if not left.any():
            taken.append((0,) * len(left))
            continue
        table = map_table(path)
        source_N = table.column("source").to_numpy()
        rows = [np.flatnonzero(source_N == s)[:most] for s, most in enumerate(left)]
        found.append(table.take(pa.array(np.concatenate(rows))))
        taken.append(tuple(len(r) for r in rows))
        left = left - taken[-1]
    pairs = pa.concat_tables(found) if found else map_table(tables[0]).slice(0, 0)
    columns = ["query", "positive", "query_hash", "positive_hash"]
    for index, path in enumerate(files):
        mine = pairs.filter(pc.equal(pairs.column("source"), index)).select(columns)
        if len(mine):
            pq.write_table(mine.combine_chunks(), path, compression="zstd")
    texts = pa.concat_arrays(
        [chunk for name in columns[2:] for chunk in pairs.column(name).chunks]
        or [pa.array([], pairs.schema.field("query_hash").type)]
    )
    write_table(pa.table({"hash": texts}), hashes)
    return taken


@dataclass(frozen=True)
class SplitResult:
    """Per source: training pairs of one key range, and pairs dropped for a held-out text."""

    train: tuple[int, ...]
    shared: tuple[int, ...]


def split_task(
    table_path: Path,
    eval_rows: Sequence[int],
    hashes: Path,
    names: Sequence[str],
    out: Path,
    ledger: Path,
) -> SplitResult:
    """Takes the training pairs of a key range.

    Args:
      table_path: unique pairs.
      eval_rows: per source, how many from the start of the table are held out.
      hashes: of all held-out texts.
      names: of the sources.
      out: table of the training pairs, in shuffle order.
      ledger: file for the pairs dropped because they share a text with a held-out pair.
    """
    table = map_table(table_path)
    source_N = table.column("source").to_numpy()
    is_eval = np.zeros(len(table), bool)
    for index, count in enumerate(eval_rows):
        is_eval[np.flatnonzero(source_N == index)[:count]] = True
    held = map_table(hashes).column("hash").combine_chunks()
    shares_text = np.zeros(len(table), bool)
    for column in ("query_hash", "positive_hash"):
        shares_text |= pc.is_in(table.column(column), held).to_numpy()
    train = np.flatnonzero(~is_eval & ~shares_text)
    shared = np.flatnonzero(~is_eval & shares_text)
    write_table(table.take(pa.array(train)), out)
    with LedgerWriter(ledger) as writer:
        for batch in batches(table, shared):
            for row in batch.to_pylist():
                detail = "a text of it is held out for evaluation"
                writer.write(dropped_pair(row, names, "split", "held_out", detail))
    return SplitResult(
        count_sources(source_N[train], len(names)), count_sources(source_N[shared], len(names))
    )
