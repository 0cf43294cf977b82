"""Preparation: from sources to a folder of shuffled shards of token ids.

folder/manifest.json        what is here and where it came from
folder/train/SOURCE-NNNNN.arrayrecord
folder/eval/SOURCE.parquet  held-out records, as text
folder/tokenizer/           tokenizer.json, spiece.model
folder/ledger/NNNNN.parquet what was left out, and why
"""

import dataclasses
import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from types import MappingProxyType

from jina_jax.config import DataConfig, EngineConfig
from jina_jax.config.files import difference, unchangeable_fields
from jina_jax.config.source import prompts_of
from jina_jax.errors import UnusableError, UserError
from jina_jax.prepare.engine.local import LocalEngine
from jina_jax.prepare.engine.task import Engine, Task, marker_of
from jina_jax.prepare.filters.decontaminate import DecontaminationFilter, leak_report
from jina_jax.prepare.filters.filter import Filter, Scorer, Stage, filter_key
from jina_jax.prepare.first_look import look_first
from jina_jax.prepare.guide import configured_guide, guide_key, guide_stage
from jina_jax.prepare.ingest import plan_blocks, undivided
from jina_jax.prepare.inputs import changed_input, input_files
from jina_jax.prepare.ledger import dropped_texts
from jina_jax.prepare.near_duplicates import near_duplicate_stage
from jina_jax.prepare.pipeline import (
    Pipeline,
    Selected,
    Watch,
    dedup_stage,
    filter_stage,
    ledger_files,
    read_stage,
    split_stage,
)
from jina_jax.prepare.scoring import score_stage
from jina_jax.prepare.split import SplitResult
from jina_jax.prepare.stages import (
    configured_filters,
    configured_near_duplicates,
    configured_scorers,
)
from jina_jax.prepare.summary import VERSIONS, Outcome, summaries
from jina_jax.prepare.tokenise import (
    EncodedShard,
    Vocabulary,
    cut_shards,
    encode_task,
    fetched_vocabulary,
    partitions_needed,
    vocabulary_task,
)
from jina_jax.shards.manifest import (
    FORMAT_VERSION,
    LEDGER,
    MANIFEST_FILE,
    Guide,
    Manifest,
    changed_fields,
    load_manifest,
    prepared_config,
)
from jina_jax.shards.publish import DamagedFile, Prepared, manifest_at, publish, publish_at
from jina_jax.sources.read import check_beside, what_was_found, with_fields
from jina_jax.system.atomic import atomic_folder
from jina_jax.system.files import is_url
from jina_jax.system.hashing import content_key
from jina_jax.system.objects import changed_ns
from jina_jax.system.store import StoredFile, StoredFolder, find_store, let_go, open_store
from jina_jax.system.terminal import say
from jina_jax.system.workspace import alone, check_writable

_SMALL_BYTES = 16 << 20
_MOST_NEGATIVES = 7
"""Of a record, where the configuration leaves it open."""


def prepare(
    config: DataConfig, out_dir: Path, progress: bool = True, url: str = "",
    needed: Mapping[str, int] = MappingProxyType({}),
    watch: Watch = lambda *_: None,
) -> Manifest:  # fmt: skip
    """Reads, cleans, deduplicates, filters, shuffles, splits and tokenises the sources.

    The same configuration and input give the same bytes. The folder appears when it is complete. A
    task holds one partition in memory, and the number of partitions follows the size of the data.
    What tasks hand to each other lies in the work store (`data.engine.work_dir`) and stays there,
    whatever happens: a run that is killed goes on, when it is called again, from the tasks it had
    finished, and one with another configuration runs only what depends on what changed. `clean`
    removes it.

    Args:
      config: the data section.
      out_dir: the folder to make. One that was prepared with the same configuration is kept.
      progress: show it on standard error.
      url: put it there instead, and nothing into `out_dir`; what else is made lies beside that.
      needed: name of a source → the training records that it needs, as `records_needed` gives them.
        One that has fewer to begin with is refused; where fewer are left at the end, that is said.
      watch: as in Pipeline.
    Returns: the manifest of the folder.
    Raises: UserError when a source cannot be used, nothing is left, or `out_dir` holds something
      else.
    """
    if not config.sources:
        raise UserError("data.sources is empty: name at least one source of pairs")
    out_dir = out_dir.absolute()
    filters, scorers = configured_filters(config), configured_scorers(config)
    stages: list[Stage] = [*filters, *configured_near_duplicates(config), *scorers]
    keys = {stage.name: filter_key(stage) for stage in stages}
    guide = configured_guide(config.guide)
    if guide is not None:
        keys["guide"] = guide_key(guide)
    where = url.rstrip("/") or str(out_dir)
    if (already := _already_prepared(config, keys, where)) is not None:
        say(f"{where} is already prepared with this configuration", enabled=progress)
        return already
    check_writable(out_dir.parent)
    out_dir.parent.mkdir(parents=True, exist_ok=True)
    with alone(out_dir):
        shutil.rmtree(_rejected_path(out_dir), ignore_errors=True)
        store = open_store(
            _work_dir(config.engine, out_dir), *_cache(config.engine), "data.engine.work_dir"
        )
        found = frozenset(i for i, s in enumerate(config.sources) if s.finds_negatives)
        named = _with_named_fields(config, progress)
        run = Pipeline(named, store, progress, found, watch=watch)
        try:
            look_first(run, needed)
            manifest = _publish(run, partial(_make, run, filters, scorers, guide, keys), where)
        except UnusableError as error:
            raise UnusableError(f"{error}{_rejected(run, out_dir)}") from error
        finally:
            run.engine.close()
            let_go(store)
    for source in manifest.sources:
        if source.records < needed.get(source.name, 0):
            say(
                f"source {source.name!r}: {source.records:,} training records are left, and a "
                f"batch needs {needed[source.name]:,}: training will refuse it",
                enabled=progress,
            )
    say(f"prepared {manifest.train_records:,} training records in {where}", enabled=progress)
    if progress:
        say(
            f"{store.root} ({store.size_bytes() / 1e9:.2f} GB) stays, so that another preparation "
            f"runs only what differs; `jina-jax prepare CONFIG --clean` removes it"
        )
    return manifest


def _publish(run: Pipeline, make: Callable[[], Prepared], where: str) -> Manifest:
    """Makes what is to be in the folder, and lets it appear there."""
    while True:
        prepared = make()
        try:
            publish_at(prepared, where) if is_url(where) else publish(prepared, Path(where))
            return prepared.manifest
        except DamagedFile as error:
            say(f"{error}; it is made anew", enabled=run.progress)
            error.file.remove()
            marker_of(error.file).remove()
            run.ledgers.clear()


def _rejected(run: Pipeline, out_dir: Path) -> str:
    """Writes the ledger of a preparation that comes to nothing; says where it is."""
    path = _rejected_path(out_dir)
    with atomic_folder(path) as part:
        for name, file in ledger_files(run).items():
            shutil.copyfile(file.local(), part / name)
    return f"\nEach such record and its reason: {path}"


def _rejected_path(out_dir: Path) -> Path:
    return out_dir.with_name(f"{out_dir.name}.rejected")


def clean(config: DataConfig, out_dir: Path) -> None:
    """Removes what preparations have left to go on from; the prepared folder stays.

    Args:
      config: as for `prepare`.
      out_dir: as for `prepare`.
    """
    root = _work_dir(config.engine, out_dir.absolute())
    store = find_store(root, *_cache(config.engine))
    if store is None:
        say(f"{root} is not there, or is none of prepare's: nothing is removed")
        return
    size_bytes = store.size_bytes()
    store.remove()
    say(f"removed {root} ({size_bytes / 1e9:.2f} GB)")


def _work_dir(config: EngineConfig, out_dir: Path) -> str:
    if is_url(config.work_dir):
        return config.work_dir.rstrip("/")
    if not config.work_dir:
        return str(out_dir.with_name(f"{out_dir.name}.work"))
    folder = Path(config.work_dir).expanduser().absolute()
    if folder.is_relative_to(out_dir) or out_dir.is_relative_to(folder):
        raise UserError(
            f"data.engine.work_dir={config.work_dir} and the prepared folder {out_dir} lie one in "
            f"the other; give a folder of its own"
        )
    return str(folder)


def _cache(config: EngineConfig) -> tuple[str, int]:
    return config.cache_dir or "~/.cache/jina_jax/work", int(config.cache_gb * 1e9)


def _with_named_fields(config: DataConfig, progress: bool) -> DataConfig:
    """With the fields of each source, where they were left to be found; says which."""
    sources = tuple(map(with_fields, config.sources))
    for source, named in zip(config.sources, sources, strict=True):
        if line := what_was_found(source, named):
            say(line, enabled=progress)
        check_beside(named)
    return dataclasses.replace(config, sources=sources)


def _named_where_they_lie(config: DataConfig) -> DataConfig:
    """As `_with_named_fields`, but input that is gone is no fault: prepared data may outlive it."""
    with suppress(UserError):
        return _with_named_fields(config, progress=False)
    return config


def _engine(config: EngineConfig, input_bytes: int) -> Engine:
    """The engine that a configuration asks for; no processes for so little input that starting them
    takes longer than the work.
    """
    if config.kind == "ray":
        from jina_jax.prepare.engine.ray import RayEngine

        return RayEngine(config.ray_address, config.workers, config.accelerators_per_host)
    cores = len(os.sched_getaffinity(0))
    return LocalEngine(config.workers or (1 if input_bytes < _SMALL_BYTES else cores))


def _already_prepared(config: DataConfig, keys: dict[str, str], where: str) -> Manifest | None:
    if is_url(where):
        manifest, path = manifest_at(where), f"{where}/{MANIFEST_FILE}"
    else:
        manifest, path = _manifest_in(Path(where)), str(Path(where) / MANIFEST_FILE)
    if manifest is None:
        return None
    fields = changed_fields(manifest, _named_where_they_lie(config))
    fields += difference(manifest.stages, keys) if not fields else []
    if fields:
        raise UserError(
            f"{where} was prepared with another configuration:\n  data."
            + "\n  data.".join(fields)
            + f"\ngive another folder with --data-dir, or delete {where} to prepare it again"
        )
    prepared_ns = changed_ns(path) if is_url(where) else Path(path).stat().st_mtime_ns
    if changed := changed_input(config, manifest, prepared_ns):
        raise UserError(
            f"{where} was prepared from other input: {changed}; "
            f"give another folder with --data-dir, or delete {where} to prepare it again"
        )
    return manifest


def _manifest_in(folder: Path) -> Manifest | None:
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return None
    if not (folder / MANIFEST_FILE).is_file():
        raise UserError(
            f"{folder} exists and is no prepared data: give another data_dir, or remove it"
        )
    return load_manifest(folder)


def _make(
    run: Pipeline, filters: Sequence[Filter], scorers: Sequence[Scorer], guide: Guide | None,
    keys: dict[str, str],
) -> Prepared:  # fmt: skip
    config, started_ns = run.config, time.time_ns()
    # First, so that a vocabulary that cannot be had is found before hours of reading.
    vocabulary = None
    if config.tokenizer.source != "train":
        vocabulary = fetched_vocabulary(config.tokenizer, _prompts(run), run.store)
    run.blocks = plan_blocks(config.sources)
    for line in undivided(config.sources, run.blocks):
        say(line, enabled=run.progress)
    run.engine.close()
    run.engine = _engine(config.engine, sum(b.size_bytes for b in run.blocks))
    inputs = input_files(run)
    reads, runs = read_stage(run)
    selected, dedups = dedup_stage(run, reads, runs)
    outcome = Outcome(reads, dedups)
    for stage in filters:
        outcome.stages[stage.name] = filter_stage(run, selected, stage)
    for near in configured_near_duplicates(config):
        outcome.stages[near.name] = near_duplicate_stage(run, selected, near)
    for scorer in scorers:
        outcome.stages[scorer.name] = score_stage(run, selected, scorer)
    left = [outcome.left(index) for index in range(len(run.names))]
    outcome.taken, outcome.splits, evals = split_stage(run, selected, left)
    for index, source in enumerate(config.sources):
        outcome.check_not_empty(source.name, index)
    if vocabulary is None:
        vocabulary = _learnt_vocabulary(run, selected, outcome.splits)
    negatives = _negatives(run, outcome.splits)
    embedded = None if guide is None else guide_stage(run, selected, guide, negatives)
    encoded, files = _encode(run, selected, outcome.splits, vocabulary, negatives, embedded)
    manifest = Manifest(
        format_version=FORMAT_VERSION,
        config=prepared_config(config),
        filters=VERSIONS,
        tokenizer_sha256=vocabulary.sha256,
        vocab_size=vocabulary.size,
        stages=keys,
        models=_models([*filters, *scorers]) | ({"guide": guide.sha256} if guide else {}),
        sources=summaries(config, inputs, outcome, encoded, vocabulary.prompt_tokens),
        leaks=_leaks(run, filters),
        guide=guide,
    )
    for summary, file in zip(manifest.sources, evals, strict=True):
        if summary.eval_path is not None:
            files[summary.eval_path] = file
    for name in vocabulary.files:
        files[f"tokenizer/{name}"] = vocabulary.folder(run.store).file(name)
    for name, file in ledger_files(run).items():
        files[f"{LEDGER}/{name}"] = file
    return Prepared(manifest, files, started_ns)


def _models(stages: Sequence[Stage]) -> dict[str, str]:
    return {s.name: str(s.model_sha256) for s in stages if hasattr(s, "model_sha256")}


def _leaks(run: Pipeline, filters: Sequence[Filter]) -> dict[str, dict[str, int]]:
    """What was found of each evaluation set, from the texts that the filter left out."""
    for stage in filters:
        if isinstance(stage, DecontaminationFilter):
            return leak_report(dropped_texts(run.ledgers_of(stage.name)), stage)
    return {}


def _prompts(run: Pipeline) -> list[tuple[str, str]]:
    return [prompts_of(source, run.config.prompts) for source in run.config.sources]


def _learnt_vocabulary(
    run: Pipeline, selected: Selected, splits: Sequence[SplitResult]
) -> Vocabulary:
    config, prompts = run.config.tokenizer, _prompts(run)
    needed = partitions_needed([sum(part.train) for part in splits], config.train_texts)
    key = content_key("vocabulary", unchangeable_fields(config), prompts, selected.keys[:needed])
    out = StoredFolder(run.store, run.output("vocabulary", key, "").name)
    arguments = (config, selected.partitions[:needed], prompts, out)
    task = Task("vocabulary", vocabulary_task, arguments, key)
    (vocabulary,) = run.run([task], "vocabulary", "vocabularies")
    if vocabulary.size < config.vocab_size:
        say(
            f"the vocabulary has {vocabulary.size:,} pieces, which is all that this corpus fills "
            f"of data.tokenizer.vocab_size={config.vocab_size:,}",
            enabled=run.progress,
        )
    return vocabulary


def _negatives(run: Pipeline, splits: Sequence[SplitResult]) -> list[int]:
    """Per source, the most negatives of a record."""
    most = run.config.negatives_per_record or _MOST_NEGATIVES
    found = []
    for source, name in enumerate(run.names):
        negatives = min(most, max(part.negatives[source] for part in splits))
        if run.triplets[source] and not negatives and source in run.found:
            say(f"{name}: no record has a negative; they are pairs", enabled=run.progress)
        elif run.triplets[source] and not negatives:
            raise UnusableError(
                f"source {name!r}: no record that is left has a text in its negative_field "
                f"({run.config.sources[source].negative_field}); name the field that has, or leave "
                f"negative_field empty beside a query_field and positive_field for pairs"
            )
        found.append(negatives)
    return found


def _encode(
    run: Pipeline, selected: Selected, splits: Sequence[SplitResult], vocabulary: Vocabulary,
    negatives: Sequence[int], guide: tuple[StoredFile, str] | None,
) -> tuple[list[list[EncodedShard]], dict[str, StoredFile]]:  # fmt: skip
    """Shards of each source: as many as its own records need, wherever partitions end; and the file
    of each by its name in the prepared folder.
    """
    most = run.config.max_text_tokens
    tokenizer = vocabulary.folder(run.store)
    embeddings, guide_depends = guide or (None, "")
    tasks, of_source, records = [], [], []
    for source, name in enumerate(run.names):
        prompts = prompts_of(run.config.sources[source], run.config.prompts)
        shards = cut_shards([part.train[source] for part in splits], run.config.records_per_shard)
        for number, spans in enumerate(shards):
            parts = [(selected.partitions[s.part], s.first, s.end) for s in spans]
            file_name = f"train/{name}-{number:05d}.arrayrecord"
            depends = [(selected.keys[s.part], s.first, s.end) for s in spans]
            key = content_key(
                "encode", FORMAT_VERSION, vocabulary.sha256, most, negatives[source], prompts,
                file_name, source, depends, guide_depends,
            )  # fmt: skip
            arguments = (
                parts, source, tokenizer, most, negatives[source], prompts, embeddings, file_name,
                run.output("encode", key, ".arrayrecord"),
            )  # fmt: skip
            tasks.append(Task("encode", encode_task, arguments, key))
            of_source.append(source)
            records.append(sum(s.end - s.first for s in spans))
    found: list[list[EncodedShard]] = [[] for _ in run.names]
    results = run.run(tasks, "tokenise", "shards", records)
    for source, shard in zip(of_source, results, strict=True):
        found[source].append(shard)
    files = {task.arguments[-2]: task.arguments[-1] for task in tasks}
    return found, files
