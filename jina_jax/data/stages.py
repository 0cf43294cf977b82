"""Applies filters to partitions: which rows go on, counts, scores, and the ledger of the rest."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import xxhash

from jina_jax.config import DataConfig
from jina_jax.data.atomic import atomic_folder
from jina_jax.data.evaluation_sets import decontamination_filter
from jina_jax.data.filters import Filter, Scorer, Verdict
from jina_jax.data.language import language_filter
from jina_jax.data.ledger import LedgerWriter, dropped_rows
from jina_jax.data.lengths import LengthFilter, is_unbounded
from jina_jax.data.manifest import ScoreHistogram
from jina_jax.data.runs import (
    TEXTS,
    batches,
    hash_words,
    map_table,
    read_rows,
    write_rows,
    write_table,
)

_BINS = 50


def configured_filters(config: DataConfig) -> list[Filter]:
    """Filters that the configuration asks for, in the order in which they are applied."""
    filters: list[Filter] = []
    if not is_unbounded(config.lengths):
        filters.append(LengthFilter(config.lengths))
    if config.language.enabled:
        filters.append(language_filter(config.language))
    if config.decontamination.sets:
        filters.append(decontamination_filter(config.decontamination))
    return filters


@dataclass(frozen=True)
class Partition:
    """Records of a key range that earlier stages kept."""

    table: str
    rows: str
    """File of `runs.write_rows`; empty means all rows."""

    def open(self) -> tuple[pa.Table, np.ndarray]:
        """The table, memory-mapped, and the numbers of its rows that are left."""
        table = map_table(Path(self.table))
        return table, read_rows(Path(self.rows)) if self.rows else np.arange(len(table))


@dataclass(frozen=True)
class SourceStage:
    """What a filter did to one source in one partition."""

    records: int
    dropped: dict[str, int]
    scores: ScoreHistogram | None


@dataclass(frozen=True)
class StageResult:
    """Per source."""

    sources: tuple[SourceStage, ...]


def record_batch(rows: pa.Table) -> pa.RecordBatch:
    """Records of one source as filters see them: texts and hashes, a negative only of triplets."""
    names = [n for n in TEXTS if n in rows.column_names and rows.column(n).null_count == 0]
    columns = [*names, *[f"{name}_hash" for name in names]]
    return rows.select(columns).combine_chunks().to_batches()[0]


def _of_sources(
    table: pa.Table, row_N: np.ndarray, triplets: Sequence[bool], stage: Filter | Scorer
) -> Iterator[tuple[int, np.ndarray]]:
    """Rows of each source that the stage looks at."""
    source_N = table.column("source").to_numpy()[row_N]
    for source, is_triplets in enumerate(triplets):
        rows = row_N[source_N == source]
        if len(rows) and ("triplet" if is_triplets else "pair") in stage.records:
            yield source, rows


def filter_task(
    partition: Partition, stage: Filter, names: Sequence[str], triplets: Sequence[bool], out: Path,
    ledger: Path,
) -> StageResult:  # fmt: skip
    """Applies a filter to a partition.

    Args:
      partition: what earlier stages left.
      stage: the filter.
      names: of the sources.
      triplets: which of them are of triplets.
      out: file for the numbers of the rows that go on.
      ledger: file for the others.
    """
    table, row_N = partition.open()

    def judged() -> Iterator[tuple[int, pa.Table, np.ndarray, Verdict]]:
        for source, rows in _of_sources(table, row_N, triplets, stage):
            done = 0
            for part in batches(table, rows):
                verdict = stage(record_batch(part))
                yield source, part, rows[done : done + len(part)], verdict
                done += len(part)

    return _apply(judged(), row_N, stage, names, out, ledger)


def decide_task(
    partition: Partition, stage: Scorer, scores: Sequence[str], names: Sequence[str],
    triplets: Sequence[bool], out: Path, ledger: Path,
) -> StageResult:  # fmt: skip
    """Applies a scorer's thresholds to scores.

    Args:
      partition: as in `filter_task`, and so below.
      stage: the scorer.
      scores: per source, the file of `score_task`; empty where it scored none.
      names: of the sources.
      triplets: which of them are of triplets.
      out: file for the numbers of the rows that go on.
      ledger: file for the others.
    """
    table, row_N = partition.open()

    def judged() -> Iterator[tuple[int, pa.Table, np.ndarray, Verdict]]:
        for source, rows in _of_sources(table, row_N, triplets, stage):
            score_N = map_table(Path(scores[source])).column("score").to_numpy()
            done = 0
            for part in batches(table, rows):
                of_part = slice(done, done + len(part))
                verdict = stage.decide(record_batch(part), score_N[of_part])
                yield source, part, rows[of_part], verdict._replace(score_N=score_N[of_part])
                done += len(part)

    return _apply(judged(), row_N, stage, names, out, ledger)


def _apply(
    judged: Iterator[tuple[int, pa.Table, np.ndarray, Verdict]], row_N: np.ndarray,
    stage: Filter | Scorer, names: Sequence[str], out: Path, ledger: Path,
) -> StageResult:  # fmt: skip
    """Counts verdicts, writes the ledger and the numbers of the rows that go on."""
    records, dropped = Counter[int](), [Counter[str]() for _ in names]
    found: dict[int, np.ndarray] = {}
    lost = [np.zeros(0, np.int64)]
    with LedgerWriter(ledger) as writer:
        for source, part, rows, verdict in judged:
            records[source] += len(rows)
            is_lost = verdict.reason_N != ""
            if verdict.score_N is not None:
                counts = _histogram(verdict.score_N, is_lost, stage.score_range)
                found[source] = found.get(source, 0) + counts
            if is_lost.any():
                dropped[source].update(verdict.reason_N[is_lost].tolist())
                lost.append(rows[is_lost])
                score = None
                if verdict.score_N is not None:
                    score = pa.array(verdict.score_N[is_lost], pa.float32())
                details = [pa.array(c[is_lost], pa.string()) for c in verdict[:2]]
                where = pa.array(np.flatnonzero(is_lost))
                reason, detail = details
                rows_lost = part.take(where)
                writer.write_table(
                    dropped_rows(rows_lost, names, stage.name, reason, detail, score)
                )
    write_rows(np.setdiff1d(row_N, np.concatenate(lost)), out)
    return StageResult(
        tuple(
            SourceStage(records[s], dict(sorted(dropped[s].items())), _named(found.get(s), stage))
            for s in range(len(names))
        )
    )


def _histogram(score_N: np.ndarray, is_lost: np.ndarray, ends: tuple[float, float]) -> np.ndarray:
    """int64 [2, bins]: kept and dropped; what lies beyond the ends counts in the outermost bin."""
    low, high = ends
    place_N = np.nan_to_num((score_N.astype(np.float64) - low) / (high - low) * _BINS)
    bin_N = np.clip(place_N, 0, _BINS - 1).astype(np.int64)
    return np.stack([np.bincount(bin_N[k], minlength=_BINS) for k in (~is_lost, is_lost)])


def _named(counts: np.ndarray | None, stage: Filter | Scorer) -> ScoreHistogram | None:
    if counts is None:
        return None
    kept, dropped = (tuple(of) for of in counts.tolist())
    return ScoreHistogram(*stage.score_range, kept, dropped)


@dataclass(frozen=True)
class FitResult:
    """What a scorer learnt."""

    xxh3: str
    """Of all that it wrote."""


def fit_task(
    partitions: Sequence[Partition], stage: Scorer, source: int, triplets: Sequence[bool],
    folder: Path,
) -> FitResult:  # fmt: skip
    """Lets a scorer learn from all records of one source.

    Args:
      partitions: in shuffle order.
      stage: the scorer.
      source: which source.
      triplets: which sources are of triplets.
      folder: appears, with what the scorer wrote.
    """

    def source_batches() -> Iterator[pa.RecordBatch]:
        for partition in partitions:
            table, row_N = partition.open()
            for found, rows in _of_sources(table, row_N, triplets, stage):
                if found == source:
                    yield from map(record_batch, batches(table, rows))

    digest = xxhash.xxh3_128()
    with atomic_folder(folder) as part:
        stage.fit(source_batches, part)
        for path in sorted(p for p in part.rglob("*") if p.is_file()):
            digest.update(str(path.relative_to(part)).encode())
            with path.open("rb") as file:
                while chunk := file.read(1 << 20):
                    digest.update(chunk)
    return FitResult(digest.hexdigest())


@dataclass(frozen=True)
class ScoreResult:
    """Files of scores, per source; empty where the scorer had nothing to score."""

    paths: tuple[str, ...]
    reused: int
    """Sources whose scores an earlier preparation left."""


def score_task(
    partition: Partition, stage: Scorer, triplets: Sequence[bool], learnt: Sequence[str],
    keys: Sequence[str], cache: Path,
) -> ScoreResult:  # fmt: skip
    """Scores the records of a partition, or finds that they have been.

    Args:
      partition: what earlier stages left.
      stage: the scorer.
      triplets: which sources are of triplets.
      learnt: per source, the folder of `fit_task`.
      keys: per source, a hash of what the scores depend on besides the records.
      cache: folder for scores; it outlives the preparation.
    """
    table, row_N = partition.open()
    paths, reused = [""] * len(triplets), 0
    for source, rows in _of_sources(table, row_N, triplets, stage):
        mine = table.take(pa.array(rows))
        digest = xxhash.xxh3_128(keys[source].encode())
        for name in mine.column_names:
            if name.endswith("_hash"):
                digest.update(hash_words(mine.column(name)).tobytes())
        path = cache / f"{stage.name}-{digest.hexdigest()}.arrow"
        paths[source] = str(path)
        if path.exists():
            reused += 1
            continue
        score_N = np.asarray(stage.score(record_batch(mine), Path(learnt[source])), np.float32)
        assert score_N.shape == (len(rows),), f"{stage.name}: {score_N.shape} for {len(rows)} rows"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_table(pa.table({"score": score_N}), path)
    return ScoreResult(tuple(paths), reused)
