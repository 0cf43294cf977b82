"""A run: its configuration, sources, checkpoints and tokenizer; and a model's folder."""

import os
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from jina_jax.checkpoint.checkpoints import BEST_FOLDER, Checkpoints, load_checkpoint
from jina_jax.config import RunConfig, SourceConfig
from jina_jax.config.validation import check_credentials, validate
from jina_jax.doctor.machine import Check, Checks, Verdict, folder_checks, guarded
from jina_jax.errors import UserError
from jina_jax.inference.model_folder import read_params, read_sentence_config
from jina_jax.model.encoder import parameter_count
from jina_jax.shards.bucket import BucketShard, remedy
from jina_jax.shards.manifest import (
    MANIFEST_FILE,
    Manifest,
    ShardFile,
    SourceSummary,
    changed_fields,
    load_manifest,
)
from jina_jax.shards.remote import places
from jina_jax.shards.shard_set import ShardSet
from jina_jax.shards.verify import data_problems
from jina_jax.sources.read import is_of_files, matched_files
from jina_jax.system.files import file_state
from jina_jax.system.hashing import file_sha256
from jina_jax.system.untrusted import inner_path
from jina_jax.text.tokenizer import TOKENIZER_FILE, check_ids, load_tokenizer

_SHOWN = 5
_THREADS = 16
"""Of shards, which wait for the disk or the network most of the time."""


def prepared_checks(folder: Path, *, full: bool, config: RunConfig | None = None) -> Checks:
    """The checks of a prepared folder.

    Args:
      folder: with manifest.json.
      full: hash every byte of the shards.
      config: of the run that is to be trained on it; None for none.
    """
    try:
        manifest = load_manifest(folder)
    except UserError as error:
        yield Check("prepared data", "failed", str(error), f"jina-jax prepare into {folder}")
        return
    yield Check(
        "prepared data", "ok",
        f"{folder}: {len(manifest.sources)} sources, {manifest.train_records:,} training records",
    )  # fmt: skip
    yield from _shards(manifest, folder, full)
    yield from guarded("tokenizer of the data", lambda: _tokenizer(manifest, folder))
    yield from _held_out(manifest, folder)
    if config is not None:
        yield from _fits(manifest, config)


def _shards(manifest: Manifest, folder: Path, full: bool) -> Checks:
    shards = [shard for source in manifest.sources for shard in source.shards]
    size_gb = sum(shard.size_bytes for shard in shards) / 1e9
    problems = list(data_problems(manifest, folder, full=full))
    for problem in problems[:_SHOWN]:
        what, _, remedy = problem.rpartition("; ")
        yield Check("shards", "failed", what, remedy)
    if len(problems) > _SHOWN:
        yield Check("shards", "failed", f"{len(problems) - _SHOWN} more files are wrong")
    if not problems:
        how = "every byte hashed" if full else "sizes and ends compared; --full hashes every byte"
        yield Check("shards", "ok", f"{len(shards)} of {size_gb:.2f} GB: {how}")
        yield from guarded("records", lambda: _records(manifest, folder))


def _records(manifest: Manifest, folder: Path) -> Checks:
    """Opens each shard, and reads its first and last record."""
    wanted = 0 if manifest.guide is None else manifest.guide.dims

    def read(source: SourceSummary, place: Path | BucketShard, shard: ShardFile) -> None:
        found = ShardSet([place], [shard.records]).read([0, shard.records - 1])
        dims = 0 if found.guide_NSG is None else found.guide_NSG.shape[2]
        has = (found.labels_N is not None, found.golds_N is not None, dims)
        if has != (source.has_labels, source.record == "scored", wanted):
            raise UserError(
                f"shard {place} has other labels, scores or embeddings of a guide than the "
                f"manifest says; {remedy(place)}"
            )

    with ThreadPoolExecutor(_THREADS) as threads:
        for source in manifest.sources:
            of_source = partial(read, source)
            for _ in threads.map(of_source, places(folder, source), source.shards):
                pass
    yield Check("records", "ok", "the first and last of each shard are readable")


def _tokenizer(manifest: Manifest, folder: Path) -> Checks:
    size = load_tokenizer(folder / "tokenizer").get_vocab_size()
    if size == manifest.vocab_size:
        yield Check("tokenizer of the data", "ok", f"{size:,} pieces")
    else:
        yield Check(
            "tokenizer of the data", "failed",
            f"{size:,} pieces instead of {manifest.vocab_size:,}",
            "restore the folder tokenizer/ or prepare the data again",
        )  # fmt: skip


def _held_out(manifest: Manifest, folder: Path) -> Checks:
    for source in manifest.sources:
        if source.eval_path and not inner_path(folder, source.eval_path).is_file():
            yield Check(
                "held-out pairs", "failed", f"{folder / source.eval_path} is missing",
                "restore it or prepare the data again",
            )  # fmt: skip


def _fits(manifest: Manifest, config: RunConfig) -> Checks:
    """Whether the data are those that a configuration asks for, and enough for it."""
    if changes := changed_fields(manifest, config.data):
        yield Check(
            "data and config", "failed", "prepared otherwise: " + "; ".join(changes[:_SHOWN]),
            "undo the change, or prepare into another folder (--data-dir)",
        )  # fmt: skip
    else:
        yield Check("data and config", "ok", "prepared as the configuration says")
    if manifest.vocab_size > config.model.vocab_size:
        yield Check(
            "vocabulary", "failed",
            f"{manifest.vocab_size:,} pieces, model.vocab_size={config.model.vocab_size}",
            "raise model.vocab_size to at least the number of pieces",
        )  # fmt: skip
    batch = config.feed.global_batch_size
    for source in manifest.sources:
        if source.records < batch:
            yield Check(
                f"source {source.name}", "failed",
                f"{source.records:,} training records, feed.global_batch_size={batch}",
                "lower the batch size or leave the source out",
            )  # fmt: skip


_BYTES_PER_PARAMETER = 12
"""float32 parameters and AdamW's two moments."""
_BYTES_PER_FROZEN = 4
"""Where adapters alone have moments."""


def run_checks(config: RunConfig, *, full: bool) -> Checks:
    """The checks of a run that is to be trained or was.

    Args:
      config: of the run.
      full: also read what takes long: every byte of the shards, every parameter.
    """
    try:
        check_credentials(config)
    except UserError as error:
        # Other checks would print what they cannot read.
        what, _, remedy = str(error).partition("; ")
        yield Check("configuration", "failed", what, remedy)
        return
    try:
        validate(config)
        yield Check("configuration", "ok", config.name)
    except UserError as error:
        problems = [line.strip() for line in str(error).splitlines()[1:]]
        yield Check("configuration", "failed", "; ".join(problems), "change these fields")
    parameters = parameter_count(config.model, config.pooling)
    each = _BYTES_PER_FROZEN if config.lora.rank else _BYTES_PER_PARAMETER
    each += 4 * (config.train.ema_decay > 0)
    kept = (config.train.keep_checkpoints + 1) * parameters * each
    yield from folder_checks("run folder", config.run_path, kept)
    is_prepared = (config.data_path / MANIFEST_FILE).exists()
    for source in config.data.sources:
        if is_of_files(source):
            yield _source(source, is_prepared)
    if is_prepared:
        yield from prepared_checks(config.data_path, full=full, config=config)
    elif config.data.sources:
        yield Check(
            "prepared data", "warning", f"none in {config.data_path}", "run `jina-jax prepare`"
        )
    for folder in (config.checkpoint_path, config.run_path / BEST_FOLDER):
        if folder.is_dir():
            yield from _checkpoints(folder, config, full)
    if (config.run_path / "tokenizer").is_dir():
        yield from guarded("tokenizer of the run", lambda: _run_tokenizer(config))


def _source(source: SourceConfig, is_prepared: bool) -> Check:
    subject = f"source {source.name}"
    try:
        files = matched_files(source)
        size = sum(file_state(path).size_bytes for path in files)
    except UserError as error:
        # What is prepared may outlive its input.
        verdict: Verdict = "warning" if is_prepared else "failed"
        return Check(subject, verdict, str(error), "mend its paths, or fetch the files")
    return Check(subject, "ok", f"{len(files)} files of {size / 1e9:.2f} GB")


def _checkpoints(folder: Path, config: RunConfig, full: bool) -> Checks:
    subject = f"{folder.name} (folder)" if folder.name == BEST_FOLDER else folder.name
    kept = Checkpoints(folder)
    steps = kept.steps
    if not steps:
        yield Check(subject, "warning", f"no finished step in {kept.place}", "run `jina-jax train`")
        return
    # Every byte is read of them: of all steps only where that is asked for.
    looked_at = steps if full else steps[-1:]
    damaged = {step: wrong for step in looked_at if (wrong := kept.damage(step))}
    for step, wrong in damaged.items():
        yield Check(
            subject, "failed", f"step {step} of {kept.place} is damaged: {wrong}",
            "`jina-jax train` sets it aside and goes on from the newest step that is whole",
        )  # fmt: skip
    if whole := [step for step in looked_at if step not in damaged]:
        yield Check(subject, "ok", f"step {', '.join(map(str, whole))} as it was sealed")
    if full and folder == config.checkpoint_path and not damaged:
        yield from guarded(subject, lambda: _parameters(config))


def _parameters(config: RunConfig) -> Checks:
    import jax
    import numpy as np

    try:
        trained = load_checkpoint(config.run_path)
    except UserError:
        raise
    except Exception as error:  # As above.
        raise UserError(
            f"the parameters in {config.run_path} cannot be read: {type(error).__name__}; remove "
            f"the newest step, or restore it"
        ) from error
    leaves = jax.tree.leaves(trained.params)
    if not all(np.isfinite(np.asarray(leaf)).all() for leaf in leaves):
        raise UserError(
            f"step {trained.step} of {config.run_path} holds NaN or infinite parameters; go back "
            f"to an earlier step"
        )
    count = sum(leaf.size for leaf in leaves)
    yield Check("parameters", "ok", f"{count:,} of step {trained.step}, all finite")


def _run_tokenizer(config: RunConfig) -> Checks:
    folder = config.run_path / "tokenizer"
    check_ids(load_tokenizer(folder), config.model.vocab_size, folder)
    theirs = config.data_path / "tokenizer" / TOKENIZER_FILE
    if theirs.is_file() and file_sha256(theirs) != file_sha256(folder / TOKENIZER_FILE):
        yield Check(
            "tokenizer of the run", "failed", f"another one than in {config.data_path}",
            "the data were prepared anew: train in another folder, or restore them",
        )  # fmt: skip
    else:
        yield Check("tokenizer of the run", "ok", f"{folder / TOKENIZER_FILE}")


def model_checks(folder: Path) -> Checks:
    """The checks of an exported or other Hugging Face folder.

    Raises: UserError when it cannot be read.
    """
    model = read_sentence_config(folder)
    read_params(folder, model)
    shape = model.config
    yield Check(
        "model", "ok",
        f"{shape.layers} layers, {shape.dimensions} dimensions, texts of {model.max_tokens} tokens",
    )  # fmt: skip
    check_ids(load_tokenizer(folder), shape.vocab_size, folder)
    yield Check("tokenizer of the model", "ok", os.fspath(folder / TOKENIZER_FILE))
