"""The training loop: reads top to bottom, from a prepared folder to checkpoints."""

import json
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh

from jina_jax.checkpoint.checkpoints import BEST_FOLDER, STARTS_FILE, Checkpoints, is_run
from jina_jax.checkpoint.state import TrainState
from jina_jax.config import RunConfig
from jina_jax.config.files import changed_since, local_folder, to_json, unchangeable_fields
from jina_jax.config.validation import validate
from jina_jax.devices.distributed import HostWatch, check_agreement, is_first, start, wait_for_all
from jina_jax.devices.memory import as_out_of_memory
from jina_jax.devices.mesh import check_divides, local_groups, make_mesh, put
from jina_jax.errors import Interrupted, UserError
from jina_jax.feed.batch import Batch, PackedBatch
from jina_jax.feed.order import ORDER_VERSION
from jina_jax.feed.pipeline import feed_of_run
from jina_jax.inference.initial import initial_params
from jina_jax.model.encoder import parameter_count
from jina_jax.model.lora import split_trained
from jina_jax.shards.manifest import (
    MANIFEST_FILE,
    Manifest,
    blank_data,
    check_guide,
    load_manifest,
)
from jina_jax.shards.verify import verify_shards
from jina_jax.system.environment import environment
from jina_jax.system.hashing import file_sha256
from jina_jax.system.mirror import Mirror
from jina_jax.system.terminal import say
from jina_jax.system.workspace import check_writable
from jina_jax.text.tokenizer import SPIECE_FILE, TOKENIZER_FILE
from jina_jax.train.evaluation import OnEvaluation, StepEvaluation
from jina_jax.train.metrics.profile import Profiler
from jina_jax.train.metrics.throughput import Goodput, Throughput
from jina_jax.train.metrics.writer import METRICS_FILE, MetricsWriter, read_metrics
from jina_jax.train.optimizer import learning_rate_schedule
from jina_jax.train.saves import Saves
from jina_jax.train.step import (
    CompiledStep,
    attention_kernel,
    batch_shardings,
    init_state,
    state_shapes,
    state_shardings,
)
from jina_jax.train.step_log import OnStep, SourceMetrics, StepLog
from jina_jax.train.watch.lease import Lease
from jina_jax.train.watch.skipped import SkippedSteps
from jina_jax.train.watch.stop import StopLatch, Watchdog


class Callbacks(NamedTuple):
    """What is called in the first process while a run trains."""

    on_step: OnStep | None = None
    on_evaluation: OnEvaluation | None = None


def train(
    config: RunConfig, *, on_step: OnStep | None = None, on_evaluation: OnEvaluation | None = None
) -> TrainState:
    """Trains to `config.train.num_steps`, from the newest good checkpoint if there is one.

    Args:
      config: of the run.
      on_step: called in the first process with the steps done and each line of metrics.
      on_evaluation: called there with the steps done and each evaluation's values.
    Raises:
      UserError: the data, the configuration or the checkpoint cannot be used.
      OSError: the run folder may not be written to.
      RunFailed: the run cannot go on; `errors.ExitCode` lists why.
      Interrupted: SIGINT or SIGTERM came; everything is saved.
    """
    goodput = Goodput()
    validate(config)
    start(config.distributed, config.faults.heartbeat_s)
    for folder in (config.run_path, config.checkpoint_path, config.run_path / BEST_FOLDER):
        check_writable(folder)
    manifest = load_manifest(config.data_path)
    verify_shards(manifest, config.data_path)
    check_data(config, manifest)
    mesh = make_mesh(config.mesh)
    check_divides(config, mesh)
    _keep_programs(config.run_path / "compiled")
    with HostWatch(config.faults.heartbeat_s) as hosts:
        try:
            with Lease(config.run_path, config.faults.heartbeat_s, config.run_url):
                return _train_on(config, manifest, mesh, goodput, Callbacks(on_step, on_evaluation))
        except jax.errors.JaxRuntimeError as error:
            hosts.explain(error)
            raise as_out_of_memory(error, config, mesh.size) from error
        except ValueError as error:  # What Gloo raises when a connection is cut.
            hosts.explain(error)
            raise


def _train_on(
    config: RunConfig, manifest: Manifest, mesh: Mesh, goodput: Goodput, callbacks: Callbacks
) -> TrainState:
    mirror = _mirror(config)
    with (
        Checkpoints(
            config.checkpoint_path, keep=config.train.keep_checkpoints, before_seal=mirror.send
        ) as checkpoints,
        Watchdog(config) as watchdog,
        mirror,
    ):
        checkpoints.send_kept()
        mirror.fetch()
        metadata = {
            "config": unchangeable_fields(config),
            "manifest_sha256": file_sha256(config.data_path / MANIFEST_FILE),
            "order": ORDER_VERSION,
        }
        check_agreement(json.dumps([metadata, checkpoints.steps], sort_keys=True))
        state = _first_state(config, checkpoints, metadata, mesh, goodput)
        if is_first():
            _write_run_files(config, int(state.step))
        say(
            f"{config.name}: {_parameters(config, state)} on {_words(mesh)}, from "
            f"step {int(state.step)} of {config.train.num_steps}; "
            f"{_averaged(config)}configuration in {config.run_url or config.run_path}/config.json",
            enabled=is_first(),
        )
        saves = Saves(config, checkpoints, lambda: metadata | {"goodput": goodput.saved_with()})
        return _run_steps(config, manifest, mesh, state, saves, watchdog, goodput, callbacks)


def _mirror(config: RunConfig) -> Mirror:
    """Of a run folder at a URL, which the first process begins where there is none."""
    mirror = Mirror(config.run_url, config.run_path, writes=is_first())
    if is_first():
        mirror.make(may_begin=True)
    wait_for_all()
    if not is_first():
        mirror.make(may_begin=False)
    return mirror


def _keep_programs(folder: Path) -> None:
    """Keeps compiled programs for the next start, unless JAX_COMPILATION_CACHE_DIR has a folder."""
    if not jax.config.values["jax_compilation_cache_dir"]:
        jax.config.update("jax_compilation_cache_dir", str(folder.absolute()))


def _averaged(config: RunConfig) -> str:
    if not config.train.ema_decay:
        return ""
    return f"the model is the average of the parameters at decay {config.train.ema_decay:g}; "


def _parameters(config: RunConfig, state: TrainState) -> str:
    words = f"{parameter_count(config.model, config.pooling):,} parameters"
    if not config.lora.rank:
        return words
    trained, _ = split_trained(state.params, config.lora)
    count = sum(x.size for x in jax.tree.leaves(trained))
    return f"{words} and {count:,} beside them, which alone are trained,"


def _words(mesh: Mesh) -> str:
    split = " · ".join(f"{axis} {size}" for axis, size in mesh.shape.items() if size > 1)
    of = f" of {jax.process_count()} processes" if jax.process_count() > 1 else ""
    return (
        f"{mesh.size} {mesh.devices.flat[0].device_kind} device(s){of}"
        f"{f' ({split})' if split else ''}"
    )


def check_data(config: RunConfig, manifest: Manifest) -> None:
    """The embedding table must cover the vocabulary of the shards, and know it where it is given;
    distillation needs a teacher's scores, and the shards must have the labels, scores and guide
    that the configuration names.

    Raises: UserError.
    """
    if manifest.vocab_size > config.model.vocab_size:
        raise UserError(
            f"the shards use a vocabulary of {manifest.vocab_size} pieces, more than "
            f"model.vocab_size={config.model.vocab_size}; raise model.vocab_size to at least that"
        )
    if config.loss.distill_weight > 0 and not any(s.has_scores for s in manifest.sources):
        raise UserError(
            f"loss.distill_weight={config.loss.distill_weight} and no source in {config.data_path} "
            f"has a teacher's scores: enable data.consistency for pairs or data.margin for "
            f"triplets, and prepare again"
        )
    _check_beside(config, manifest)
    start = local_folder(config.train.initial_weights)
    theirs = start / "tokenizer" if is_run(start) else start
    ours = config.data_path / "tokenizer"
    if config.train.initial_weights and not _is_same_tokenizer(theirs, ours):
        raise UserError(
            f"train.initial_weights={config.train.initial_weights} learned another vocabulary than "
            f"the prepared data have: set data.tokenizer.source={theirs} and prepare again"
        )


def _check_beside(config: RunConfig, manifest: Manifest) -> None:
    again = f"delete {config.data_path} and prepare again"
    prepared = {summary.name: summary for summary in manifest.sources}
    for source in config.data.sources:
        if (summary := prepared.get(source.name)) is None:
            continue
        for name, is_there in (
            ("label_field", summary.has_labels), ("score_field", summary.record == "scored"),
        ):  # fmt: skip
            if getattr(source, name) and not is_there:
                raise UserError(
                    f"source {source.name!r}: {name}={getattr(source, name)!r}, and its shards in "
                    f"{config.data_path} were prepared without: {again}"
                )
        has_teacher = config.loss.distill_weight > 0 or config.loss.distill_embeddings_weight > 0
        if summary.record == "pair" and not (source.in_batch or has_teacher):
            raise UserError(
                f"source {source.name!r}: in_batch=False, and its pairs have no other negatives, "
                f"so that nothing is learned from them; name a negative_field (`jina-jax mine` "
                f"finds negatives), or leave in_batch at True"
            )
    if config.data.guide.model:
        check_guide(manifest, config.data_path, f"data.guide.model={config.data.guide.model}")


def _is_same_tokenizer(theirs: Path, ours: Path) -> bool:
    """Told by the file that both have; True where there is none to compare."""
    for name in (SPIECE_FILE, TOKENIZER_FILE):
        if (theirs / name).is_file():
            hashes = [file_sha256(d / name) for d in (theirs, ours) if (d / name).is_file()]
            return len(hashes) == 2 and hashes[0] == hashes[1]
    return True


def _first_state(
    config: RunConfig, checkpoints: Checkpoints, metadata: dict[str, Any], mesh: Mesh,
    goodput: Goodput,
) -> TrainState:  # fmt: skip
    shardings = state_shardings(config, mesh)
    step = checkpoints.newest_good()
    if step is None:
        params = initial_params(config, mesh)
        return jax.jit(partial(init_state, config), out_shardings=shardings)(params)
    saved, here = checkpoints.metadata(step), config.run_url or str(config.run_path)
    for made in ("imported", "merged"):
        if made in saved:
            raise UserError(
                f"{checkpoints.place} holds a model that was {made}, which no training goes on "
                f"in: train in another folder with --train.initial-weights={here}"
            )
    blank = RunConfig(name="", data=blank_data(config.data))
    before = dict(saved["config"])
    if before.get(_NUM_STEPS, config.train.num_steps) < config.train.num_steps:
        _tell_raised(config, before[_NUM_STEPS], step)
        before[_NUM_STEPS] = config.train.num_steps
    if saved.get("order") != ORDER_VERSION:
        raise UserError(
            f"{checkpoints.place} holds step {step} of a run that an earlier version began, whose "
            f"batches came in another order: go on with that version, or begin anew in another "
            f"folder, with --workdir; and there from this run's weights with "
            f"--train.initial-weights={here}"
        )
    changes = changed_since(before, metadata["config"], unchangeable_fields(blank))
    if saved["manifest_sha256"] != metadata["manifest_sha256"]:
        changes.append(f"the prepared data in {config.data_path} is not what the run began with")
    if changes:
        raise UserError(
            f"{checkpoints.place} holds step {step} of another configuration:\n  "
            + "\n  ".join(changes)
            + "\nundo these to go on with it. Or begin anew in another folder, with --workdir; and "
            f"there from this run's weights with --train.initial-weights={here} (in a "
            f"config file, model={here!r})"
        )
    like = jax.tree.map(
        lambda x, at: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=at),
        state_shapes(config), shardings,
    )  # fmt: skip
    goodput.resume(saved["goodput"], (read_metrics(config.run_path / METRICS_FILE) or [{}])[-1])
    return checkpoints.restore(step, like)


_NUM_STEPS = "train.num_steps"


def _tell_raised(config: RunConfig, before: int, step: int) -> None:
    num_steps = config.train.num_steps
    rates = [
        float(learning_rate_schedule(config.optim, steps)(step)) for steps in (before, num_steps)
    ]
    say(
        f"{_NUM_STEPS}: {before:,} → {num_steps:,}. The course of the learning rate "
        f"({config.optim.schedule}) now ends there: after step {step:,} it is {rates[1]:.3g}, "
        f"where it would have been {rates[0]:.3g}",
        enabled=is_first(),
    )


def _write_run_files(config: RunConfig, step: int) -> None:
    """Makes the run folder whole: its configuration and its tokenizer lie in it, and a line of
    what it was started on, at this step.
    """
    (config.run_path / "config.json").write_text(to_json(config) + "\n", encoding="utf-8")
    (config.run_path / "tokenizer").mkdir(exist_ok=True)
    for path in (config.data_path / "tokenizer").iterdir():
        # Not its mode: data that may only be read shall not make such a run.
        shutil.copyfile(path, config.run_path / "tokenizer" / path.name)
    began = datetime.now(UTC).isoformat(timespec="seconds")
    with (config.run_path / STARTS_FILE).open("a", encoding="utf-8") as file:
        file.write(json.dumps({"began": began, "step": step} | environment()) + "\n")


def _run_steps(
    config: RunConfig, manifest: Manifest, mesh: Mesh, state: TrainState,
    saves: Saves, watchdog: Watchdog, goodput: Goodput, callbacks: Callbacks,
) -> TrainState:  # fmt: skip
    num_steps, first = config.train.num_steps, int(state.step)
    groups = local_groups(mesh, config.feed.num_groups)
    feed = feed_of_run(config, manifest, first, groups)
    evaluation = StepEvaluation(config, mesh, first, callbacks.on_evaluation)
    skipped = SkippedSteps(
        config.run_path, list(feed.records), feed.records_of,
        start=first, limit=config.faults.max_skipped_steps, writes=is_first(),
    )  # fmt: skip
    with (
        CompiledStep(config, mesh, feed.buckets.rows, feed.feed.fields) as step_fn,
        StopLatch() as latch,
        MetricsWriter(config, first) if is_first() else nullcontext() as writer,
        Profiler(config, first) as profiler,
    ):
        if evaluation.due(first):
            with watchdog.step(f"the evaluation after step {first}"), goodput.of("evaluation"):
                evaluation.run(state, first, writer)
        of_sources = SourceMetrics(
            feed.records, feed.feed.mixture, batch_size=config.feed.global_batch_size, done=first
        )
        say(of_sources.planned(), enabled=is_first())
        say(str(feed.buckets), enabled=is_first())
        _, why = attention_kernel(config, mesh)
        if why:
            say(
                f"attention is left to the compiler, not to the kernel for TPUs: {why}",
                enabled=is_first(),
            )
        log = StepLog(config, mesh, writer, of_sources, skipped, saves, goodput, callbacks.on_step)
        goodput.enter("step")
        on_mesh = partial(
            put, shardings=batch_shardings(mesh), own=groups, groups=config.feed.num_groups
        )
        for batch, arrays in _on_devices(feed.batches, on_mesh, log.throughput, watchdog, goodput):
            profiler.before(batch.step, state)
            done = batch.step + 1
            if not step_fn.is_ready(arrays):
                with (
                    watchdog.step(f"the compilation of step {done}"),
                    goodput.of("compile"),
                    log.throughput.leaves_out(),
                ):
                    step_fn.make_ready(arrays)
            with watchdog.step(f"step {done}", times=1):
                state, metrics = step_fn(state, arrays)
                log.dispatched(batch, metrics)
                stop = latch.requested(batch.step)
                is_last = done == num_steps or stop is not None or skipped.are_too_many
                if is_last:
                    log.flush()
            with watchdog.step(f"the save after step {done}"), goodput.of("checkpoint"):
                saves.after(state, done, is_last=is_last)
            if skipped.are_too_many:
                raise skipped.error(done)
            if stop is None and evaluation.due(done):
                log.flush()
                with (
                    watchdog.step(f"the evaluation after step {done}"),
                    goodput.of("evaluation"),
                    log.throughput.leaves_out(),
                ):
                    evaluation.run(state, done, writer)
            if stop is not None and done < num_steps:
                raise Interrupted(stop, done)
    return state


def _on_devices(
    feed: Iterator[Batch],
    on_mesh: Callable[[PackedBatch], PackedBatch],
    throughput: Throughput,
    watchdog: Watchdog,
    goodput: Goodput,
) -> Iterator[tuple[Batch, PackedBatch]]:
    """Puts each batch on the devices while the step before it still runs."""
    is_first_batch = True
    while True:
        began = time.perf_counter()
        with watchdog.batch(is_first=is_first_batch), goodput.of("data_wait"):
            batch = next(feed, None)
        is_first_batch = False
        throughput.data_wait_s += time.perf_counter() - began
        if batch is None:
            return
        yield batch, on_mesh(batch.arrays)
