"""The second step: one of each record, in shuffle order, for one key range of all sources."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import xxhash

from jina_jax.prepare.exchange import Exchange
from jina_jax.prepare.ledger import dropped_rows, open_ledger
from jina_jax.prepare.sorted_runs import (
    LABEL,
    Columns,
    batches,
    count_sources,
    lost_and_kept,
    read_range,
    schema,
    unique_order,
)
from jina_jax.system.arrow import write_table
from jina_jax.system.store import StoredFile
from jina_jax.text.identity import hash_words

DEDUP_VERSION = 3
"""Goes into the manifest; raise it when what is dropped here changes."""


@dataclass(frozen=True, slots=True)
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
    """Per source; a triplet is dropped where its own source has it already, with its label."""
    is_scored: tuple[bool, ...]
    """Per source; a scored pair is dropped where its own source has its two texts already,
    whatever the scores. Nothing else is dropped for it."""
    columns: Columns


def source_ranks(names: Sequence[str], priority: Sequence[str]) -> tuple[int, ...]:
    """Rank of each source: those named in `priority` come first, the others as listed.

    Example: sources a, b, c with priority (c,) have ranks 1, 2, 0.
    """
    order = [*priority, *[name for name in names if name not in priority]]
    return tuple(order.index(name) for name in names)


def dedup_task(
    exchange: Exchange, keys: tuple[int, int], rules: DedupRules, out: StoredFile,
    ledger: StoredFile,
) -> DedupResult:  # fmt: skip
    """Keeps one of each pair in a key range, and one of each triplet and of each scored pair of a
    source, and sorts the records into shuffle order.

    Equal ones share a key, so no other range holds one. That of the source with the lowest
    rank, and there of the record read first, is kept. Memory holds the range's records three times.

    Args:
      exchange: of the runs of all sources.
      keys: first key and the one after the last.
      rules: shared by all ranges.
      out: table of the unique records, in shuffle order.
      ledger: file for the dropped ones.
    """
    names = rules.names
    table = read_range(exchange, *keys, schema(rules.columns))
    source_N = table.column("source").to_numpy()
    hashes = [table.column(c) for c in table.column_names if c.endswith("_hash")]
    order, is_first = unique_order(
        table.column("key").to_numpy(),
        table.column("position").to_numpy(),
        np.hstack([hash_words(*hashes), _apart(table, rules)[:, None]]),
        np.array(rules.rank)[source_N],
    )
    sorted_N = source_N[order]
    is_first[1:] |= np.array(rules.is_triplets)[sorted_N[1:]] & (sorted_N[1:] != sorted_N[:-1])
    write_table(table.take(pa.array(order[is_first])), out)
    lost, kept = lost_and_kept(order, is_first)
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


def _apart(table: pa.Table, rules: DedupRules) -> np.ndarray:
    """uint64 [N]: differs for records that are as different as if they had other texts.

    These are scored pairs of two sources, and triplets of two labels, whose negatives cannot be
    those of one record.
    """
    source_N = table.column("source").to_numpy()
    apart_N = np.where(np.array(rules.is_scored)[source_N], source_N.astype(np.uint64) + 1, 0)
    if rules.columns.labels:
        labels = table.column(LABEL).combine_chunks().dictionary_encode()
        known = [
            xxhash.xxh3_64_intdigest(label.encode()) for label in labels.dictionary.to_pylist()
        ]
        number_N = labels.indices.fill_null(len(known)).to_numpy()
        is_triplet_N = np.array(rules.is_triplets)[source_N]
        apart_N = np.where(is_triplet_N, np.array([*known, 0], np.uint64)[number_N], apart_N)
    return apart_N.astype(np.uint64)
