"""Holds records out for evaluation, and out of training what shares their texts."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from jina_jax.prepare.ledger import dropped_rows, open_ledger
from jina_jax.prepare.sorted_runs import (
    GOLD,
    LABEL,
    TEXTS,
    batches,
    count_sources,
    negative_places,
    write_rows,
)
from jina_jax.prepare.stages import Partition, record_batch
from jina_jax.system.arrow import map_table, write_table
from jina_jax.system.store import StoredFile
from jina_jax.text.identity import HASH_BYTES, NO_TEXT

SPLIT_VERSION = 2
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


def first_records(records: Sequence[Sequence[int]], wanted: Sequence[int]) -> list[tuple[int, ...]]:
    """How many records of each source are taken from the start of each partition.

    Args:
      records: per partition and source.
      wanted: per source, of all partitions together.
    Example: of 3, 0 and 4 records 3, 0 and 2 are taken for 5 wanted.
    """
    left, taken = np.array(wanted), []
    for of_part in records:
        taken.append(tuple(np.minimum(left, of_part).tolist()))
        left = left - taken[-1]
    return taken


def hold_out_task(
    partitions: Sequence[Partition], taken: Sequence[Sequence[int]], files: Sequence[StoredFile],
    hashes: StoredFile,
) -> int:  # fmt: skip
    """Takes the first records of each source in shuffle order for evaluation.

    Args:
      partitions: those of which any are taken, in order; at least one.
      taken: per partition and source, how many.
      files: per source, the Parquet file for its held-out records; none is written for 0.
      hashes: file for the hashes of all held-out texts.
    Returns: how many in all.
    """
    found = []
    for partition, of_part in zip(partitions, taken, strict=True):
        table, row_N = partition.open()
        source_N = table.column("source").to_numpy()[row_N]
        rows = [row_N[source_N == s][:most] for s, most in enumerate(of_part)]
        found.append(table.take(pa.array(np.concatenate(rows))))
    records = pa.concat_tables(found)
    texts = [name for name in TEXTS if name in records.column_names]
    for index, file in enumerate(files):
        mine = records.filter(pc.equal(records.column("source"), index))
        if len(mine):
            columns = pa.Table.from_batches([record_batch(mine)])
            for name in (LABEL, GOLD):
                if name in mine.column_names and not mine.column(name).null_count:
                    columns = columns.append_column(name, mine.column(name).combine_chunks())
            with file.write() as part:
                pq.write_table(columns, part, compression="zstd")
    held = [chunk.drop_null() for name in texts for chunk in records.column(f"{name}_hash").chunks]
    column = pa.chunked_array(held, pa.binary(HASH_BYTES))
    column = column.filter(pc.not_equal(column, pa.scalar(NO_TEXT, column.type)))
    write_table(pa.table({"hash": column}), hashes)
    return len(records)


@dataclass(frozen=True, slots=True)
class SplitResult:
    """Per source: training records of one partition, those dropped for a held-out text, and the
    most negatives of one query and positive.
    """

    train: tuple[int, ...]
    shared: tuple[int, ...]
    negatives: tuple[int, ...]


def split_task(
    partition: Partition,
    eval_rows: Sequence[int],
    hashes: StoredFile,
    names: Sequence[str],
    out: StoredFile,
    ledger: StoredFile,
) -> SplitResult:
    """Takes the training records of a partition.

    Args:
      partition: records that every filter kept.
      eval_rows: per source, how many from the start of the partition are held out.
      hashes: of all held-out texts.
      names: of the sources.
      out: file for the numbers of the rows to train on.
      ledger: file for the records dropped because they share a text with a held-out one.
    """
    table, row_N = partition.open()
    source_N = table.column("source").to_numpy()
    is_left = np.zeros(len(table), bool)
    is_left[row_N] = True
    for index, count in enumerate(eval_rows):
        is_left[row_N[source_N[row_N] == index][:count]] = False
    held = map_table(hashes.local()).column("hash").combine_chunks()
    shares_text = np.zeros(len(table), bool)
    if len(held):
        for name in table.column_names:
            if name.endswith("_hash"):
                shares_text |= pc.is_in(table.column(name), held, skip_nulls=True).to_numpy()
    train = np.flatnonzero(is_left & ~shares_text)
    shared = np.flatnonzero(is_left & shares_text)
    write_rows(train, out)
    with open_ledger(ledger) as writer:
        detail = "a text of it is held out for evaluation"
        for batch in batches(table, shared):
            writer.write_table(dropped_rows(batch, names, "split", "held_out", detail))
    return SplitResult(
        count_sources(source_N[train], len(names)),
        count_sources(source_N[shared], len(names)),
        tuple(_most_negatives(table, train[source_N[train] == s]) for s in range(len(names))),
    )


def _most_negatives(table: pa.Table, row_N: np.ndarray) -> int:
    if "negative_hash" not in table.column_names or not len(row_N):
        return 0
    return int(negative_places(table, row_N)[1].max()) + 1
