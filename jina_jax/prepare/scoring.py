"""A filter in two halves: scores that cost much, then a decision.

    unique records → a sample of each source → what is learnt of it → scores → decisions

`score_stage` makes the tasks. Scores are kept by record in the work store, below a key of all else
that they depend on (the model, and what was learnt). A record is known by its texts as a model sees
them, so that another preparation, with another source, seed, filter or threshold beside, finds its
score there. The sample of a source is of its unique records with the lowest hashes, whatever the
seed and other filters; so it stays the same, and with it what scores depend on.

A file of scores has some ten thousand records, sorted by their place in the shuffle; its name has
the seed and the first and last place, so that a task opens those files alone that can have its
records. Where the seed was another, they are first sorted into the order of this one.
"""

import dataclasses
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import xxhash

from jina_jax.prepare.engine.task import Task
from jina_jax.prepare.filters.filter import Learnt, Scorer, Verdict, filter_key, score_key
from jina_jax.prepare.pipeline import Pipeline, Selected, narrow_by
from jina_jax.prepare.sorted_runs import KEYS, TEXTS, batches, shuffle_keys
from jina_jax.prepare.stages import Partition, StageResult, apply_verdicts, record_batch
from jina_jax.prepare.tokenise import cut_shards
from jina_jax.system.arrow import joined, map_table, write_table
from jina_jax.system.hashing import content_key
from jina_jax.system.store import StoredFile, StoredFolder
from jina_jax.system.terminal import say
from jina_jax.text.identity import find_keys, hash_words, row_keys

BLOCK_ROWS = 16_384
"""Records that a scorer is given at once."""
TASK_ROWS = 65_536
"""Records of a source that a task scores, of several partitions where these have fewer."""
_SAMPLE_TASKS = 256
"""At most so many tasks look for the samples of all sources."""
_ODD = np.uint64(0x9E3779B97F4A7C15)
_PAIR_HASHES = ("query_hash", "positive_hash")


@dataclass(frozen=True)
class Slice:
    """Rows of a file of `score_task`."""

    file: StoredFile
    first: int
    end: int


@dataclass(frozen=True)
class KnownScores:
    """A file of scores that some preparation has left, sorted by the key of the shuffle."""

    file: StoredFile
    first_key: int
    last_key: int


def candidates_task(
    tables: Sequence[StoredFile], limits: Mapping[int, int], out: StoredFile
) -> int:
    """Collects the records that can be in the sample of their source.

    Args:
      tables: of unique records.
      limits: source → the highest hash that its sample can have.
      out: table of `source`, `hash`, the positive and its hash.
    Returns: how many there are.
    """
    found = []
    for file in tables:
        table = map_table(file.local())
        source_N = table.column("source").to_numpy()
        words_Nx4 = hash_words(*(table.column(name) for name in _PAIR_HASHES))
        hash_N = words_Nx4[:, 0] * _ODD + words_Nx4[:, 2]
        is_in_N = np.zeros(len(table), bool)
        for source, limit in limits.items():
            is_in_N |= (source_N == source) & (hash_N <= np.uint64(limit))
        rows = np.flatnonzero(is_in_N)
        part = table.select(["source", "positive", "positive_hash"]).take(pa.array(rows))
        found.append(part.append_column("hash", pa.array(hash_N[rows])))
    all_found = pa.concat_tables(found)
    write_table(all_found, out)
    return len(all_found)


def sample_task(candidates: Sequence[StoredFile], source: int, most: int, out: StoredFile) -> str:
    """Chooses the sample of a source.

    Args:
      candidates: files of `candidates_task`.
      source: which.
      most: at most so many records; all where there are no more.
      out: table of the positives and their hashes, by ascending hash of the record.
    Returns: a hash of the sample.
    """
    parts = []
    for file in candidates:
        table = map_table(file.local())
        parts.append(table.filter(pa.array(table.column("source").to_numpy() == source)))
    table = pa.concat_tables(parts)
    words_Nx2 = hash_words(table.column("positive_hash"))
    order = np.lexsort((*words_Nx2.T, table.column("hash").to_numpy()))[:most]
    sample = joined(table.select(["positive", "positive_hash"]).take(pa.array(order)))
    write_table(sample, out)
    digest = xxhash.xxh3_128(hash_words(sample.column("positive_hash")).tobytes())
    digest.update(exact_keys([sample.column("positive").to_pylist()]).tobytes())
    return digest.hexdigest()


def fit_task(stage: Scorer, sample: StoredFile, out: StoredFolder) -> tuple[str, ...]:
    """Lets a scorer learn from the sample of a source.

    Args:
      stage: the scorer.
      sample: file of `sample_task`.
      out: gets what the scorer wrote.
    Returns: the files in it.
    """
    table = map_table(sample.local())
    parts = batches(table, np.arange(len(table)), BLOCK_ROWS)
    # As large as the sample's embeddings: where the store's files are.
    place = None if out.store.is_remote else out.store.root
    with tempfile.TemporaryDirectory(prefix=".fit-", dir=place) as temporary:
        stage.fit((part.combine_chunks().to_batches()[0] for part in parts), Path(temporary))
        return out.put(Path(temporary))


def score_task(
    spans: Sequence[tuple[Partition, int, int]], stage: Scorer, source: int, learnt: Learnt,
    known: Sequence[KnownScores], seed: int, out: StoredFile, kept: StoredFolder,
) -> int:  # fmt: skip
    """Scores records of one source, those whose scores no preparation has left.

    Args:
      spans: partition, and the first of its records of the source and the one after the last.
      stage: the scorer.
      source: which source.
      learnt: of the source.
      known: may have scores of these records.
      seed: of the shuffle.
      out: table of the scores, in the order of the spans.
      kept: gets a file with the scores that are new, for other preparations.
    Returns: how many were scored.
    """
    tables = []
    for partition, first, end in spans:
        table, rows = partition.of_source(source)
        wanted = ("key", *TEXTS, *(f"{name}_hash" for name in TEXTS))
        names = [name for name in wanted if name in table.column_names]
        tables.append(table.select(names).take(pa.array(rows[first:end])))
    table = joined(pa.concat_tables(tables))
    key_N = table.column("key").to_numpy()
    texts = [column.to_pylist() for column in table.select(_texts_of(table)).columns]
    exact_N = exact_keys(texts)
    del texts
    found_NS, is_found_N = _look_up(known, key_N, exact_N)
    missing = np.flatnonzero(~is_found_N)
    parts = [found_NS[is_found_N]]
    for rows in batches(table, missing, BLOCK_ROWS):
        batch = record_batch(rows)
        score_NS = np.asarray(stage.score(batch, learnt), np.float32)
        assert score_NS.ndim == 2, f"{stage.name} gave scores of shape {score_NS.shape}"
        assert len(score_NS) == len(batch), f"{stage.name}: {len(score_NS)} for {len(batch)}"
        parts.append(score_NS)
    if not is_found_N.any():
        del parts[0]  # Of no width.
    score_NS = np.empty((len(table), parts[-1].shape[1]), np.float32)
    score_NS[np.concatenate([np.flatnonzero(is_found_N), missing])] = np.concatenate(parts)
    if len(missing):
        new = _by_key(table, key_N, exact_N, score_NS, missing)
        ends = (new.column("key")[0].as_py(), new.column("key")[-1].as_py())
        name = out.name.rsplit("/", 1)[-1]
        # Before the marker: what a kill leaves is found by the next.
        write_table(new, kept.file(f"{seed % KEYS:016x}-{ends[0]:016x}-{ends[1]:016x}-{name}"))
    write_table(pa.table(_columns(score_NS)), out)
    return len(missing)


def _texts_of(table: pa.Table) -> list[str]:
    return [n for n in TEXTS if n in table.column_names and not table.column(n).null_count]


def exact_keys(texts: Sequence[Sequence[str]]) -> np.ndarray:
    """uint64 [N]: a hash of the texts of each record as they are.

    Their text hashes fold case and whitespace, which a model may see.
    """
    key_N = np.zeros(len(texts[0]), np.uint64)
    for column in texts:
        digests = [xxhash.xxh3_64_intdigest(text.encode()) for text in column]
        key_N = key_N * _ODD + np.array(digests, np.uint64)
    return key_N


def _columns(score_NS: np.ndarray) -> dict[str, np.ndarray]:
    return {str(i): column for i, column in enumerate(score_NS.T)}


def _by_key(
    table: pa.Table, key_N: np.ndarray, exact_N: np.ndarray, score_NS: np.ndarray, rows: np.ndarray
) -> pa.Table:
    """Scores of some rows as they are kept: with what finds them, sorted."""
    rows = rows[np.argsort(key_N[rows], kind="stable")]
    columns = {"key": key_N[rows], "exact": exact_N[rows]}
    hashes = {name: table.column(name).take(pa.array(rows)) for name in _PAIR_HASHES}
    return pa.table({**columns, **hashes, **_columns(score_NS[rows])})


def _look_up(
    known: Sequence[KnownScores], key_N: np.ndarray, exact_N: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Scores of records, float32 [N, S], and which of them are known; S is 0 where none is."""
    first, last = key_N.min(), key_N.max()
    parts = []
    for one in known:
        if one.first_key <= int(last) and one.last_key >= int(first):
            table = map_table(one.file.local())
            key_K = table.column("key").to_numpy()
            start, end = np.searchsorted(key_K, first), np.searchsorted(key_K, last, "right")
            parts.append(table.slice(start, end - start))
    if not sum(map(len, parts)):
        return np.zeros((len(key_N), 0), np.float32), np.zeros(len(key_N), bool)
    table = pa.concat_tables(parts)
    have_K, want_N = (
        row_keys(np.stack(words, axis=1))
        for words in (
            (table.column("key").to_numpy(), table.column("exact").to_numpy()),
            (key_N, exact_N),
        )
    )
    order = np.argsort(have_K)
    place_N, is_found_N = find_keys(have_K[order], want_N)
    numbers = [n for n in table.column_names if n.isdecimal()]
    score_KS = np.stack([table.column(n).to_numpy() for n in numbers], axis=1)
    return score_KS[order[place_N]], is_found_N


def sort_task(file: StoredFile, seed: int, out: StoredFile) -> int:
    """Sorts scores that were kept under another seed into the shuffle order of this one.

    Returns: how many there are.
    """
    table = map_table(file.local())
    queries, positives = (table.column(name).to_pylist() for name in _PAIR_HASHES)
    key_N = shuffle_keys(queries, positives, seed)
    order = pa.array(np.argsort(key_N, kind="stable"))
    write_table(table.set_column(0, "key", pa.array(key_N)).take(order), out)
    return len(table)


def decide_task(
    partition: Partition, stage: Scorer, learnt: Mapping[int, Learnt],
    scores: Mapping[int, Sequence[Slice]], names: Sequence[str], out: StoredFile,
    taught: StoredFile, ledger: StoredFile,
) -> StageResult:  # fmt: skip
    """Applies a scorer's thresholds to scores, and keeps those that teach.

    Args:
      partition: what earlier stages left.
      stage: the scorer.
      learnt: of each source that the scorer looks at.
      scores: of each source, those of the partition's records in their order.
      names: of the sources.
      out: file for the numbers of the rows that go on.
      taught: file for what the scorer teaches: a float32 for each row of the partition's table and
        each text beside the query, NaN where it did not score; none where it scored nothing.
      ledger: file for the others.
    """
    partition_rows, row_N = partition.open()
    found = []

    def judged() -> Iterator[tuple[int, pa.Table, np.ndarray, Verdict]]:
        for source, of_source in learnt.items():
            table, rows = partition.of_source(source)
            if not len(rows):
                continue
            score_NS = np.concatenate([_scores(one) for one in scores[source]])
            assert len(score_NS) == len(rows), f"{len(score_NS)} scores for {len(rows)} records"
            if stage.teaches:
                found.append((rows, score_NS[:, stage.teaches]))
            for number, part in enumerate(batches(table, rows, BLOCK_ROWS)):
                mine = slice(number * BLOCK_ROWS, number * BLOCK_ROWS + len(part))
                verdict = stage.decide(record_batch(part), score_NS[mine], of_source)
                yield source, part, rows[mine], verdict

    result = apply_verdicts(judged(), row_N, stage, names, out, ledger)
    if found:
        score_NS = np.full((len(partition_rows), found[0][1].shape[1]), np.nan, np.float32)
        for rows, of_rows in found:
            score_NS[rows] = of_rows
        write_table(pa.table(_columns(score_NS)), taught)
    return result


def _scores(one: Slice) -> np.ndarray:
    table = map_table(one.file.local()).slice(one.first, one.end - one.first)
    return np.stack([column.to_numpy() for column in table.columns], axis=1)


def score_stage(run: Pipeline, selected: Selected, stage: Scorer) -> list[StageResult]:
    """Applies a scorer to all partitions, and leaves in them what it kept.

    What it learnt and the scores are taken from earlier preparations where these left them.

    Returns: counts per partition.
    """
    learnt = _learn(run, selected, stage)
    scores = _score(run, selected, stage, learnt)
    tasks = []
    for part, partition in enumerate(selected.partitions):
        of_sources = sorted((source, of_source.key) for source, of_source in learnt.items())
        key = content_key("decide", filter_key(stage), of_sources, selected.keys[part])
        files = (
            run.output(stage.name, key), run.output(f"{stage.name}-taught", key),
            run.ledger(stage.name, key),
        )  # fmt: skip
        arguments = (partition, stage, learnt, scores[part], run.names, *files)
        tasks.append(Task(stage.name, decide_task, arguments, key))
    scored = [any(records[source] for source in learnt) for records in selected.records]
    results = run.run(tasks, f"{stage.name}: decide", records=selected.counts)
    narrow_by(run, selected, tasks, results, [task.arguments[-3] for task in tasks])
    if stage.teaches:
        selected.partitions = [
            dataclasses.replace(partition, taught=(*partition.taught, task.arguments[-2]))
            if has_scores
            else partition
            for partition, task, has_scores in zip(selected.partitions, tasks, scored, strict=True)
        ]
    return results


def _learn(run: Pipeline, selected: Selected, stage: Scorer) -> dict[int, Learnt]:
    """What the scorer learnt of each source that it looks at."""
    sources, own = run.looked_at(stage), score_key(stage)
    if not stage.sample_size:
        return {source: Learnt(content_key(own)) for source in sources}
    samples = _samples(run, selected, sources, stage.sample_size)
    tasks: dict[str, Task] = {}
    records = []
    for source, (sample, digest) in samples.items():
        key = content_key("fit", own, digest)
        if key not in tasks:  # Sources of the same records learn the same.
            out = StoredFolder(run.store, run.output(f"{stage.name}-learnt", key, "").name)
            arguments = (stage, sample, out)
            tasks[key] = Task(
                f"{stage.name}-fit", fit_task, arguments, key, stage.needs_accelerator
            )
            records.append(min(selected.unique[source], stage.sample_size))
    results = run.run(list(tasks.values()), f"{stage.name}: learn", "samples", records)
    files = dict(zip(tasks, results, strict=True))
    learnt = {}
    for source, (_, digest) in samples.items():
        key = content_key("fit", own, digest)
        folder = dataclasses.replace(tasks[key].arguments[-1], files=files[key])
        learnt[source] = Learnt(content_key(own, digest), folder)
    return learnt


def _samples(
    run: Pipeline, selected: Selected, sources: Sequence[int], most: int
) -> dict[int, tuple[StoredFile, str]]:
    """The sample of each source, and a hash of it."""
    limits = {}
    for source in sources:
        # Hashes are uniform: six deviations more than are wanted.
        share = (most + 6 * most**0.5 + 16) / max(selected.unique[source], 1)
        limits[source] = KEYS - 1 if share >= 1 else int(share * KEYS)
    tables = [partition.table for partition in selected.partitions]
    groups = np.array_split(np.arange(len(tables)), min(len(tables), _SAMPLE_TASKS))
    tasks = []
    for group in groups:
        mine = [tables[part] for part in group.tolist()]
        key = content_key("candidates", [table.name for table in mine], sorted(limits.items()))
        out = run.output("candidates", key)
        tasks.append(Task("candidates", candidates_task, (mine, limits, out), key))
    run.run(tasks, "sample: look")
    candidates = [task.arguments[-1] for task in tasks]
    depends = content_key([file.name for file in candidates])
    chosen = []
    for source in sources:
        key = content_key("sample", depends, source, most)
        arguments = (candidates, source, most, run.output("sample", key))
        chosen.append(Task("sample", sample_task, arguments, key))
    digests = run.run(chosen, "sample: choose", "sources")
    pairs = zip(chosen, digests, strict=True)
    return {s: (t.arguments[-1], d) for s, (t, d) in zip(sources, pairs, strict=True)}


def _score(
    run: Pipeline, selected: Selected, stage: Scorer, learnt: Mapping[int, Learnt]
) -> list[dict[int, list[Slice]]]:
    """Per partition and source the scores of its records."""
    tasks, records = [], []
    scores: list[dict[int, list[Slice]]] = [
        {source: [] for source in learnt} for _ in selected.partitions
    ]
    # Source by source, since what was learnt of one may be large to open.
    for source, of_source in learnt.items():
        known = _known(run, of_source)
        counts = [of_sources[source] for of_sources in selected.records]
        for spans in cut_shards(counts, TASK_ROWS):
            depends = [(selected.keys[span.part], span.first, span.end) for span in spans]
            key = content_key("score", of_source.key, source, depends)
            out = run.output(f"{stage.name}-scores", key)
            kept = StoredFolder(run.store, f"{_kept(of_source)}/{key[:2]}")
            parts = [(selected.partitions[span.part], span.first, span.end) for span in spans]
            arguments = (parts, stage, source, of_source, known, run.config.seed, out, kept)
            tasks.append(
                Task(f"{stage.name}-score", score_task, arguments, key, stage.needs_accelerator)
            )
            first = 0
            for span in spans:
                size = span.end - span.first
                scores[span.part][source].append(Slice(out, first, first + size))
                first += size
            records.append(first)
    new = sum(run.run(tasks, f"{stage.name}: score", "blocks", records))
    if new < sum(records):
        kept_scores = sum(records) - new
        say(f"{stage.name}: {kept_scores:,} of {sum(records):,} records had a score already",
            enabled=run.progress)  # fmt: skip
    return scores


def _kept(learnt: Learnt) -> str:
    """Folder of the scores that depend on what was learnt."""
    return f"scores/{learnt.key}"


def _known(run: Pipeline, learnt: Learnt) -> list[KnownScores]:
    """Scores that preparations have left, in the order of this one's seed."""
    seed = f"{run.config.seed % KEYS:016x}"
    found, tasks = [], []
    for name in run.store.names(_kept(learnt)):
        of_seed, first, last, _ = name.rsplit("/", 1)[-1].split("-", 3)
        file = run.store.file(name)
        if of_seed == seed:
            found.append(KnownScores(file, int(first, 16), int(last, 16)))
        else:
            key = content_key("sort", name, seed)
            out = run.output("scores-sorted", key)
            tasks.append(Task("scores-sorted", sort_task, (file, run.config.seed, out), key))
    if tasks:
        run.run(tasks, "scores of another seed", "files")
    return found + [KnownScores(task.arguments[-1], 0, KEYS - 1) for task in tasks]
