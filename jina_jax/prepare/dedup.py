"""The second step: one of each record, in shuffle order, for one key range of all sources."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from jina_jax.prepare.ledger import dropped_rows, open_ledger
from jina_jax.prepare.sorted_runs import batches, count_sources, load_runs, read_range, schema
from jina_jax.system.arrow import write_table
from jina_jax.text.identity import hash_words

DEDUP_VERSION = 3
"""Goes into the manifest; raise it when what is dropped here changes."""


@dataclass(frozen=True)
class DedupResult:
    """Per source: records kept and dropped in one key range."""

    unique: tuple[int, ...]
    duplicate: tuple[int, ...]


@dataclass(frozen=True)
class DedupRules:
    """What tasks of one preparation share."""

    names: tuple[str, ...]
    """Of the sources."""
    rank: tuple[int, ...]
    """Per source; of equal records the one whose source has the lowest rank is kept."""
    is_triplets: tuple[bool, ...]
    """Per source; a triplet is dropped where its own source has it already."""


def source_ranks(names: Sequence[str], priority: Sequence[str]) -> tuple[int, ...]:
    """Rank of each source: those named in `priority` come first, the others as listed.

    Example: sources a, b, c with priority (c,) have ranks 1, 2, 0.
    """
    order = [*priority, *[name for name in names if name not in priority]]
    return tuple(order.index(name) for name in names)


def dedup_task(
    runs: Path, keys: tuple[int, int], rules: DedupRules, out: Path, ledger: Path
) -> DedupResult:
    """Keeps one of each pair in a key range, and one of each triplet of a source, and sorts the
    records into shuffle order.

    Equal ones share a key, so no other range holds one. That of the source with the lowest
    rank, and there of the record read first, is kept.

    Args:
      runs: file that names those of all sources.
      keys: first key and the one after the last.
      rules: shared by all ranges.
      out: table of the unique records, in shuffle order.
      ledger: file for the dropped ones.
    """
    names = rules.names
    table = read_range(load_runs(runs), *keys, schema(3 if any(rules.is_triplets) else 2))
    source_N = table.column("source").to_numpy()
    order, is_first = _order(table, np.array(rules.rank)[source_N])
    sorted_N = source_N[order]
    is_first[1:] |= np.array(rules.is_triplets)[sorted_N[1:]] & (sorted_N[1:] != sorted_N[:-1])
    write_table(table.take(pa.array(order[is_first])), out)

    first_of_group = order[np.maximum.accumulate(np.where(is_first, np.arange(len(order)), 0))]
    lost, kept = order[~is_first], first_of_group[~is_first]
    with open_ledger(ledger) as writer:
        for rows, same in zip(batches(table, lost), batches(table, kept), strict=True):
            twin = pa.array(names, pa.string()).take(same.column("source"))
            file, row = (same.column(name).cast(pa.string()) for name in ("file", "row"))
            detail = pc.binary_join_element_wise("same as ", twin, " ", file, ":", row, "")
            writer.write_table(dropped_rows(rows, names, "dedup", "duplicate", detail))
    return DedupResult(
        count_sources(source_N[order[is_first]], len(names)),
        count_sources(source_N[lost], len(names)),
    )


def _order(table: pa.Table, rank_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows in shuffle order, equal ones together, and which of them begin a group of equals."""
    key_N, position_N = table.column("key").to_numpy(), table.column("position").to_numpy()
    words_Nx = hash_words(*[table.column(c) for c in table.column_names if c.endswith("_hash")])
    order = np.argsort(key_N, kind="stable")
    same_key = key_N[order[1:]] == key_N[order[:-1]]
    # Sorting by all columns is slow and matters only among rows that share a key.
    shares = np.zeros(len(order), bool)
    shares[1:] |= same_key
    shares[:-1] |= same_key
    rows = order[shares]
    order[shares] = rows[
        np.lexsort((position_N[rows], rank_N[rows], *words_Nx[rows].T, key_N[rows]))
    ]
    sorted_Nx = words_Nx[order]
    is_first = np.ones(len(order), bool)
    is_first[1:] = (sorted_Nx[1:] != sorted_Nx[:-1]).any(1)
    return order, is_first
