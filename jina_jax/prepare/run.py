"""Preparation: from sources to a folder of shuffled shards of token ids.

folder/manifest.json        what is here and where it came from
folder/train/SOURCE-NNNNN.arrayrecord
folder/eval/SOURCE.parquet  held-out records, as text
folder/tokenizer/           tokenizer.json, spiece.model
folder/ledger.parquet       what was left out, and why
"""

import dataclasses
import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from jina_jax.config import DataConfig, EngineConfig
from jina_jax.config.files import difference, unchangeable_fields
from jina_jax.config.source import prompts_of
from jina_jax.errors import UnusableError, UserError
from jina_jax.prepare.engine.local import LocalEngine
from jina_jax.prepare.engine.task import Engine, Task
from jina_jax.prepare.filters.decontaminate import DecontaminationFilter, leak_report
from jina_jax.prepare.filters.filter import Filter, Scorer, Stage, filter_key
from jina_jax.prepare.ingest import plan_blocks
from jina_jax.prepare.inputs import changed_input, input_files
from jina_jax.prepare.ledger import dropped_texts, merge_ledgers
from jina_jax.prepare.pipeline import (
    Pipeline,
    Selected,
    dedup_stage,
    filter_stage,
    read_stage,
    split_stage,
)
from jina_jax.prepare.scoring import score_stage
from jina_jax.prepare.split import SplitResult
from jina_jax.prepare.stages import configured_filters, configured_scorers
from jina_jax.prepare.summary import VERSIONS, Outcome, eval_path, summaries
from jina_jax.prepare.tokenise import (
    EncodedShard,
    Vocabulary,
    cut_shards,
    encode_task,
    vocabulary_task,
)
from jina_jax.shards.manifest import (
    FORMAT_VERSION,
    LEDGER_FILE,
    MANIFEST_FILE,
    Manifest,
    changed_fields,
    load_manifest,
    prepared_config,
    save_manifest,
)
from jina_jax.sources.read import what_was_found, with_fields
from jina_jax.system.hashing import content_key
from jina_jax.system.terminal import say
from jina_jax.system.workspace import discard_hidden, discard_leftovers, workspace

_SMALL_BYTES = 16 << 20
_MOST_NEGATIVES = 7
"""Of a record, where the configuration leaves it open."""


def prepare(config: DataConfig, out_dir: Path, progress: bool = True) -> Manifest:
    """Reads, cleans, deduplicates, filters, shuffles, splits and tokenises the sources.

    The same configuration and input give the same bytes. The folder appears when it is complete;
    a run that is killed goes on, when it is called again, from the tasks it had finished. A task
    holds one partition in memory, and the number of partitions follows the size of the data. Scores
    of filters with a model are kept in `OUT_DIR.scores`, for another preparation with other
    thresholds; delete that folder when there will be none.

    Args:
      config: the data section.
      out_dir: the folder to make. One that was prepared with the same configuration is kept.
      progress: show it on standard error.
    Returns: the manifest of the folder.
    Raises: UserError when a source cannot be used, nothing is left, or `out_dir` holds something
      else.
    """
    if not config.sources:
        raise UserError("data.sources is empty: name at least one source of pairs")
    out_dir = out_dir.absolute()
    filters, scorers = configured_filters(config), configured_scorers(config)
    stages: list[Stage] = [*filters, *scorers]
    keys = {stage.name: filter_key(stage) for stage in stages}
    prepared = _already_prepared(config, keys, out_dir)
    if prepared is not None:
        say(f"{out_dir} is already prepared with this configuration", enabled=progress)
        return prepared
    rejected = out_dir.with_name(f"{out_dir.name}.rejected.parquet")
    identity = content_key(FORMAT_VERSION, prepared_config(config), VERSIONS, keys)
    scores_dir = out_dir.with_name(f"{out_dir.name}.scores")
    with workspace(out_dir, identity) as space:
        rejected.unlink(missing_ok=True)
        discard_hidden(scores_dir)
        discard_hidden(space.result)
        # First, so that a vocabulary that cannot be had is found before hours of reading.
        found = frozenset(i for i, s in enumerate(config.sources) if s.finds_negatives)
        named = _with_named_fields(config, progress)
        run = Pipeline(named, space, scores_dir, progress, found)
        vocabulary = None if config.tokenizer.source == "train" else _vocabulary(run, None)
        run.blocks = plan_blocks(run.config.sources)
        run.engine = _engine(config.engine, sum(b.size_bytes for b in run.blocks))
        try:
            manifest = _run(run, filters, scorers, keys, vocabulary)
        except UnusableError as error:
            merge_ledgers(run.ledgers, rejected)
            raise UnusableError(f"{error}\nEach such record and its reason: {rejected}") from error
        finally:
            run.engine.close()
        merge_ledgers(run.ledgers, space.result / LEDGER_FILE)
        manifest = dataclasses.replace(manifest, leaks=_leaks(space.result, filters))
        save_manifest(manifest, space.result)
    say(f"prepared {manifest.train_records:,} training records in {out_dir}", enabled=progress)
    return manifest


def _with_named_fields(config: DataConfig, progress: bool) -> DataConfig:
    """With the fields of each source, where they were left to be found; says which."""
    sources = tuple(map(with_fields, config.sources))
    for source, named in zip(config.sources, sources, strict=True):
        if line := what_was_found(source, named):
            say(line, enabled=progress)
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

        return RayEngine(config.ray_address, config.workers)
    cores = len(os.sched_getaffinity(0))
    return LocalEngine(config.workers or (1 if input_bytes < _SMALL_BYTES else cores))


def _already_prepared(config: DataConfig, keys: dict[str, str], out_dir: Path) -> Manifest | None:
    if not out_dir.exists() or (out_dir.is_dir() and not any(out_dir.iterdir())):
        return None
    if not (out_dir / MANIFEST_FILE).is_file():
        raise UserError(
            f"{out_dir} exists and is no prepared data: give another data_dir, or remove it"
        )
    manifest = load_manifest(out_dir)
    discard_leftovers(out_dir)
    fields = changed_fields(manifest, _named_where_they_lie(config))
    fields += difference(manifest.stages, keys) if not fields else []
    if fields:
        raise UserError(
            f"{out_dir} was prepared with another configuration:\n  data."
            + "\n  data.".join(fields)
            + f"\ngive another folder with --data-dir, or delete {out_dir} to prepare it again"
        )
    if changed := changed_input(config, manifest, out_dir / MANIFEST_FILE):
        raise UserError(
            f"{out_dir} was prepared from other input: {changed}; "
            f"give another folder with --data-dir, or delete {out_dir} to prepare it again"
        )
    return manifest


def _run(
    run: Pipeline,
    filters: Sequence[Filter],
    scorers: Sequence[Scorer],
    keys: dict[str, str],
    vocabulary: Vocabulary | None,
) -> Manifest:
    config, folder = run.config, run.space.result
    for name in ("train", "eval"):
        (folder / name).mkdir(exist_ok=True)
    inputs = input_files(run)
    reads, runs = read_stage(run)
    selected, dedups = dedup_stage(run, reads, runs)
    outcome = Outcome(reads, dedups)
    for stage in filters:
        outcome.stages[stage.name] = filter_stage(run, selected, stage)
    for scorer in scorers:
        outcome.stages[scorer.name] = score_stage(run, selected, scorer)
    evals = [folder / eval_path(name) for name in run.names]
    left = [outcome.left(index) for index in range(len(run.names))]
    outcome.taken, outcome.splits = split_stage(run, selected, left, evals)
    for index, source in enumerate(config.sources):
        outcome.check_not_empty(source.name, index)
    if vocabulary is None:
        vocabulary = _vocabulary(run, selected)
    encoded = _encode(run, selected, outcome.splits, vocabulary)
    manifest = Manifest(
        format_version=FORMAT_VERSION,
        config=prepared_config(config),
        filters=VERSIONS,
        tokenizer_sha256=vocabulary.sha256,
        vocab_size=vocabulary.size,
        stages=keys,
        models=_models([*filters, *scorers]),
        sources=summaries(config, inputs, outcome, encoded, vocabulary.prompt_tokens),
        leaks={},
    )
    # Input that changed while the work was interrupted may have left files of what it was before.
    listed = {s.path for source in manifest.sources for s in source.shards}
    listed |= {source.eval_path for source in manifest.sources if source.eval_path}
    for path in (*folder.glob("train/*"), *folder.glob("eval/*")):
        if str(path.relative_to(folder)) not in listed:
            path.unlink()
    return manifest


def _models(stages: Sequence[Stage]) -> dict[str, str]:
    return {s.name: str(s.model_sha256) for s in stages if hasattr(s, "model_sha256")}


def _leaks(folder: Path, filters: Sequence[Filter]) -> dict[str, dict[str, int]]:
    """What was found of each evaluation set, from the texts that the filter left in the ledger."""
    for stage in filters:
        if isinstance(stage, DecontaminationFilter):
            return leak_report(dropped_texts(folder, stage.name), stage)
    return {}


def _vocabulary(run: Pipeline, selected: Selected | None) -> Vocabulary:
    config = run.config.tokenizer
    partitions = selected.partitions if selected else []
    prompts = [prompts_of(source, run.config.prompts) for source in run.config.sources]
    depends = selected.keys if selected else []
    key = content_key("vocabulary", unchangeable_fields(config), prompts, depends)
    folder = run.space.result / "tokenizer"
    task = Task("vocabulary", vocabulary_task, (config, list(partitions), prompts, folder), key)
    (vocabulary,) = run.run([task], "vocabulary", "vocabularies")
    if config.source == "train" and vocabulary.size < config.vocab_size:
        say(
            f"the vocabulary has {vocabulary.size:,} pieces, which is all that this corpus fills "
            f"of data.tokenizer.vocab_size={config.vocab_size:,}",
            enabled=run.progress,
        )
    return vocabulary


def _encode(
    run: Pipeline, selected: Selected, splits: Sequence[SplitResult], vocabulary: Vocabulary
) -> list[list[EncodedShard]]:
    """Shards of each source: as many as its own records need, wherever partitions end."""
    folder, most = run.space.result, run.config.max_text_tokens
    most_negatives = run.config.negatives_per_record or _MOST_NEGATIVES
    tasks, of_source, records = [], [], []
    for source, name in enumerate(run.names):
        negatives = min(most_negatives, max(part.negatives[source] for part in splits))
        if run.triplets[source] and not negatives and source in run.found:
            say(f"{name}: no record has a negative; they are pairs", enabled=run.progress)
        elif run.triplets[source] and not negatives:
            raise UnusableError(
                f"source {name!r}: no record that is left has a text in its negative_field "
                f"({run.config.sources[source].negative_field}); name the field that has, or leave "
                f"negative_field empty beside a query_field and positive_field for pairs"
            )
        prompts = prompts_of(run.config.sources[source], run.config.prompts)
        shards = cut_shards([part.train[source] for part in splits], run.config.records_per_shard)
        for number, spans in enumerate(shards):
            parts = [(selected.partitions[s.part], s.first, s.end) for s in spans]
            path = folder / f"train/{name}-{number:05d}.arrayrecord"
            arguments = (parts, source, folder / "tokenizer", most, negatives, prompts, path)
            depends = [(selected.keys[s.part], s.first, s.end) for s in spans]
            key = content_key(
                "encode", vocabulary.sha256, most, negatives, prompts, run.names, source, depends
            )
            tasks.append(Task(f"encode-{source:03d}-{number:06d}", encode_task, arguments, key))
            of_source.append(source)
            records.append(sum(s.end - s.first for s in spans))
    found: list[list[EncodedShard]] = [[] for _ in run.names]
    results = run.run(tasks, "tokenise", "shards", records)
    for source, shard in zip(of_source, results, strict=True):
        found[source].append(shard)
    return found
