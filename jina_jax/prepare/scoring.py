"""A filter in two halves: fitted once per source, scores block by block, a decision.

`score_stage` makes the tasks. What was fitted and the scores lie in a folder beside the prepared
one, under names that follow from what they depend on: another preparation with other thresholds
finds them there.
"""

import dataclasses
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import xxhash

from jina_jax.prepare.engine.task import Task
from jina_jax.prepare.filters.filter import Scorer, Verdict, filter_key, score_key
from jina_jax.prepare.pipeline import Pipeline, Selected, narrow_by
from jina_jax.prepare.sorted_runs import batches
from jina_jax.prepare.stages import Partition, StageResult, apply_verdicts, record_batch
from jina_jax.system.arrow import map_table, write_table
from jina_jax.system.atomic import atomic_folder
from jina_jax.system.hashing import content_key

BLOCK_ROWS = 16_384
"""Records that a task scores."""


def fit_task(
    partitions: Sequence[Partition], stage: Scorer, source: int, folder: Path, cache: Path
) -> str:
    """Lets a scorer learn from the records of one source, unless an earlier preparation has.

    Args:
      partitions: in shuffle order.
      stage: the scorer.
      source: which source.
      folder: appears, with what the scorer wrote.
      cache: folder that outlives the preparation.
    Returns: a hash of all that it wrote.
    """

    def source_batches() -> Iterator[pa.RecordBatch]:
        for partition in partitions:
            table, rows = partition.of_source(source)
            yield from map(record_batch, batches(table, rows, BLOCK_ROWS))

    if not folder.exists():
        cache.mkdir(parents=True, exist_ok=True)
        with atomic_folder(folder) as part:
            stage.fit(source_batches, part, cache)
    digest = xxhash.xxh3_128()
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        digest.update(str(path.relative_to(folder)).encode())
        with path.open("rb") as file:
            hashlib.file_digest(file, lambda: digest)
    return digest.hexdigest()


def score_task(
    partition: Partition, stage: Scorer, source: int, block: int, learnt: Path, key: str,
    cache: Path,
) -> str:  # fmt: skip
    """Scores a block of records of one source in a partition, or finds that they have been.

    Args:
      partition: what earlier stages left.
      stage: the scorer.
      source: which source.
      block: records block · BLOCK_ROWS and on, of those of the source.
      learnt: the folder of `fit_task`.
      key: a hash of what the scores depend on besides the records.
      cache: folder for scores.
    Returns: the file of the scores.
    """
    table, rows = partition.of_source(source)
    mine = rows[block * BLOCK_ROWS : (block + 1) * BLOCK_ROWS]
    batch = record_batch(table.take(pa.array(mine)))
    digest = xxhash.xxh3_128(key.encode())
    for column in batch.columns:
        # Texts as they are: their hashes fold case, which a model may see.
        if pa.types.is_large_string(column.type):
            digest.update(_bytes_of(column))
    path = cache / f"{stage.name}-{digest.hexdigest()}.arrow"
    if path.exists():
        return str(path)
    score_NS = np.asarray(stage.score(batch, learnt, cache), np.float32)
    assert score_NS.ndim == 2, f"{stage.name} gave scores of shape {score_NS.shape}"
    assert len(score_NS) == len(batch), f"{stage.name}: {len(score_NS)} scores for {len(batch)}"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_table(pa.table({str(i): column for i, column in enumerate(score_NS.T)}), path)
    return str(path)


def decide_task(
    partition: Partition, stage: Scorer, learnt: Mapping[int, Path],
    scores: Sequence[Sequence[str]], names: Sequence[str], out: Path, ledger: Path,
) -> StageResult:  # fmt: skip
    """Applies a scorer's thresholds to scores, and keeps those that teach beside `out`.

    Args:
      partition: what earlier stages left.
      stage: the scorer.
      learnt: source that the scorer looks at → the folder of `fit_task`.
      scores: per source, the files of `score_task`, block by block.
      names: of the sources.
      out: file for the numbers of the rows that go on; `taught_path` of it gets the scores.
      ledger: file for the others.
    """
    partition_rows, row_N = partition.open()
    taught = []

    def judged() -> Iterator[tuple[int, pa.Table, np.ndarray, Verdict]]:
        for source, folder in learnt.items():
            table, rows = partition.of_source(source)
            blocks = batches(table, rows, BLOCK_ROWS)
            for block, (path, part) in enumerate(zip(scores[source], blocks, strict=True)):
                score_NS = np.stack([c.to_numpy() for c in map_table(Path(path)).columns], axis=1)
                verdict = stage.decide(record_batch(part), score_NS, folder)
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


def _bytes_of(column: pa.LargeStringArray) -> bytes:
    """Every text with its length."""
    _, ends, data = column.buffers()
    end_N = np.frombuffer(ends, np.int64)[column.offset :][: len(column) + 1]
    start_N = end_N - end_N[0]
    return start_N.tobytes() + (data.to_pybytes() if data else b"")[end_N[0] : end_N[-1]]


def score_stage(run: Pipeline, selected: Selected, stage: Scorer) -> list[StageResult]:
    """Applies a scorer to all partitions, and leaves in them what it kept.

    What it learnt and the scores are taken from an earlier preparation where that left them.

    Returns: counts per partition.
    """
    folders, keys = _learn(run, selected, stage)
    scores = _score(run, selected, stage, folders, keys)
    tasks = []
    for part, partition in enumerate(selected.partitions):
        name = f"{stage.name}-{part:06d}"
        files = (run.work(f"{name}.rows"), run.ledger(name))
        key = content_key("decide", filter_key(stage), keys, selected.keys[part])
        arguments = (partition, stage, folders, scores[part], run.names, *files)
        tasks.append(Task(name, decide_task, arguments, key))
    results = run.run(tasks, f"{stage.name}: decide", records=selected.counts)
    narrow_by(selected, tasks, results)
    # A partition without records of its kind has nothing of it.
    selected.partitions = [
        dataclasses.replace(partition, taught=(*partition.taught, str(path)))
        if (path := taught_path(Path(partition.rows))).exists()
        else partition
        for partition in selected.partitions
    ]
    return results


def _learn(
    run: Pipeline, selected: Selected, stage: Scorer
) -> tuple[dict[int, Path], dict[int, str]]:
    """Per source that the scorer looks at: the folder of what it learnt, and a hash of what its
    scores depend on besides the records.
    """
    sources = run.looked_at(stage)
    keys = {s: content_key("fit", score_key(stage), selected.keys, s) for s in sources}
    folders = {s: run.scores_dir / f"{stage.name}-learnt-{keys[s]}" for s in sources}
    tasks = []
    for source in sources:
        arguments = (list(selected.partitions), stage, source, folders[source], run.scores_dir)
        key = content_key(keys[source], str(run.scores_dir))
        name = f"{stage.name}-fit-{source:03d}"
        tasks.append(Task(name, fit_task, arguments, key, stage.needs_accelerator))
    records = [sum(part[source] for part in selected.records) for source in sources]
    results = run.run(tasks, f"{stage.name}: learn", "sources", records)
    found = {s: content_key(score_key(stage), r) for s, r in zip(sources, results, strict=True)}
    return folders, found


def _score(
    run: Pipeline, selected: Selected, stage: Scorer, folders: Mapping[int, Path],
    keys: Mapping[int, str],
) -> list[list[list[str]]]:  # fmt: skip
    """Per partition and source the files of scores, block by block."""
    blocks = [
        (part, source, block)
        # Source by source, since what was learnt of one may be large to open.
        for source in keys
        for part, records in enumerate(selected.records)
        for block in range(-(-records[source] // BLOCK_ROWS))
    ]
    tasks = []
    for part, source, block in blocks:
        arguments = (
            selected.partitions[part], stage, source, block, folders[source], keys[source],
            run.scores_dir,
        )  # fmt: skip
        depends = (keys[source], selected.keys[part], block, str(run.scores_dir))
        name = f"{stage.name}-score-{part:06d}-{source:03d}-{block:06d}"
        key = content_key("score", *depends)
        tasks.append(Task(name, score_task, arguments, key, stage.needs_accelerator))
    counts = [
        min(BLOCK_ROWS, selected.records[part][source] - block * BLOCK_ROWS)
        for part, source, block in blocks
    ]
    results = run.run(tasks, f"{stage.name}: score", "blocks", counts)
    paths: list[list[list[str]]] = [[[] for _ in run.names] for _ in selected.partitions]
    for (part, source, _), result in zip(blocks, results, strict=True):
        paths[part][source].append(result)
    return paths
