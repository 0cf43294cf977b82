"""Tasks of a filter in two halves: learn once per source, score block by block, decide.

What is learnt and the scores lie in a folder beside the prepared one, under names that follow from
what they depend on: another preparation with other thresholds finds them there.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import xxhash

from jina_jax.prepare.filters.filter import Scorer, Verdict
from jina_jax.prepare.sorted_runs import batches
from jina_jax.prepare.stages import Partition, StageResult, apply_verdicts, of_sources, record_batch
from jina_jax.system.arrow import map_table, write_table
from jina_jax.system.atomic import atomic_folder

BLOCK_ROWS = 16_384
"""Records that a task scores."""
_READ_BYTES = 1 << 20


@dataclass(frozen=True)
class FitResult:
    """What a scorer learnt of a source."""

    xxh3: str
    """Of all that it wrote."""


def fit_task(
    partitions: Sequence[Partition], stage: Scorer, source: int, triplets: Sequence[bool],
    folder: Path, cache: Path,
) -> FitResult:  # fmt: skip
    """Lets a scorer learn from the records of one source, unless an earlier preparation has.

    Args:
      partitions: in shuffle order.
      stage: the scorer.
      source: which source.
      triplets: which sources are of triplets.
      folder: appears, with what the scorer wrote.
      cache: folder that outlives the preparation.
    """

    def source_batches() -> Iterator[pa.RecordBatch]:
        for partition in partitions:
            table, rows = _rows(partition, stage, source, triplets)
            yield from map(record_batch, batches(table, rows, BLOCK_ROWS))

    if not folder.exists():
        cache.mkdir(parents=True, exist_ok=True)
        with atomic_folder(folder) as part:
            stage.fit(source_batches, part, cache)
    digest = xxhash.xxh3_128()
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        digest.update(str(path.relative_to(folder)).encode())
        with path.open("rb") as file:
            while chunk := file.read(_READ_BYTES):
                digest.update(chunk)
    return FitResult(digest.hexdigest())


@dataclass(frozen=True)
class ScoreResult:
    """Where the scores of a block are."""

    path: str


def score_task(
    partition: Partition, stage: Scorer, source: int, block: int, triplets: Sequence[bool],
    learnt: Path, key: str, cache: Path,
) -> ScoreResult:  # fmt: skip
    """Scores a block of records of one source in a partition, or finds that they have been.

    Args:
      partition: what earlier stages left.
      stage: the scorer.
      source: which source.
      block: records block · BLOCK_ROWS and on, of those of the source.
      triplets: which sources are of triplets.
      learnt: the folder of `fit_task`.
      key: a hash of what the scores depend on besides the records.
      cache: folder for scores.
    """
    table, rows = _rows(partition, stage, source, triplets)
    mine = rows[block * BLOCK_ROWS : (block + 1) * BLOCK_ROWS]
    batch = record_batch(table.take(pa.array(mine)))
    digest = xxhash.xxh3_128(key.encode())
    for column in batch.columns:
        # Texts as they are: their hashes fold case, which a model may see.
        if pa.types.is_large_string(column.type):
            digest.update(_bytes_of(column))
    path = cache / f"{stage.name}-{digest.hexdigest()}.arrow"
    if path.exists():
        return ScoreResult(str(path))
    score_NS = np.asarray(stage.score(batch, learnt, cache), np.float32)
    assert score_NS.ndim == 2, f"{stage.name} gave scores of shape {score_NS.shape}"
    assert len(score_NS) == len(batch), f"{stage.name}: {len(score_NS)} scores for {len(batch)}"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_table(pa.table({str(i): column for i, column in enumerate(score_NS.T)}), path)
    return ScoreResult(str(path))


def decide_task(
    partition: Partition, stage: Scorer, learnt: Mapping[int, Path],
    scores: Sequence[Sequence[str]], names: Sequence[str], triplets: Sequence[bool], out: Path,
    ledger: Path,
) -> StageResult:  # fmt: skip
    """Applies a scorer's thresholds to scores, and keeps those that teach beside `out`.

    Args:
      partition: what earlier stages left.
      stage: the scorer.
      learnt: source → the folder of `fit_task`.
      scores: per source, the files of `score_task`, block by block.
      names: of the sources.
      triplets: which of them are of triplets.
      out: file for the numbers of the rows that go on; `taught_path` of it gets the scores.
      ledger: file for the others.
    """
    partition_rows, row_N = partition.open()
    taught = []

    def judged() -> Iterator[tuple[int, pa.Table, np.ndarray, Verdict]]:
        for source, paths in enumerate(scores):
            table, rows = _rows(partition, stage, source, triplets)
            blocks = batches(table, rows, BLOCK_ROWS)
            for block, (path, part) in enumerate(zip(paths, blocks, strict=True)):
                score_NS = np.stack([c.to_numpy() for c in map_table(Path(path)).columns], axis=1)
                verdict = stage.decide(record_batch(part), score_NS, learnt[source])
                mine = rows[block * BLOCK_ROWS :][: len(part)]
                if stage.teaches:
                    taught.append((mine, score_NS[:, stage.teaches]))
                yield source, part, mine, verdict

    result = apply_verdicts(judged(), row_N, stage, names, out, ledger)
    if taught:
        score_NS = np.full((len(partition_rows), taught[0][1].shape[1]), np.nan, np.float32)
        for rows, of_rows in taught:
            score_NS[rows] = of_rows
        columns = {str(i): column for i, column in enumerate(score_NS.T)}
        write_table(pa.table(columns), taught_path(out))
    return result


def taught_path(out: Path) -> Path:
    """Where `decide_task` keeps what a scorer teaches: a float32 for each row of the partition's
    table and each text beside the query, NaN where it did not score.
    """
    return out.with_suffix(".taught.arrow")


def _rows(
    partition: Partition, stage: Scorer, source: int, triplets: Sequence[bool]
) -> tuple[pa.Table, np.ndarray]:
    """The partition's table, and the rows of a source that the scorer looks at."""
    table, row_N = partition.open()
    found = dict(of_sources(table, row_N, triplets, stage))
    return table, found.get(source, row_N[:0])


def _bytes_of(column: pa.LargeStringArray) -> bytes:
    """Every text with its length."""
    _, ends, data = column.buffers()
    end_N = np.frombuffer(ends, np.int64)[column.offset :][: len(column) + 1]
    start_N = end_N - end_N[0]
    return start_N.tobytes() + (data.to_pybytes() if data else b"")[end_N[0] : end_N[-1]]
