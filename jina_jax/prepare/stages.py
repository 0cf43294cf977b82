"""Applies filters to partitions: which rows go on, counts, scores, and the ledger of the rest."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from jina_jax.config import DataConfig, LengthConfig
from jina_jax.prepare.filters.decontaminate import decontamination_filter
from jina_jax.prepare.filters.filter import Filter, Scorer, Stage, Verdict
from jina_jax.prepare.filters.language import language_filter
from jina_jax.prepare.filters.lengths import LengthFilter
from jina_jax.prepare.filters.near_duplicates import NearDuplicateFilter
from jina_jax.prepare.ledger import dropped_rows, open_ledger
from jina_jax.prepare.sorted_runs import BATCH_ROWS, TEXTS, batches, read_rows, write_rows
from jina_jax.shards.manifest import ScoreHistogram, StageCounts
from jina_jax.system.arrow import map_table
from jina_jax.system.store import StoredFile

_BINS = 50


def configured_filters(config: DataConfig) -> list[Filter]:
    """Filters that the configuration asks for, in the order in which they are applied."""
    filters: list[Filter] = []
    if config.lengths != LengthConfig():
        filters.append(LengthFilter(config.lengths))
    if config.language.enabled:
        filters.append(language_filter(config.language))
    if config.decontamination.sets:
        filters.append(decontamination_filter(config.decontamination))
    return filters


def configured_near_duplicates(config: DataConfig) -> list[NearDuplicateFilter]:
    """The filter that comes after `configured_filters`, where the configuration asks for it."""
    enabled = config.near_duplicates.enabled
    return [NearDuplicateFilter(config.near_duplicates)] if enabled else []


def configured_scorers(config: DataConfig) -> list[Scorer]:
    """Filters in two halves that the configuration asks for, in the order of their use.

    Raises: UserError when a model cannot be found, with the way to get it: before hours of reading.
    """
    scorers: list[Scorer] = []
    if config.consistency.enabled or config.margin.enabled:
        # With JAX and a model; preparation without them does without JAX.
        from jina_jax.inference.model_folder import model_sha256
        from jina_jax.prepare.filters.scorers import ConsistencyFilter, MarginFilter

        if config.consistency.enabled:
            sha256 = model_sha256(config.consistency.model)
            scorers.append(ConsistencyFilter(config.consistency, sha256))
        if config.margin.enabled:
            scorers.append(MarginFilter(config.margin, model_sha256(config.margin.model)))
    return scorers


@dataclass(frozen=True, slots=True)
class Partition:
    """Records of a key range that earlier stages kept."""

    table: StoredFile
    rows: StoredFile | None = None
    """File of `sorted_runs.write_rows`; None means all rows."""
    taught: tuple[StoredFile, ...] = ()
    """Files of what `scoring.decide_task` keeps."""

    def open(self) -> tuple[pa.Table, np.ndarray]:
        """The table, memory-mapped, and the numbers of its rows that are left."""
        table = map_table(self.table.local())
        return table, read_rows(self.rows) if self.rows else np.arange(len(table))

    def of_source(self, source: int) -> tuple[pa.Table, np.ndarray]:
        """As `open`, with the rows of one source alone."""
        table, row_N = self.open()
        return table, row_N[table.column("source").to_numpy()[row_N] == source]

    def batches_of(self, source: int) -> Iterator[tuple[pa.Table, np.ndarray]]:
        """Some rows of one source at a time, and their numbers."""
        table, row_N = self.of_source(source)
        for start, part in enumerate(batches(table, row_N)):
            yield part, row_N[start * BATCH_ROWS :][: len(part)]

    def teacher_scores(self, rows: np.ndarray, texts: int) -> np.ndarray | None:
        """A teacher's scores of the query with each other text of some rows.

        Args:
          rows: numbers of rows, all of sources with as many texts.
          texts: 2 for pairs, 3 for triplets.
        Returns: float32 [N, texts - 1]; None where there is no teacher of such records.
        """
        for file in self.taught:
            table = map_table(file.local())
            if table.num_columns == texts - 1:
                return np.stack([c.to_numpy()[rows] for c in table.columns], axis=1)
        return None


StageResult = tuple[StageCounts, ...]
"""What a filter did to each source in one partition."""


def record_batch(rows: pa.Table) -> pa.RecordBatch:
    """Records of one source as filters see them: texts and hashes, a negative only of triplets."""
    names = [n for n in TEXTS if n in rows.column_names and rows.column(n).null_count == 0]
    columns = [*names, *[f"{name}_hash" for name in names]]
    return rows.select(columns).combine_chunks().to_batches()[0]


def filter_task(
    partition: Partition, stage: Filter, sources: Sequence[int], names: Sequence[str],
    out: StoredFile, ledger: StoredFile,
) -> StageResult:  # fmt: skip
    """Applies a filter to a partition.

    Args:
      partition: what earlier stages left.
      stage: the filter.
      sources: which it looks at.
      names: of all sources.
      out: file for the numbers of the rows that go on.
      ledger: file for the others.
    """

    def judged() -> Iterator[tuple[int, pa.Table, np.ndarray, Verdict]]:
        for source in sources:
            for part, rows in partition.batches_of(source):
                yield source, part, rows, stage(record_batch(part))

    return apply_verdicts(judged(), partition.open()[1], stage, names, out, ledger)


def apply_verdicts(
    judged: Iterator[tuple[int, pa.Table, np.ndarray, Verdict]], row_N: np.ndarray,
    stage: Stage, names: Sequence[str], out: StoredFile, ledger: StoredFile,
) -> StageResult:  # fmt: skip
    """Counts verdicts, writes the ledger and the numbers of the rows that go on.

    Args:
      judged: (source, records, their rows in the partition, what the stage says of them).
      row_N: all rows of the partition that earlier stages left.
      stage: the filter.
      names: of the sources.
      out: file for the numbers of the rows that go on.
      ledger: file for the others.
    """
    records, dropped = Counter[int](), [Counter[str]() for _ in names]
    found: dict[int, ScoreHistogram] = {}
    lost = [np.zeros(0, np.int64)]
    with open_ledger(ledger) as writer:
        for source, part, rows, verdict in judged:
            records[source] += len(rows)
            is_lost = verdict.reason_N != ""
            if verdict.score_N is not None:
                scores = _histogram(verdict.score_N, is_lost, stage.score_range)
                found[source] = found[source] + scores if source in found else scores
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
    return tuple(
        StageCounts(stage.name, records[s], dict(sorted(dropped[s].items())), found.get(s))
        for s in range(len(names))
    )


def _histogram(
    score_N: np.ndarray, is_lost: np.ndarray, ends: tuple[float, float]
) -> ScoreHistogram:
    low, high = ends
    # Divided last: 29 / 50 * 50 is below 29.
    place_N = np.nan_to_num((score_N.astype(np.float64) - low) * _BINS / (high - low))
    bin_N = np.clip(place_N, 0, _BINS - 1).astype(np.int64)
    kept, dropped = (np.bincount(bin_N[k], minlength=_BINS).tolist() for k in (~is_lost, is_lost))
    return ScoreHistogram(low, high, tuple(kept), tuple(dropped))
