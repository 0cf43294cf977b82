"""The second step: one of each pair, in shuffle order, for one key range of all sources."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from jina_jax.data.ledger import LedgerWriter, dropped_pair
from jina_jax.data.runs import batches, count_sources, hash_words, read_range, write_table

DEDUP_VERSION = 1
"""Goes into the manifest; raise it when what is dropped here changes."""


@dataclass(frozen=True)
class DedupResult:
    """Per source: pairs kept and dropped in one key range."""

    unique: tuple[int, ...]
    duplicate: tuple[int, ...]


def dedup_task(
    runs: Sequence[Path], keys: tuple[int, int], names: Sequence[str], out: Path, ledger: Path
) -> DedupResult:
    """Keeps one of each pair in a key range and sorts them into shuffle order.

    Equal pairs share a key, so no other range holds one. The pair of the source listed first, and
    of the record read first, is kept.

    Args:
      runs: of all sources.
      keys: first key and the one after the last.
      names: of the sources.
      out: table of the unique pairs, in shuffle order.
      ledger: file for the dropped ones.
    """
    table = read_range(runs, *keys)
    pair_Nx4 = np.hstack(
        [hash_words(table.column("query_hash")), hash_words(table.column("positive_hash"))]
    )
    key, source, position = (table.column(c).to_numpy() for c in ("key", "source", "position"))
    order = np.lexsort((position, source, *pair_Nx4.T, key))
    sorted_Nx4 = pair_Nx4[order]
    is_first = np.ones(len(order), bool)
    is_first[1:] = (sorted_Nx4[1:] != sorted_Nx4[:-1]).any(1)
    write_table(table.take(pa.array(order[is_first])), out)

    first_of_group = order[np.maximum.accumulate(np.where(is_first, np.arange(len(order)), 0))]
    with LedgerWriter(ledger) as writer:
        lost, kept = order[~is_first], first_of_group[~is_first]
        for rows, same in zip(batches(table, lost), batches(table, kept), strict=True):
            for row, twin in zip(rows.to_pylist(), same.to_pylist(), strict=True):
                detail = f"same as {names[twin['source']]} {twin['file']}:{twin['row']}"
                writer.write(dropped_pair(row, names, "dedup", "duplicate", detail))
    return DedupResult(
        count_sources(source[order[is_first]], len(names)),
        count_sources(source[order[~is_first]], len(names)),
    )
