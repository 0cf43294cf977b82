"""The graph of tasks that decides for every record whether it is trained on, held out or dropped.

    read a block → sorted runs → one key range: dedup → filters → scorers → hold out → split

Each arrow is a stage of tasks; a stage begins when the one before has ended. A task's key hashes
its configuration and the keys of the tasks whose files it reads, back to the state of the inputs,
and names its files in the work store: another preparation runs what it has not in common with those
before it.
"""

import dataclasses
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Any

import numpy as np

from jina_jax.config import DataConfig
from jina_jax.prepare.dedup import DEDUP_VERSION, DedupResult, DedupRules, dedup_task, source_ranks
from jina_jax.prepare.engine.local import LocalEngine
from jina_jax.prepare.engine.task import Engine, Task, run_tasks
from jina_jax.prepare.exchange import BUCKETS, Exchange, Given, gather_task
from jina_jax.prepare.filters.filter import Filter, Records, Stage, filter_key
from jina_jax.prepare.ingest import (
    CLEAN_VERSION,
    JUDGED_AFTER,
    Block,
    ReadResult,
    columns_of,
    judge,
    read_task,
)
from jina_jax.prepare.ledger import LEDGER_VERSION, LedgerPart, gathered, ledger_task
from jina_jax.prepare.sorted_runs import KEYS, Columns, RunNote, partition_ranges, run_file
from jina_jax.prepare.split import (
    SPLIT_VERSION,
    SplitResult,
    first_records,
    held_out_pairs,
    hold_out_task,
    split_task,
)
from jina_jax.prepare.stages import Partition, StageResult, filter_task
from jina_jax.sources.read import empty_source
from jina_jax.system.environment import environment_key
from jina_jax.system.hashing import content_key
from jina_jax.system.store import Store, StoredFile
from jina_jax.system.terminal import say, track
from jina_jax.text.identity import NORMALISE_VERSION
from jina_jax.types import BadRecord, Origin

PARTITION_BYTES = 32 << 20
"""Aim for partitions of this size, of which a task holds one: small data stay work for several
processes. Large data have larger ones, since there are no more partitions than buckets."""
_MOST_PARTITION_BYTES = 1 << 30
"""A larger one is split, which bounds memory."""


Watch = Callable[[str, int, float], None]


@dataclass
class Pipeline:
    """What the stages of one preparation share."""

    config: DataConfig
    store: Store
    """Holds all that tasks hand to each other."""
    progress: bool
    found: frozenset[int] = frozenset()
    """Sources whose negatives were found by their name."""
    blocks: list[Block] = field(default_factory=list)
    """Of all sources, in order."""
    engine: Engine = field(default_factory=lambda: LocalEngine(1))
    watch: Watch = lambda *_: None
    """Called with the name of each stage that ended, its tasks and seconds."""
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

    @property
    def scored(self) -> tuple[bool, ...]:
        """Which are of scored pairs."""
        return tuple(bool(source.score_field) for source in self.config.sources)

    @property
    def columns(self) -> Columns:
        """What the records of any source have."""
        labels = any(source.label_field for source in self.config.sources)
        return Columns(3 if any(self.triplets) else 2, labels, any(self.scored))

    def looked_at(self, stage: Stage) -> list[int]:
        """Which sources have records of a kind that a filter looks at."""
        kinds: list[Records] = [
            "triplet" if is_triplets else "scored" if is_scored else "pair"
            for is_triplets, is_scored in zip(self.triplets, self.scored, strict=True)
        ]
        return [source for source, kind in enumerate(kinds) if kind in stage.records]

    def output(self, stage: str, key: str, ending: str = ".arrow") -> StoredFile:
        """The file that the task with a key makes."""
        return self.store.output(stage, key, ending)

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
        began = time.perf_counter()
        done = run_tasks(self.engine, tasks, self.store)
        yield from track(
            done, what, total=len(tasks), unit=unit, records=records, enabled=self.progress
        )
        self.watch(what, len(tasks), time.perf_counter() - began)

    def ledger(self, stage: str, key: str) -> StoredFile:
        """The ledger of a task, which is the last of its arguments."""
        return self.output(f"{stage}-ledger", key, ".parquet")

    def add_ledgers(self, tasks: Sequence[Task], rows: Sequence[int]) -> None:
        """Adds the ledgers of a stage, and how many records each task left out."""
        parts = zip(tasks, rows, strict=True)
        self.ledgers += [LedgerPart(task.arguments[-1], n) for task, n in parts]

    def ledgers_of(self, stage: str) -> list[LedgerPart]:
        """Those that a stage left, where they have a row."""
        folder = f"{stage}-ledger/"
        return [part for part in self.ledgers if part.rows and part.file.name.startswith(folder)]


@dataclass
class Selected:
    """Partitions with the keys of the tasks that made them."""

    partitions: list[Partition]
    keys: list[str]
    records: list[tuple[int, ...]]
    """Per partition and source."""
    unique: tuple[int, ...]
    """Of each source, before any filter: in the tables of all partitions."""

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


def read_stage(run: Pipeline) -> tuple[Reads, list[Given]]:
    """Reads all sources.

    Returns: what was read, and the runs.
    Raises: UnusableError when a source has too many bad records; UserError when one is empty.
    """
    config, blocks = run.config, run.blocks
    tasks = []
    for number, block in enumerate(blocks):
        # What the records do not depend on is taken out.
        source = dataclasses.replace(
            config.sources[block.source], weight=1.0, max_epochs=None, licence="", in_batch=True
        )
        is_first = number == 0 or blocks[number - 1].source != block.source
        share = config.max_bad_share if is_first else 1.0
        arguments = (source, block, config.seed, share)
        # Nor on how many sources are before it.
        mine = dataclasses.asdict(dataclasses.replace(block, source=0))
        plain = [dataclasses.asdict(source), mine, *arguments[2:]]
        # Everything but scores depends on what is read, and so on the package's version.
        key = content_key("read", environment_key(), NORMALISE_VERSION, CLEAN_VERSION, *plain)
        files = (run.output("read", key, ""), run.ledger("read", key))
        tasks.append(Task("read", read_task, (*arguments, *files), key))
    results: list[ReadResult] = []
    runs: list[Given] = []
    read = bad = row = 0
    shown: list[BadRecord] = []
    current = -1
    done = run.results(tasks, "read", "blocks", attrgetter("read"))
    for number, (block, task, result) in enumerate(zip(blocks, tasks, done, strict=True)):
        if block.source != current:
            read, bad, shown, current = 0, 0, [], block.source
        row = row if block.start else 0
        lost = sum(result.bad.values()) + sum(result.dropped.values())
        run.ledgers.append(LedgerPart(task.arguments[-1], lost, row))
        note = RunNote(current, row, read, columns_of(config.sources[current]))
        for place, places_at in enumerate(result.runs):
            runs.append(Given(run_file(task.arguments[-2], place), places_at, note))
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
    return reads, runs


def partition_count(largest: float, records_per_shard: int, size_bytes: float) -> int:
    """A power of two, up to the number of the exchange's buckets.

    Args:
      largest: records of the largest source.
      records_per_shard: as in DataConfig.
      size_bytes: of all records.
    """
    shards = math.ceil(largest / records_per_shard)
    wanted = max(shards, math.ceil(size_bytes / PARTITION_BYTES), 1)
    return min(1 << (wanted - 1).bit_length(), BUCKETS)


def dedup_stage(
    run: Pipeline, reads: Reads, runs: Sequence[Given]
) -> tuple[Selected, list[DedupResult]]:
    """Makes partitions of unique records in shuffle order.

    Their number follows the data's size and the shards of the largest source, up to that of the
    exchange's buckets: what is kept and its order do not depend on it.
    """
    config = run.config
    sources = range(len(run.names))
    read_key = content_key(reads.keys, [r.lines for r in reads.results])
    index = run.output("runs", read_key, ".index")
    (totals,) = run.run([Task("runs", gather_task, (runs, index), read_key)], "index")
    most = max(sum(r.kept for r in reads.of_source(source)) for source in sources)
    parts = partition_count(most, config.records_per_shard, sum(totals.size_bytes))
    ranges = partition_ranges(totals.size_bytes, parts, _MOST_PARTITION_BYTES)
    exchange = Exchange(index, len(runs), totals.index_bytes)
    ranks = source_ranks(run.names, config.source_priority)
    rules = DedupRules(run.names, ranks, run.triplets, run.scored, run.columns)
    tasks = []
    for keys in ranges:
        key = content_key("dedup", DEDUP_VERSION, dataclasses.asdict(rules), keys, read_key)
        files = (run.output("dedup", key), run.ledger("dedup", key))
        tasks.append(Task("dedup", dedup_task, (exchange, keys, rules, *files), key))
    # Keys are hashes: every part of a range holds about as many records.
    places = np.array([end for _, end in ranges], float) / KEYS * BUCKETS
    ends = np.interp(places, np.arange(BUCKETS + 1), np.append(0, np.cumsum(totals.rows)))
    expected = np.diff(ends.astype(int), prepend=0).tolist()
    results = run.run(tasks, "deduplicate", records=expected)
    run.add_ledgers(tasks, [sum(result.duplicate) for result in results])
    partitions = [Partition(task.arguments[3]) for task in tasks]
    records = [result.unique for result in results]
    unique = tuple(map(sum, zip(*records, strict=True)))
    return Selected(partitions, [task.key for task in tasks], records, unique), results


def filter_stage(run: Pipeline, selected: Selected, stage: Filter) -> list[StageResult]:
    """Applies a filter to all partitions, and leaves in them what it kept."""
    tasks = []
    for part, partition in enumerate(selected.partitions):
        key = content_key("filter", filter_key(stage), selected.keys[part])
        files = (run.output(stage.name, key), run.ledger(stage.name, key))
        arguments = (partition, stage, run.looked_at(stage), run.names, *files)
        tasks.append(Task(stage.name, filter_task, arguments, key))
    results = run.run(tasks, stage.name, records=selected.counts)
    narrow_by(run, selected, tasks, results, [task.arguments[-2] for task in tasks])
    return results


def narrow_by(
    run: Pipeline, selected: Selected, tasks: Sequence[Task], results: Sequence[StageResult],
    rows: Sequence[StoredFile],
) -> None:  # fmt: skip
    """Hands on what a filter's tasks kept, and adds their ledgers; `rows` says which stay, a file a
    partition.
    """
    run.add_ledgers(tasks, [sum(sum(s.dropped.values()) for s in result) for result in results])
    _narrow(selected, tasks, rows)
    selected.records = [
        tuple(n - sum(s.dropped.values()) for n, s in zip(before, result, strict=True))
        for before, result in zip(selected.records, results, strict=True)
    ]


def _narrow(selected: Selected, tasks: Sequence[Task], rows: Sequence[StoredFile]) -> None:
    """Hands on the rows that tasks kept."""
    selected.partitions = [
        dataclasses.replace(before, rows=of_part)
        for before, of_part in zip(selected.partitions, rows, strict=True)
    ]
    selected.keys = [task.key for task in tasks]


def split_stage(
    run: Pipeline, selected: Selected, left: Sequence[int]
) -> tuple[list[tuple[int, ...]], list[SplitResult], list[StoredFile]]:
    """Holds records out, and leaves in the partitions those to train on.

    Args:
      run: the preparation.
      selected: what every filter kept.
      left: records of each source in it.
    Returns: per partition and source, how many are held out; what becomes of the others; and the
      file of what is held out of each source, which is there where that is anything.
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
    taken = first_records(selected.records, wanted)
    some = [part for part, of_part in enumerate(taken) if any(of_part)] or [0]
    depends = [(selected.keys[part], taken[part]) for part in some]
    key = content_key("hold_out", SPLIT_VERSION, depends)
    hashes = run.output("held-out", key)
    evals = [run.output("held-out", key, f"-{source:05d}.parquet") for source in range(len(left))]
    arguments = ([selected.partitions[p] for p in some], [taken[p] for p in some], evals, hashes)
    run.run([Task("held-out", hold_out_task, arguments, key)], "hold out", records=[sum(wanted)])
    tasks = []
    for part, partition in enumerate(selected.partitions):
        split_key = content_key("split", key, selected.keys[part], part)
        files = (run.output("split", split_key), run.ledger("split", split_key))
        split = (partition, taken[part], hashes, run.names, *files)
        tasks.append(Task("split", split_task, split, split_key))
    results = run.run(tasks, "split", records=selected.counts)
    run.add_ledgers(tasks, [sum(result.shared) for result in results])
    _narrow(selected, tasks, [task.arguments[-2] for task in tasks])
    return taken, results, evals


def ledger_files(run: Pipeline) -> dict[str, StoredFile]:
    """Writes the ledger of all stages so far, some hundred thousand rows a file.

    Returns: name in the folder of the ledger → file.
    """
    tasks, rows = [], []
    for parts in gathered(run.ledgers):
        key = content_key("ledger", LEDGER_VERSION, [(p.file.name, p.row_base) for p in parts])
        out = run.output("ledger", key, ".parquet")
        tasks.append(Task("ledger", ledger_task, (parts, out), key))
        rows.append(sum(part.rows for part in parts))
    written = run.run(tasks, "ledger", "files", rows)
    assert written == rows, "a task left another number of rows than it counted"
    return {f"{number:05d}.parquet": task.arguments[-1] for number, task in enumerate(tasks)}
