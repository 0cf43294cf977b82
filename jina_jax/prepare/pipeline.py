"""The graph of tasks that decides for every record whether it is trained on, held out or dropped.

    read a block → sorted runs → one key range: dedup → filters → scorers → hold out → split

Each arrow is a stage of tasks; a stage begins when the one before has ended. A task's key hashes
its configuration and the keys of the tasks whose files it reads, back to the state of the inputs.
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from operator import attrgetter
from pathlib import Path
from typing import Any

from jina_jax.config import DataConfig
from jina_jax.prepare.dedup import DEDUP_VERSION, DedupResult, DedupRules, dedup_task, source_ranks
from jina_jax.prepare.engine.local import LocalEngine
from jina_jax.prepare.engine.task import Engine, Task, run_tasks
from jina_jax.prepare.filters.filter import Filter, Stage, filter_key
from jina_jax.prepare.ingest import (
    CLEAN_VERSION,
    JUDGED_AFTER,
    Block,
    ReadResult,
    judge,
    read_task,
)
from jina_jax.prepare.ledger import LedgerPart
from jina_jax.prepare.sorted_runs import Run, key_ranges, save_runs
from jina_jax.prepare.split import (
    SPLIT_VERSION,
    SplitResult,
    held_out_pairs,
    hold_out_task,
    split_task,
)
from jina_jax.prepare.stages import Partition, StageResult, filter_task
from jina_jax.sources.read import empty_source
from jina_jax.system.hashing import content_key
from jina_jax.system.terminal import say, track
from jina_jax.system.workspace import Workspace
from jina_jax.text.identity import NORMALISE_VERSION
from jina_jax.types import BadRecord, Origin

_PARTITION_BYTES = 32 << 20
"""Aim for partitions of this size, of which a task holds one: it bounds memory."""


@dataclass
class Pipeline:
    """What the stages of one preparation share."""

    config: DataConfig
    space: Workspace
    scores_dir: Path
    """Scores stay here for the next preparation."""
    progress: bool
    found: frozenset[int] = frozenset()
    """Sources whose negatives were found by their name."""
    blocks: list[Block] = field(default_factory=list)
    """Of all sources, in order."""
    engine: Engine = field(default_factory=lambda: LocalEngine(1))
    ledgers: list[LedgerPart] = field(default_factory=list)
    """Parts of the ledger, in the order of the stages."""

    @property
    def names(self) -> tuple[str, ...]:
        """Of the sources."""
        return tuple(source.name for source in self.config.sources)

    @property
    def triplets(self) -> tuple[bool, ...]:
        """Which sources are of triplets."""
        return tuple(bool(source.negative_field) for source in self.config.sources)

    def looked_at(self, stage: Stage) -> list[int]:
        """Which sources have records of a kind that a filter looks at."""
        kinds = ["triplet" if is_triplets else "pair" for is_triplets in self.triplets]
        return [source for source, kind in enumerate(kinds) if kind in stage.records]

    def work(self, name: str) -> Path:
        """A file of the working folder."""
        return self.space.work / name

    def run(
        self, tasks: Sequence[Task], what: str, unit: str = "parts",
        records: Sequence[int] | None = None,
    ) -> list[Any]:  # fmt: skip
        """Results of a stage, which shows how far it is.

        Args:
          tasks: of the stage.
          what: names it.
          unit: what a task works on, in the plural.
          records: how many each task works through; None when it is not records that count.
        """
        if records is None:
            return list(self.results(tasks, what, unit))
        sizes = iter(records)  # Results come in the order of their tasks.
        return list(self.results(tasks, what, unit, lambda _: next(sizes)))

    def results(
        self, tasks: Sequence[Task], what: str, unit: str,
        records: Callable[[Any], int] | None = None,
    ) -> Iterator[Any]:  # fmt: skip
        """As `run`, one by one; `records` tells from a result how many there were."""
        done = run_tasks(self.engine, tasks, self.space.markers)
        return track(
            done, what, total=len(tasks), unit=unit, records=records, enabled=self.progress
        )

    def ledger(self, name: str) -> Path:
        """The ledger of a task; it is merged after those before it."""
        path = self.work(f"{name}.ledger.parquet")
        self.ledgers.append(LedgerPart(path))
        return path


@dataclass
class Selected:
    """Partitions with the keys of the tasks that made them."""

    partitions: list[Partition]
    keys: list[str]
    records: list[tuple[int, ...]]
    """Per partition and source."""

    @property
    def counts(self) -> list[int]:
        """Records of each partition."""
        return [sum(of_sources) for of_sources in self.records]


@dataclass(frozen=True)
class Reads:
    """Blocks and what became of them."""

    blocks: list[Block]
    results: list[ReadResult]
    keys: list[str]

    def of_source(self, source: int) -> list[ReadResult]:
        """Results of one source's blocks."""
        pairs = zip(self.blocks, self.results, strict=True)
        return [result for block, result in pairs if block.source == source]


def read_stage(run: Pipeline) -> tuple[Reads, Path]:
    """Reads all sources.

    Returns: what was read, and the file that names the runs.
    Raises: UnusableError when a source has too many bad records; UserError when one is empty.
    """
    config, texts = run.config, 3 if any(run.triplets) else 2
    blocks = run.blocks
    tasks = []
    for number, block in enumerate(blocks):
        source = dataclasses.replace(config.sources[block.source], weight=1.0, licence="")
        is_first = number == 0 or blocks[number - 1].source != block.source
        share = config.max_bad_share if is_first else 1.0
        stem = f"read-{number:06d}"
        arguments = (source, block, texts, config.seed, share)
        plain = [dataclasses.asdict(source), dataclasses.asdict(block), *arguments[2:]]
        key = content_key("read", NORMALISE_VERSION, CLEAN_VERSION, *plain)
        files = (run.work(stem), run.work(f"{stem}.ledger.parquet"))
        tasks.append(Task(stem, read_task, (*arguments, *files), key))
    results: list[ReadResult] = []
    runs: list[Run] = []
    read = bad = row = 0
    shown: list[BadRecord] = []
    current = -1
    done = run.results(tasks, "read", "blocks", attrgetter("read"))
    for number, (block, task, result) in enumerate(zip(blocks, tasks, done, strict=True)):
        if block.source != current:
            read, bad, shown, current = 0, 0, [], block.source
        row = row if block.start else 0
        run.ledgers.append(LedgerPart(task.arguments[-1], row))
        runs += [Run(path, row, read) for path in result.runs]
        results.append(result)
        read, bad = read + result.read, bad + sum(result.bad.values())
        for reason, detail, origin in result.shown:
            shown.append(BadRecord(reason, detail, Origin(origin.file, origin.row + row)))
        row += result.lines
        is_last = number + 1 == len(blocks) or blocks[number + 1].source != current
        if is_last or read >= JUDGED_AFTER:
            judge(config.sources[current], read, bad, config.max_bad_share, shown)
    reads = Reads(blocks, results, [task.key for task in tasks])
    for index, configured in enumerate(config.sources):
        if not sum(result.read for result in reads.of_source(index)):
            raise empty_source(configured)
    save_runs(runs, run.work("runs.json"))
    return reads, run.work("runs.json")


def dedup_stage(run: Pipeline, reads: Reads, runs: Path) -> tuple[Selected, list[DedupResult]]:
    """Makes partitions of unique records in shuffle order; their number follows the data's size.

    There are at least as many as the largest source has shards: a shard takes from few of them.
    """
    config = run.config
    sources = range(len(run.names))
    most = max(sum(r.kept for r in reads.of_source(source)) for source in sources)
    shards = max(1, -(-most // config.records_per_shard))
    size_bytes = sum(result.table_bytes for result in reads.results)
    parts = max(shards, -(-size_bytes // _PARTITION_BYTES))
    rules = DedupRules(run.names, source_ranks(run.names, config.source_priority), run.triplets)
    read_key = content_key(reads.keys, [r.lines for r in reads.results])
    tasks = []
    for part, keys in enumerate(key_ranges(parts)):
        name = f"dedup-{part:06d}"
        files = (run.work(f"{name}.arrow"), run.ledger(name))
        key = content_key("dedup", DEDUP_VERSION, dataclasses.asdict(rules), keys, read_key)
        tasks.append(Task(name, dedup_task, (runs, keys, rules, *files), key))
    # Keys are hashes: every range holds about as many records.
    kept = sum(result.kept for result in reads.results)
    expected = [kept * (part + 1) // parts - kept * part // parts for part in range(parts)]
    results = run.run(tasks, "deduplicate", records=expected)
    partitions = [Partition(str(task.arguments[3]), "") for task in tasks]
    records = [result.unique for result in results]
    return Selected(partitions, [task.key for task in tasks], records), results


def filter_stage(run: Pipeline, selected: Selected, stage: Filter) -> list[StageResult]:
    """Applies a filter to all partitions, and leaves in them what it kept."""
    tasks = []
    for part, partition in enumerate(selected.partitions):
        name = f"{stage.name}-{part:06d}"
        files = (run.work(f"{name}.rows"), run.ledger(name))
        key = content_key("filter", filter_key(stage), selected.keys[part])
        arguments = (partition, stage, run.looked_at(stage), run.names, *files)
        tasks.append(Task(name, filter_task, arguments, key))
    results = run.run(tasks, stage.name, records=selected.counts)
    narrow_by(selected, tasks, results)
    return results


def narrow_by(selected: Selected, tasks: Sequence[Task], results: Sequence[StageResult]) -> None:
    """Hands on what a filter's tasks kept."""
    _narrow(selected, tasks)
    selected.records = [
        tuple(n - sum(s.dropped.values()) for n, s in zip(before, result, strict=True))
        for before, result in zip(selected.records, results, strict=True)
    ]


def _narrow(selected: Selected, tasks: Sequence[Task]) -> None:
    """Hands on the rows that tasks kept, whose file is their last argument but one."""
    selected.partitions = [
        dataclasses.replace(before, rows=str(task.arguments[-2]))
        for before, task in zip(selected.partitions, tasks, strict=True)
    ]
    selected.keys = [task.key for task in tasks]


def split_stage(
    run: Pipeline, selected: Selected, left: Sequence[int], evals: Sequence[Path]
) -> tuple[tuple[tuple[int, ...], ...], list[SplitResult]]:
    """Holds records out, and leaves in the partitions those to train on.

    Args:
      run: the preparation.
      selected: what every filter kept.
      left: records of each source in it.
      evals: per source, the file for what is held out.
    Returns: per partition and source, how many are held out; and what becomes of the others.
    """
    most = run.config.eval_pairs
    wanted = [held_out_pairs(count, most) for count in left]
    for name, count, held in zip(run.names, left, wanted, strict=True):
        if held < most:
            say(
                f"{name}: {held:,} of its {count:,} records are held out, less than "
                f"data.eval_pairs={most:,}, so that nine of ten are left to train on",
                enabled=run.progress,
            )
    hashes = run.work("held-out.arrow")
    key = content_key("hold_out", SPLIT_VERSION, wanted, selected.keys)
    everything = (list(selected.partitions), wanted, list(evals), hashes)
    task = Task("held-out", hold_out_task, everything, key)
    (taken,) = run.run([task], "hold out", records=[sum(wanted)])
    tasks = []
    for part, partition in enumerate(selected.partitions):
        name = f"split-{part:06d}"
        files = (run.work(f"{name}.rows"), run.ledger(name))
        arguments = (partition, taken[part], hashes, run.names, *files)
        split_key = content_key("split", key, selected.keys[part], part)
        tasks.append(Task(name, split_task, arguments, split_key))
    results = run.run(tasks, "split", records=selected.counts)
    _narrow(selected, tasks)
    return taken, results
