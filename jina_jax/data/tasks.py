"""The steps of preparation, each from files to files.

A task depends only on its arguments and writes only the files it is told to, so tasks of a stage
may run in any order, at once, or again. `prepare` is the order they run in.

    read (per source)  →  dedup (per key range)  →  hold_out  →  encode (per key range)
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from tokenizers import Tokenizer

from jina_jax.config import DataConfig, SourceConfig, UserError
from jina_jax.data.ledger import Dropped, LedgerWriter
from jina_jax.data.normalise import hash_normalised, normalise
from jina_jax.data.runs import (
    RunWriter,
    batches,
    hash_words,
    map_table,
    read_range,
    write_table,
)
from jina_jax.data.shards import ShardWriter, encode_record
from jina_jax.data.sources import read_source
from jina_jax.data.tokenizer import load_tokenizer
from jina_jax.progress import track
from jina_jax.types import BadRecord

VERSIONS = {"clean": 1, "dedup": 1, "held_out": 1}
"""Goes into the manifest; raise one when its rule changes."""
_JUDGED_AFTER = 1000
_SHOWN_BAD = 5


class UnusableError(UserError):
    """The sources cannot be used as they are; the ledger says which records are to blame."""


@dataclass(frozen=True)
class ReadResult:
    """What became of the records of one source."""

    runs: tuple[Path, ...]
    read: int
    bad: dict[str, int]
    dropped: dict[str, int]

    @property
    def kept(self) -> int:
        """Pairs in the runs."""
        return self.read - sum(self.bad.values()) - sum(self.dropped.values())


def read_task(
    config: DataConfig, index: int, folder: Path, ledger: Path, progress: bool
) -> ReadResult:
    """Reads a source, cleans it and writes it as sorted runs.

    Args:
      config: the data section.
      index: which of its sources.
      folder: for the runs.
      ledger: file for what is bad or dropped.
      progress: show it.
    Raises: UnusableError when more than `max_bad_share` of the records are bad, or no pair is left;
      UserError when the source cannot be read.
    """
    source = config.sources[index]
    runs = RunWriter(folder, index, config.seed)
    bad: Counter[str] = Counter()
    dropped: Counter[str] = Counter()
    shown: list[BadRecord] = []
    read = 0
    with LedgerWriter(ledger) as writer:
        for record in track(read_source(source), f"read {source.name}", enabled=progress):
            read += 1
            if isinstance(record, BadRecord):
                bad[record.reason] += 1
                shown = [*shown, record][:_SHOWN_BAD]
                reason, detail, origin = record
                writer.write(Dropped(source.name, *origin, "read", reason, detail))
                if read >= _JUDGED_AFTER:
                    _judge(source, read, bad.total(), config.max_bad_share, shown)
                continue
            query, positive = normalise(record.query), normalise(record.positive)
            if reason := _unclean(query, positive):
                dropped[reason] += 1
                writer.write(
                    Dropped(source.name, *record.origin, "clean", reason, "", None, *record[:2])
                )
                continue
            runs.add(record, hash_normalised(query), hash_normalised(positive), read)
        runs.flush()
    _judge(source, read, bad.total(), config.max_bad_share, shown)
    return ReadResult(tuple(runs.paths), read, dict(bad), dict(dropped))


def _unclean(query: str, positive: str) -> str:
    if not query:
        return "empty_query"
    if not positive:
        return "empty_positive"
    return "identical" if query == positive else ""


def _judge(
    source: SourceConfig, read: int, bad: int, max_bad_share: float, shown: Sequence[BadRecord]
) -> None:
    if bad <= max_bad_share * read:
        return
    examples = "\n".join(f"  {b.origin.file}:{b.origin.row} {b.reason}: {b.detail}" for b in shown)
    raise UnusableError(
        f"source {source.name!r}: {bad:,} of the first {read:,} records cannot be read "
        f"({bad / read:.1%}; data.max_bad_share allows {max_bad_share:.1%}). The first ones:\n"
        f"{examples}"
    )


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
                writer.write(_dropped(row, names, "dedup", "duplicate", detail))
    return DedupResult(
        _per_source(source[order[is_first]], len(names)),
        _per_source(source[order[~is_first]], len(names)),
    )


def _per_source(source_N: np.ndarray, sources: int) -> tuple[int, ...]:
    return tuple(int(n) for n in np.bincount(source_N, minlength=sources))


def _dropped(row: dict, names: Sequence[str], stage: str, reason: str, detail: str) -> Dropped:
    name = names[row["source"]]
    texts = (row["query"], row["positive"])
    return Dropped(name, row["file"], row["row"], stage, reason, detail, None, *texts)


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


def training_rows(
    table: pa.Table, eval_rows: Sequence[int], hashes: Path
) -> "tuple[np.ndarray, np.ndarray]":
    """Splits the pairs of a key range that are not held out.

    Args:
      table: unique pairs.
      eval_rows: per source, how many from its start are held out.
      hashes: of all held-out texts.
    Returns: row numbers to train on, and row numbers to drop because they share a text with a
      held-out pair; both int64, ascending.
    """
    is_eval = np.zeros(len(table), bool)
    source_N = table.column("source").to_numpy()
    for index, count in enumerate(eval_rows):
        is_eval[np.flatnonzero(source_N == index)[:count]] = True
    held = map_table(hashes).column("hash").combine_chunks()
    shares = [pc.is_in(table.column(c), held).to_numpy() for c in ("query_hash", "positive_hash")]
    shares_text = shares[0] | shares[1]
    return np.flatnonzero(~is_eval & ~shares_text), np.flatnonzero(~is_eval & shares_text)


def training_texts(
    tables: Sequence[Path], eval_rows: Sequence[Sequence[int]], hashes: Path, most: int
) -> Iterator[str]:
    """Training texts in shuffle order, evenly thinned out to at most `most`."""
    rows = [
        training_rows(map_table(path), taken, hashes)[0]
        for path, taken in zip(tables, eval_rows, strict=True)
    ]
    total = 2 * sum(len(r) for r in rows)
    keep = min(total, most)
    number = 0
    for path, kept in zip(tables, rows, strict=True):
        for batch in batches(map_table(path), kept):
            for pair in batch.select(["query", "positive"]).to_pylist():
                for text in (pair["query"], pair["positive"]):
                    # True exactly `keep` times in `total`, evenly spaced.
                    if (number + 1) * keep // total > number * keep // total:
                        yield text
                    number += 1


@dataclass(frozen=True)
class EncodeResult:
    """Per source: what a key range gave."""

    held_out: tuple[int, ...]
    records: tuple[int, ...]
    lengths: np.ndarray
    """int64 [sources, 2, max_text_tokens + 1]: how many queries and positives have each length."""


def encode_task(
    table_path: Path,
    eval_rows: Sequence[int],
    hashes: Path,
    names: Sequence[str],
    tokenizer_dir: Path,
    max_text_tokens: int,
    shards: Sequence[Path],
    ledger: Path,
) -> EncodeResult:
    """Tokenises the training pairs of a key range into one shard per source.

    Args:
      table_path: unique pairs.
      eval_rows: per source, how many from the start of the table are held out.
      hashes: of all held-out texts.
      names: of the sources.
      tokenizer_dir: holds tokenizer.json.
      max_text_tokens: texts are cut to this many tokens, </s> included.
      shards: per source, the file to write; none is written for 0 pairs.
      ledger: file for the pairs that share a text with a held-out one.
    """
    table = map_table(table_path)
    source_N = table.column("source").to_numpy()
    train, shared = training_rows(table, eval_rows, hashes)
    with LedgerWriter(ledger) as writer:
        for batch in batches(table, shared):
            for row in batch.to_pylist():
                detail = "a text of it is held out for evaluation"
                writer.write(_dropped(row, names, "split", "held_out", detail))
    tokenizer = load_tokenizer(tokenizer_dir)
    tokenizer.enable_truncation(max_text_tokens)
    lengths = np.zeros((len(names), 2, max_text_tokens + 1), np.int64)
    for index, path in enumerate(shards):
        mine = train[source_N[train] == index]
        if len(mine):
            with ShardWriter(path) as shard:
                for batch in batches(table, mine):
                    lengths[index] += _encode_batch(batch, tokenizer, shard, max_text_tokens)
    return EncodeResult(
        _per_source(source_N[shared], len(names)),
        _per_source(source_N[train], len(names)),
        lengths,
    )


def _encode_batch(
    batch: pa.Table, tokenizer: Tokenizer, shard: ShardWriter, max_text_tokens: int
) -> np.ndarray:
    columns = [batch.column(c).to_pylist() for c in ("query", "positive")]
    ids = [[e.ids for e in tokenizer.encode_batch_fast(texts)] for texts in columns]
    hashes = [batch.column(c).to_pylist() for c in ("query_hash", "positive_hash")]
    for record in zip(*hashes, *ids, strict=True):
        shard.write(encode_record(record[:2], record[2:]))
    counts = [np.bincount([len(i) for i in text], minlength=max_text_tokens + 1) for text in ids]
    return np.stack(counts)
