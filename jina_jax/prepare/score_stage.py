"""The stage that applies a filter in two halves: learn, score, decide; its tasks, in this order."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from jina_jax.prepare.engine.task import Task
from jina_jax.prepare.filters.filter import Scorer, filter_key, score_key
from jina_jax.prepare.pipeline import Pipeline, Selected, narrow_by
from jina_jax.prepare.scoring import BLOCK_ROWS, decide_task, fit_task, score_task, taught_path
from jina_jax.prepare.stages import StageResult
from jina_jax.system.hashing import content_key


@dataclass(frozen=True)
class _Learnt:
    """Per source that the scorer looks at."""

    folders: Mapping[int, Path]
    keys: Mapping[int, str]
    """A hash of what scores depend on besides the records."""


def score_stage(run: Pipeline, selected: Selected, stage: Scorer) -> list[StageResult]:
    """Applies a scorer to all partitions, and leaves in them what it kept.

    What it learnt and the scores are taken from an earlier preparation where that left them.

    Returns: counts per partition.
    """
    learnt = _learn(run, selected, stage)
    scores = _score(run, selected, stage, learnt)
    tasks = []
    for part, partition in enumerate(selected.partitions):
        name = f"{stage.name}-{part:06d}"
        files = (run.work(f"{name}.rows"), run.ledger(name))
        key = content_key("decide", filter_key(stage), learnt.keys, selected.keys[part])
        arguments = (
            partition, stage, learnt.folders, scores[part], run.names, run.triplets, *files
        )  # fmt: skip
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


def _learn(run: Pipeline, selected: Selected, stage: Scorer) -> _Learnt:
    kinds = ["triplet" if is_triplets else "pair" for is_triplets in run.triplets]
    sources = [source for source, kind in enumerate(kinds) if kind in stage.records]
    keys = {s: content_key("fit", score_key(stage), selected.keys, s) for s in sources}
    folders = {s: run.scores_dir / f"{stage.name}-learnt-{keys[s]}" for s in sources}
    tasks = []
    for source in sources:
        arguments = (
            list(selected.partitions), stage, source, run.triplets, folders[source], run.scores_dir
        )  # fmt: skip
        key = content_key(keys[source], str(run.scores_dir))
        name = f"{stage.name}-fit-{source:03d}"
        tasks.append(Task(name, fit_task, arguments, key, stage.needs_accelerator))
    records = [sum(part[source] for part in selected.records) for source in sources]
    results = run.run(tasks, f"{stage.name}: learn", "sources", records)
    found = {
        s: content_key(score_key(stage), r.xxh3) for s, r in zip(sources, results, strict=True)
    }
    return _Learnt(folders, found)


def _score(
    run: Pipeline, selected: Selected, stage: Scorer, learnt: _Learnt
) -> list[list[list[str]]]:
    """Per partition and source the files of scores, block by block."""
    blocks = [
        (part, source, block)
        # Source by source, since what was learnt of one may be large to open.
        for source in learnt.keys
        for part, records in enumerate(selected.records)
        for block in range(-(-records[source] // BLOCK_ROWS))
    ]
    tasks = []
    for part, source, block in blocks:
        arguments = (
            selected.partitions[part], stage, source, block, run.triplets, learnt.folders[source],
            learnt.keys[source], run.scores_dir,
        )  # fmt: skip
        depends = (learnt.keys[source], selected.keys[part], block, str(run.scores_dir))
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
        paths[part][source].append(result.path)
    return paths
