"""The training loop: reads top to bottom, from a prepared folder to checkpoints."""

import json
import shutil
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from jina_jax.checkpoint import Checkpoints
from jina_jax.config import RunConfig
from jina_jax.config_file import difference, to_json, unchangeable_fields
from jina_jax.data.manifest import (
    MANIFEST_FILE,
    Manifest,
    file_sha256,
    load_manifest,
    verify_shards,
)
from jina_jax.data.shards import ShardSet
from jina_jax.data.tokenizer import SPIECE_FILE
from jina_jax.distributed import check_agreement, is_first, start
from jina_jax.environment import environment
from jina_jax.errors import Interrupted, UserError
from jina_jax.feed.batch import Batch, PackedBatch
from jina_jax.feed.mixture import plan_mixture
from jina_jax.feed.pipeline import batches
from jina_jax.initial import initial_params
from jina_jax.mesh import check_divides, make_mesh, put
from jina_jax.model.weights import parameter_count
from jina_jax.progress import say
from jina_jax.train.alarms import Alarms
from jina_jax.train.evaluation import StepEvaluation
from jina_jax.train.memory import peak_memory
from jina_jax.train.metrics import MetricsWriter, read_metrics
from jina_jax.train.profile import Profiler
from jina_jax.train.source_metrics import SourceMetrics
from jina_jax.train.step import (
    TrainState,
    batch_shardings,
    init_state,
    make_train_step,
    state_shapes,
    state_shardings,
)
from jina_jax.train.stop import StopLatch
from jina_jax.train.throughput import Throughput
from jina_jax.trained import STARTS_FILE, is_run
from jina_jax.validation import validate


def train(config: RunConfig) -> TrainState:
    """Trains to `config.train.num_steps`, from the newest checkpoint if there is one.

    Raises:
      UserError: the data, the configuration or the checkpoint cannot be used.
      Interrupted: SIGINT or SIGTERM came; everything is saved.
    """
    validate(config)
    start(config.distributed)
    manifest = load_manifest(config.data_path)
    verify_shards(manifest, config.data_path)
    check_data(config, manifest)
    mesh = make_mesh(config.mesh)
    check_divides(config, mesh)
    with Checkpoints(config.checkpoint_path, keep=config.train.keep_checkpoints) as checkpoints:
        metadata = {
            "config": unchangeable_fields(config),
            "manifest_sha256": file_sha256(config.data_path / MANIFEST_FILE),
        }
        check_agreement(json.dumps([metadata, checkpoints.latest], sort_keys=True))
        state = _first_state(config, checkpoints, metadata, mesh)
        if is_first():
            _write_run_files(config, int(state.step))
        say(
            f"{config.name}: {parameter_count(config.model):,} parameters on {_words(mesh)}, from "
            f"step {int(state.step)} of {config.train.num_steps}; "
            f"configuration in {config.run_path / 'config.json'}",
            enabled=is_first(),
        )
        return _run_steps(config, manifest, mesh, state, checkpoints, metadata)


def _words(mesh: Mesh) -> str:
    split = " · ".join(f"{axis} {size}" for axis, size in mesh.shape.items() if size > 1)
    of = f" of {jax.process_count()} processes" if jax.process_count() > 1 else ""
    return (
        f"{mesh.size} {mesh.devices.flat[0].device_kind} device(s){of}"
        f"{f' ({split})' if split else ''}"
    )


def check_data(config: RunConfig, manifest: Manifest) -> None:
    """The embedding table must cover the vocabulary of the shards, and know it where it is given;
    distillation needs a teacher's scores.

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
    start = Path(config.train.initial_weights).expanduser()
    theirs = (start / "tokenizer" if is_run(start) else start) / SPIECE_FILE
    ours = config.data_path / "tokenizer" / SPIECE_FILE
    if (
        config.train.initial_weights
        and theirs.is_file()
        and file_sha256(theirs) != file_sha256(ours)
    ):
        raise UserError(
            f"train.initial_weights={config.train.initial_weights} learned another vocabulary than "
            f"the prepared data have: set data.tokenizer.source={theirs.parent} and prepare again"
        )


def _first_state(
    config: RunConfig, checkpoints: Checkpoints, metadata: dict[str, Any], mesh: Mesh
) -> TrainState:
    shardings = state_shardings(config, mesh)
    if checkpoints.latest is None:
        params = initial_params(config, mesh)
        return jax.jit(partial(init_state, config), out_shardings=shardings)(params)
    step = checkpoints.latest
    saved = checkpoints.metadata(step)
    if "imported" in saved:
        raise UserError(
            f"{checkpoints.folder} holds an imported model, which no training goes on in: train in "
            f"another folder with --train.initial-weights={config.run_path}"
        )
    changes = difference(saved["config"], metadata["config"])
    if saved["manifest_sha256"] != metadata["manifest_sha256"]:
        changes.append(f"the prepared data in {config.data_path} is not what the run began with")
    if changes:
        raise UserError(
            f"{checkpoints.folder} holds step {step} of another configuration:\n  "
            + "\n  ".join(changes)
            + "\nundo these, or train in another folder with --workdir"
        )
    like = jax.tree.map(
        lambda x, at: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=at),
        state_shapes(config), shardings,
    )  # fmt: skip
    return checkpoints.restore(step, like)


def _write_run_files(config: RunConfig, step: int) -> None:
    """Makes the run folder whole: its configuration and its tokenizer lie in it, and a line of
    what it was started on, at this step.
    """
    (config.run_path / "config.json").write_text(to_json(config) + "\n", encoding="utf-8")
    shutil.copytree(
        config.data_path / "tokenizer", config.run_path / "tokenizer", dirs_exist_ok=True
    )
    began = datetime.now(UTC).isoformat(timespec="seconds")
    with (config.run_path / STARTS_FILE).open("a", encoding="utf-8") as file:
        file.write(json.dumps({"began": began, "step": step} | environment()) + "\n")


def _run_steps(
    config: RunConfig, manifest: Manifest, mesh: Mesh, state: TrainState,
    checkpoints: Checkpoints, metadata: dict[str, Any],
) -> TrainState:  # fmt: skip
    num_steps, every = config.train.num_steps, config.train.checkpoint_every_steps
    first = int(state.step)
    sources = {
        s.name: ShardSet([config.data_path / shard.path for shard in s.shards])
        for s in manifest.sources
    }
    records = {name: len(shards) for name, shards in sources.items()}
    mixture = plan_mixture(
        config.data.sources, records, config.mixture,
        batch_size=config.feed.global_batch_size, num_steps=num_steps,
    )  # fmt: skip
    evaluation = StepEvaluation(config, mesh, first)
    if evaluation.due(first):
        evaluation.run(state, first)
    feed = batches(sources, mixture, config.feed, seed=config.train.seed, start=first)
    step_fn = make_train_step(config, mesh)
    with (
        StopLatch() as latch,
        _writer(config, first) as writer,
        Profiler.of_run(config, first) as profiler,
    ):
        of_sources = SourceMetrics(
            records, mixture, batch_size=config.feed.global_batch_size, done=first
        )
        say(of_sources.planned(), enabled=is_first())
        log = _StepLog(config, mesh, writer, of_sources)
        for batch, arrays in _on_devices(feed, mesh, log.throughput):
            profiler.before(batch.step, state)
            state, metrics = step_fn(state, arrays)
            log.dispatched(batch, metrics)
            done, stop = batch.step + 1, latch.requested(batch.step)
            if done % every == 0 or done == num_steps or stop is not None:
                checkpoints.save(state, metadata)
            if stop is None and evaluation.due(done):
                log.flush()
                log.throughput.leave_out(evaluation.run(state, done))
            if stop is not None and done < num_steps:
                log.flush()
                raise Interrupted(stop, done)
        log.flush()
    return state


def _writer(config: RunConfig, first: int) -> AbstractContextManager[MetricsWriter | None]:
    if not is_first():
        return nullcontext()
    return MetricsWriter(config.run_path, start=first, num_steps=config.train.num_steps)


def _on_devices(
    feed: Iterator[Batch], mesh: Mesh, throughput: Throughput
) -> Iterator[tuple[Batch, PackedBatch]]:
    """Puts each batch on the devices while the step before it still runs."""
    shardings = batch_shardings(mesh)
    while True:
        began = time.perf_counter()
        batch = next(feed, None)
        throughput.data_wait_s += time.perf_counter() - began
        if batch is None:
            return
        yield batch, put(batch.arrays, shardings)


class _StepLog:
    """Reads a step's metrics after the next one was dispatched, and logs them with the rates."""

    def __init__(
        self, config: RunConfig, mesh: Mesh, writer: MetricsWriter | None, of_sources: SourceMetrics
    ):
        self._config, self._writer, self._of_sources = config, writer, of_sources
        self._pending: tuple[Batch, dict[str, jax.Array]] | None = None
        self._alarms = Alarms(
            config.alarms, of_sources.names,
            batch_size=config.feed.global_batch_size, warmup_steps=config.optim.warmup_steps,
        )  # fmt: skip
        # What was raised before a resumption still is.
        for line in read_metrics(config.run_path / "metrics.jsonl") if writer else ():
            self._alarms.judge(line)
        self.throughput = Throughput(config, mesh)

    def dispatched(self, batch: Batch, metrics: dict[str, jax.Array]) -> None:
        self.flush()
        self._pending = batch, metrics

    def flush(self) -> None:
        """Waits for the step dispatched last; logs it when it is due."""
        if self._pending is None:
            return
        batch, metrics = self._pending
        self._pending = None
        values = {name: float(value) for name, value in jax.device_get(metrics).items()}
        self.throughput.add(batch.arrays)
        self._of_sources.add(batch.source, values)
        done = batch.step + 1
        if done % self._config.train.log_every_steps and done != self._config.train.num_steps:
            return
        rates, of_sources = self.throughput.read(), self._of_sources.read()
        if self._writer is None:
            return
        source = self._of_sources.names[batch.source]
        line = {"step": done, "source": source} | values | rates | peak_memory() | of_sources
        if alarms := self._alarms.judge(line):
            line["alarm"] = [alarm._asdict() for alarm in alarms]
        self._writer.write(line)
