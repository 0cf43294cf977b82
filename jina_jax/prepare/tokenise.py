"""The last step: learns from the training texts and turns them into shards of token ids."""

import math
import tempfile
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, islice, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import xxhash
from tokenizers import Tokenizer

from jina_jax.config import TokenizerConfig
from jina_jax.prepare.guide import GuideEmbeddings
from jina_jax.prepare.sorted_runs import (
    BATCH_ROWS,
    GOLD,
    LABEL,
    TEXTS,
    batches,
    record_begins,
)
from jina_jax.prepare.stages import Partition
from jina_jax.shards.array_record import SMALL_VOCABULARY, ShardWriter, encode_record
from jina_jax.shards.manifest import ShardFile, ends_xxh3
from jina_jax.system.hashing import content_key, file_sha256
from jina_jax.system.store import Store, StoredFile, StoredFolder
from jina_jax.text.identity import NO_TEXT
from jina_jax.text.tokenizer import (
    TOKENIZER_FILE,
    build_tokenizer,
    largest_id,
    load_tokenizer,
    prompt_length,
)


@dataclass(frozen=True)
class Vocabulary:
    """The tokenizer that was made."""

    sha256: str
    """Of tokenizer.json."""
    size: int
    prompt_tokens: tuple[tuple[int, int], ...]
    """Of each source, before its queries and before its other texts."""
    name: str
    """Of its folder in the store."""
    files: tuple[str, ...]
    """Names in it."""

    def folder(self, store: Store) -> StoredFolder:
        """Holds the tokenizer."""
        return StoredFolder(store, self.name, self.files)


def vocabulary_task(
    config: TokenizerConfig,
    partitions: Sequence[Partition],
    prompts: Sequence[tuple[str, str]],
    out: StoredFolder,
) -> Vocabulary:
    """Learns the vocabulary.

    Args:
      config: says of what size.
      partitions: of training records, to learn from; no more are opened than have enough texts.
      prompts: of each source, which are counted.
      out: gets the tokenizer.
    """
    with tempfile.TemporaryDirectory() as folder:
        build_tokenizer(config, training_texts(partitions, config.train_texts), Path(folder))
        return _kept(Path(folder), prompts, out)


def fetched_vocabulary(
    config: TokenizerConfig, prompts: Sequence[tuple[str, str]], store: Store
) -> Vocabulary:
    """Fetches the vocabulary into a store, where it is addressed by its own bytes.

    Args:
      config: says where it is.
      prompts: of each source, which are counted.
      store: for the tokenizer.
    Raises: UserError when it cannot be had.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        build_tokenizer(config, None, folder)
        sums = {path.name: file_sha256(path) for path in folder.iterdir()}
        out = store.output("vocabulary", content_key("fetched", sums), "")
        return _kept(folder, prompts, StoredFolder(store, out.name))


def _kept(folder: Path, prompts: Sequence[tuple[str, str]], out: StoredFolder) -> Vocabulary:
    tokenizer = load_tokenizer(folder)
    counts = tuple((prompt_length(tokenizer, q), prompt_length(tokenizer, p)) for q, p in prompts)
    sha256 = file_sha256(folder / TOKENIZER_FILE)
    return Vocabulary(sha256, tokenizer.get_vocab_size(), counts, out.name, out.put(folder))


def training_texts(partitions: Sequence[Partition], most: int) -> Iterator[str]:
    """The first training texts in shuffle order, which are a random sample.

    Args:
      partitions: of training records, in order.
      most: gives exactly this many, or all when there are fewer.
    """
    return islice(_texts(partitions), most)


def _texts(partitions: Sequence[Partition]) -> Iterator[str]:
    for partition in partitions:
        table, row_N = partition.open()
        names = [name for name in TEXTS if name in table.column_names]
        for batch in batches(table, row_N):
            for texts in zip(*(batch.column(n).to_pylist() for n in names), strict=True):
                yield from filter(None, texts)


def partitions_needed(records: Sequence[int], most: int) -> int:
    """How many of the first partitions `training_texts` reads at most.

    Args:
      records: of each partition, all of at least two texts.
      most: of the texts.
    Example: of partitions of 10, 0, 10 and 10 records, the first three for 25 texts.
    """
    for part, held in enumerate(accumulate(records)):
        if 2 * held >= most:
            return part + 1
    return len(records)


@dataclass(frozen=True)
class Span:
    """Records of one source that a partition gives to a shard."""

    part: int
    """Number of the partition."""
    first: int
    """Among the partition's records of the source, in shuffle order."""
    end: int


def cut_shards(counts: Sequence[int], records_per_shard: int) -> list[list[Span]]:
    """Deals the records of a source out to as few shards as hold them, all of one size.

    Args:
      counts: the source's records in each partition.
      records_per_shard: most records of a shard.
    Returns: per shard the spans of which it is made, in order; shards differ by one record at most.
    Example: partitions of 3, 0 and 4 records and 4 records a shard make a shard of records 0, 1 and
      2 of partition 0, and one of the 4 of partition 2.
    """
    total = sum(counts)
    shards = -(-total // records_per_shard)
    bounds = [total * i // shards for i in range(shards + 1)] if total else [0]
    ends = list(accumulate(counts))
    found = []
    for first, end in pairwise(bounds):
        spans = []
        # The first partition with a record at or after `first`.
        for part in range(bisect_right(ends, first), len(counts)):
            start = ends[part] - counts[part]
            if start >= end:
                break
            if counts[part]:
                spans.append(Span(part, max(first - start, 0), min(end - start, counts[part])))
        found.append(spans)
    return found


@dataclass(frozen=True)
class EncodedShard:
    """A shard of one source."""

    file: ShardFile
    lengths: tuple[tuple[int, ...], ...]
    """Of queries, positives and negatives: how many have 0, 1, 2, ... tokens, up to the longest."""
    has_scores: bool
    """Whether its records hold a teacher's scores."""


def encode_task(
    parts: Sequence[tuple[Partition, int, int]], source: int, vocabulary: StoredFolder,
    max_text_tokens: int, negatives: int, prompts: tuple[str, str], guide: StoredFile | None,
    name: str, shard: StoredFile,
) -> EncodedShard:  # fmt: skip
    """Tokenises training records of one source into a shard.

    Args:
      parts: partitions of training records, in order, and as in `Span` which records of each.
      source: position among the configured sources.
      vocabulary: holds tokenizer.json.
      max_text_tokens: texts are cut to this many tokens, </s> included.
      negatives: most hard negatives of a record: 0 for pairs. Triplets of one query and positive
        that follow each other make a record; where they are fewer, texts of no tokens fill it up.
      prompts: before each query, and before each other text.
      guide: file of its embeddings of all texts; None for none.
      name: of the shard in the prepared folder.
      shard: the file to write.
    """
    tokenizer = load_tokenizer(vocabulary.local())
    tokenizer.enable_truncation(max_text_tokens)
    wide = largest_id(tokenizer) >= SMALL_VOCABULARY
    lengths = np.zeros((len(TEXTS), max_text_tokens + 1), np.int64)
    names = TEXTS if negatives else TEXTS[:2]
    has_scores = False
    embeddings = None if guide is None else GuideEmbeddings(guide)
    with shard.write() as path:
        with ShardWriter(path) as writer:
            for partition, first, end in parts:
                table, rows_of_source = partition.of_source(source)
                mine = rows_of_source[first:end]
                assert len(mine) == end - first, f"{partition.table} has fewer records than it had"
                scores = partition.teacher_scores(mine, len(names))
                has_scores = scores is not None
                records = _Records(writer, 2 + negatives, wide)
                begins = record_begins(table, mine, negatives)
                beside = _Beside.of(table, mine)
                for start in range(0, len(mine), BATCH_ROWS):
                    rows = slice(start, start + BATCH_ROWS)
                    batch = table.take(pa.array(mine[rows]))
                    ids = _tokenised(batch, names, begins[rows], tokenizer, prompts)
                    hashes = [batch.column(f"{name}_hash").to_pylist() for name in names]
                    of_rows = None if scores is None else scores[rows]
                    seen = None if embeddings is None else _seen(batch, names, ids, embeddings)
                    records.add(begins[rows], hashes, ids, of_rows, beside.part(rows), seen)
                    for text, found in enumerate(ids):
                        sizes = np.array([len(i) for i in found if i is not None], np.int64)
                        lengths[text] += np.bincount(sizes, minlength=max_text_tokens + 1)
                records.finish()
        size_bytes, sha256, ends = path.stat().st_size, file_sha256(path), ends_xxh3(path)
    texts = tuple(tuple(np.trim_zeros(row, "b").tolist()) for row in lengths[: len(names)])
    return EncodedShard(
        ShardFile(name, writer.records, size_bytes, sha256, ends), texts, has_scores
    )


@dataclass(frozen=True)
class _Beside:
    """What rows have beside their texts, a value a row; None where they have none."""

    labels: Sequence[int] | None
    """64-bit hashes."""
    golds: Sequence[float] | None

    @classmethod
    def of(cls, table: pa.Table, row_N: np.ndarray) -> "_Beside":
        """Of rows of one source."""

        def values(name: str) -> list[Any] | None:
            if name not in table.column_names:
                return None
            column = table.column(name).take(pa.array(row_N))
            # Null in all rows of a source without it.
            return None if column.null_count else column.to_pylist()

        labels = values(LABEL)
        hashes = None if labels is None else [xxhash.xxh3_64_intdigest(x.encode()) for x in labels]
        return cls(hashes, values(GOLD))

    def part(self, rows: slice) -> "_Beside":
        """Of some of the rows."""
        return _Beside(
            None if self.labels is None else self.labels[rows],
            None if self.golds is None else self.golds[rows],
        )


def _tokenised(
    batch: pa.Table,
    names: Sequence[str],
    begins: np.ndarray,
    tokenizer: Tokenizer,
    prompts: tuple[str, str],
) -> list[list[list[int] | None]]:
    """Ids of each text of each row; None where there is no negative, or the row before has the same
    query and positive.
    """
    found: list[list[list[int] | None]] = []
    for name in names:
        column = batch.column(name)
        needed = begins if name in TEXTS[:2] else pc.not_equal(column, "").to_numpy()
        prompt = prompts[name != TEXTS[0]]
        texts = [f"{prompt}{text}" for text in column.filter(pa.array(needed)).to_pylist()]
        ids = iter(tokenizer.encode_batch_fast(texts))
        found.append([next(ids).ids if is_needed else None for is_needed in needed.tolist()])
    return found


def _seen(
    batch: pa.Table, names: Sequence[str], ids: Sequence[Sequence[Any]], guide: GuideEmbeddings
) -> list[list[np.ndarray | None]]:
    """A guide's embedding of each text that has ids; None of the others."""
    found: list[list[np.ndarray | None]] = []
    for name, of_name in zip(names, ids, strict=True):
        is_there = [x is not None for x in of_name]
        texts = batch.column(name).filter(pa.array(is_there)).to_pylist()
        rows = iter(guide.of(texts, is_query=name == TEXTS[0]))
        found.append([next(rows) if there else None for there in is_there])
    return found


class _Records:
    """Puts rows together into records, which may reach from one batch of rows into the next."""

    def __init__(self, writer: ShardWriter, texts: int, wide: bool) -> None:
        self._writer, self._texts, self._wide = writer, texts, wide
        self._hashes: list[bytes] = []
        self._ids: list[Any] = []
        self._scores: list[float] = []
        self._seen: list[np.ndarray] = []
        self._label: int | None = None
        self._gold: float | None = None

    def add(
        self, begins: np.ndarray, hashes: Sequence[Sequence[bytes]],
        ids: Sequence[Sequence[Any]], score_NS: np.ndarray | None, beside: _Beside,
        seen: Sequence[Sequence[np.ndarray | None]] | None,
    ) -> None:  # fmt: skip
        score_NS = np.zeros((len(begins), 0), np.float32) if score_NS is None else score_NS
        none = [None] * len(begins)
        columns = (
            zip(*hashes, strict=True), zip(*ids, strict=True), score_NS.tolist(),
            beside.labels or none, beside.golds or none,
            none if seen is None else zip(*seen, strict=True),
        )  # fmt: skip
        for is_first, of_hashes, of_ids, of_scores, label, gold, of_guide in zip(
            begins.tolist(), *columns, strict=True
        ):
            if is_first:
                self.finish()
                self._hashes, self._ids, self._scores, self._seen = [], [], [], []
                self._label, self._gold = label, gold
            # Of the texts beside the query there may be scores.
            scores = [None, *of_scores] if of_scores else [None] * len(of_ids)
            self._seen += [z_G for z_G in of_guide or () if z_G is not None]
            for digest, ids_L, score in zip(of_hashes, of_ids, scores, strict=True):
                if ids_L is None:
                    continue
                self._hashes.append(digest)
                self._ids.append(ids_L)
                if score is not None:
                    self._scores.append(score)

    def finish(self) -> None:
        """Writes the record that is open."""
        if not self._ids:
            return
        missing = self._texts - len(self._ids)
        scores = [*self._scores, *[math.nan] * missing] if self._scores else []
        hashes = [*self._hashes, *[NO_TEXT] * missing]
        self._writer.write(
            encode_record(
                hashes, [*self._ids, *[()] * missing], scores,
                wide=self._wide, label=self._label, gold=self._gold,
                guide_NG=np.stack(self._seen) if self._seen else None,
            )
        )  # fmt: skip
        self._ids = []
