"""The last step: learns from the training texts and turns them into shards of token ids."""

import math
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, count, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from tokenizers import Tokenizer

from jina_jax.config import TokenizerConfig
from jina_jax.prepare.sorted_runs import (
    BATCH_ROWS,
    TEXTS,
    batches,
    negative_places,
)
from jina_jax.prepare.stages import Partition
from jina_jax.shards.array_record import SMALL_VOCABULARY, ShardWriter, encode_record
from jina_jax.shards.manifest import ShardFile, ends_xxh3
from jina_jax.system.atomic import atomic_file, atomic_folder
from jina_jax.system.hashing import file_sha256
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


def vocabulary_task(
    config: TokenizerConfig,
    partitions: Sequence[Partition],
    prompts: Sequence[tuple[str, str]],
    folder: Path,
) -> Vocabulary:
    """Fetches the vocabulary, or learns it.

    Args:
      config: says which.
      partitions: of training records, to learn from; empty to fetch.
      prompts: of each source, which are counted.
      folder: appears, with the tokenizer.
    """
    texts = training_texts(partitions, config.train_texts) if partitions else None
    with atomic_folder(folder) as part:
        build_tokenizer(config, texts, part)
    tokenizer = load_tokenizer(folder)
    counts = tuple((prompt_length(tokenizer, q), prompt_length(tokenizer, p)) for q, p in prompts)
    return Vocabulary(file_sha256(folder / TOKENIZER_FILE), tokenizer.get_vocab_size(), counts)


def training_texts(partitions: Sequence[Partition], most: int) -> Iterator[str]:
    """Training texts in shuffle order, evenly thinned out to at most `most`.

    Args:
      partitions: of training records, in order.
      most: gives exactly this many, or all when there are fewer.
    """
    total = sum(_count_texts(*partition.open()) for partition in partitions)
    keep = min(total, most)
    numbers = count()
    for partition in partitions:
        table, row_N = partition.open()
        names = [name for name in TEXTS if name in table.column_names]
        for batch in batches(table, row_N):
            for texts in zip(*(batch.column(n).to_pylist() for n in names), strict=True):
                for text in texts:
                    if not text:
                        continue
                    number = next(numbers)
                    # True exactly `keep` times in `total`, evenly spaced.
                    if (number + 1) * keep // total > number * keep // total:
                        yield text


def _count_texts(table: pa.Table, row_N: np.ndarray) -> int:
    rows = pa.array(row_N)
    hashes = [table.column(f"{n}_hash").take(rows) for n in TEXTS if n in table.column_names]
    return sum(
        pc.sum(pc.not_equal(column, pa.scalar(NO_TEXT, column.type))).as_py() or 0
        for column in hashes
    )


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
    parts: Sequence[tuple[Partition, int, int]], source: int, tokenizer_dir: Path,
    max_text_tokens: int, negatives: int, prompts: tuple[str, str], shard: Path,
) -> EncodedShard:  # fmt: skip
    """Tokenises training records of one source into a shard.

    Args:
      parts: partitions of training records, in order, and as in `Span` which records of each.
      source: position among the configured sources.
      tokenizer_dir: holds tokenizer.json.
      max_text_tokens: texts are cut to this many tokens, </s> included.
      negatives: most hard negatives of a record: 0 for pairs. Triplets of one query and positive
        that follow each other make a record; where they are fewer, texts of no tokens fill it up.
      prompts: before each query, and before each other text.
      shard: the file to write.
    """
    tokenizer = load_tokenizer(tokenizer_dir)
    tokenizer.enable_truncation(max_text_tokens)
    wide = largest_id(tokenizer) >= SMALL_VOCABULARY
    lengths = np.zeros((len(TEXTS), max_text_tokens + 1), np.int64)
    names = TEXTS if negatives else TEXTS[:2]
    has_scores = False
    with atomic_file(shard) as part, ShardWriter(part) as writer:
        for partition, first, end in parts:
            table, rows_of_source = partition.of_source(source)
            mine = rows_of_source[first:end]
            assert len(mine) == end - first, f"{partition.table} has fewer records than it had"
            scores = partition.teacher_scores(mine, len(names))
            has_scores = scores is not None
            records = _Records(writer, 2 + negatives, wide)
            begins = _begins(table, mine, negatives)
            for start in range(0, len(mine), BATCH_ROWS):
                rows = slice(start, start + BATCH_ROWS)
                batch = table.take(pa.array(mine[rows]))
                ids = _tokenised(batch, names, begins[rows], tokenizer, prompts)
                hashes = [batch.column(f"{name}_hash").to_pylist() for name in names]
                records.add(begins[rows], hashes, ids, None if scores is None else scores[rows])
                for text, found in enumerate(ids):
                    sizes = np.array([len(i) for i in found if i is not None], np.int64)
                    lengths[text] += np.bincount(sizes, minlength=max_text_tokens + 1)
            records.finish()
    texts = tuple(tuple(np.trim_zeros(row, "b").tolist()) for row in lengths[: len(names)])
    name = str(shard.relative_to(shard.parents[1]))
    size_bytes, sha256, ends = shard.stat().st_size, file_sha256(shard), ends_xxh3(shard)
    return EncodedShard(
        ShardFile(name, writer.records, size_bytes, sha256, ends), texts, has_scores
    )


def _begins(table: pa.Table, row_N: np.ndarray, negatives: int) -> np.ndarray:
    """Bool [N]: which rows begin a record; the others hold another negative of the row before."""
    if not negatives:
        return np.ones(len(row_N), bool)
    is_other, place_N = negative_places(table, row_N)
    return is_other | ((place_N > 0) & (place_N % negatives == 0))


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


class _Records:
    """Puts rows together into records, which may reach from one batch of rows into the next."""

    def __init__(self, writer: ShardWriter, texts: int, wide: bool) -> None:
        self._writer, self._texts, self._wide = writer, texts, wide
        self._hashes: list[bytes] = []
        self._ids: list[Any] = []
        self._scores: list[float] = []

    def add(
        self, begins: np.ndarray, hashes: Sequence[Sequence[bytes]],
        ids: Sequence[Sequence[Any]], score_NS: np.ndarray | None,
    ) -> None:  # fmt: skip
        score_NS = np.zeros((len(begins), 0), np.float32) if score_NS is None else score_NS
        columns = (zip(*hashes, strict=True), zip(*ids, strict=True), score_NS.tolist())
        for is_first, of_hashes, of_ids, of_scores in zip(begins.tolist(), *columns, strict=True):
            if is_first:
                self.finish()
                self._hashes, self._ids, self._scores = [], [], []
            # Of the texts beside the query there may be scores.
            scores = [None, *of_scores] if of_scores else [None] * len(of_ids)
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
            encode_record(hashes, [*self._ids, *[()] * missing], scores, wide=self._wide)
        )
        self._ids = []
