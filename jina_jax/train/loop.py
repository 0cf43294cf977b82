"""The training loop: reads top to bottom, from a prepared folder to checkpoints."""

import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
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
from jina_jax.errors import Interrupted, UserError
from jina_jax.feed.batch import Batch, PackedBatch
from jina_jax.feed.pipeline import batches
from jina_jax.initial import initial_params
from jina_jax.mesh import check_divides, make_mesh, replicated
from jina_jax.model.t5 import init_params
from jina_jax.model.weights import parameter_count
from jina_jax.progress import say
from jina_jax.train.metrics import MetricsWriter
from jina_jax.train.profile import Profiler
from jina_jax.train.step import TrainState, batch_shardings, init_state, make_train_step
from jina_jax.train.throughput import Throughput
from jina_jax.trained import is_run
from jina_jax.validation import validate


def train(config: RunConfig) -> TrainState:
    """Trains to `config.train.num_steps`, from the newest checkpoint if there is one.

    Raises:
      UserError: the data, the configuration or the checkpoint cannot be used.
      Interrupted: SIGINT or SIGTERM came; everything is saved.
    """
    validate(config)
    manifest = load_manifest(config.data_path)
    verify_shards(manifest, config.data_path)
    check_data(config, manifest)
    mesh = make_mesh(config.train.devices)
    check_divides(config, mesh)
    with Checkpoints(config.checkpoint_path, keep=config.train.keep_checkpoints) as checkpoints:
        metadata = {
            "config": unchangeable_fields(config),
            "manifest_sha256": file_sha256(config.data_path / MANIFEST_FILE),
        }
        state = _first_state(config, checkpoints, metadata, mesh)
        _write_run_files(config)
        say(
            f"{config.name}: {parameter_count(config.model):,} parameters on {mesh.size} "
            f"{mesh.devices.flat[0].device_kind} device(s), from step {int(state.step)} of "
            f"{config.train.num_steps}; configuration in {config.run_path / 'config.json'}"
        )
        return _run_steps(config, manifest, mesh, state, checkpoints, metadata)


def check_data(config: RunConfig, manifest: Manifest) -> None:
    """The embedding table must cover the vocabulary of the shards, and know it where it is given.

    Raises: UserError.
    """
    if manifest.vocab_size > config.model.vocab_size:
        raise UserError(
            f"the shards use a vocabulary of {manifest.vocab_size} pieces, more than "
            f"model.vocab_size={config.model.vocab_size}; raise model.vocab_size to at least that"
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
    everywhere = replicated(mesh)
    if checkpoints.latest is None:
        return jax.device_put(init_state(config, initial_params(config)), everywhere)
    step = checkpoints.latest
    saved = checkpoints.metadata(step)
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
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=everywhere),
        jax.eval_shape(lambda: init_state(config, init_params(config.model, jax.random.key(0)))),
    )
    return checkpoints.restore(step, like)


def _write_run_files(config: RunConfig) -> None:
    """Makes the run folder whole: its configuration and its tokenizer lie in it."""
    (config.run_path / "config.json").write_text(to_json(config) + "\n", encoding="utf-8")
    shutil.copytree(
        config.data_path / "tokenizer", config.run_path / "tokenizer", dirs_exist_ok=True
    )


def _run_steps(
    config: RunConfig, manifest: Manifest, mesh: Mesh, state: TrainState,
    checkpoints: Checkpoints, metadata: dict[str, Any],
) -> TrainState:  # fmt: skip
    num_steps, every = config.train.num_steps, config.train.checkpoint_every_steps
    start = int(state.step)
    sources = {
        s.name: ShardSet([config.data_path / shard.path for shard in s.shards])
        for s in manifest.sources
    }
    feed = batches(
        sources, {s.name: s.weight for s in config.data.sources}, config.feed,
        seed=config.train.seed, num_steps=num_steps, start=start,
    )  # fmt: skip
    step_fn = make_train_step(config, mesh)
    with (
        _SignalLatch() as latch,
        MetricsWriter(config.run_path, start=start, num_steps=num_steps) as writer,
        Profiler.of_run(config, start) as profiler,
    ):
        log = _StepLog(config, mesh, writer, list(sources))
        for batch, arrays in _on_devices(feed, mesh, log.throughput):
            profiler.before(batch.step, state)
            state, metrics = step_fn(state, arrays)
            log.dispatched(batch, metrics)
            done = batch.step + 1
            if done % every == 0 or done == num_steps or latch.signal is not None:
                checkpoints.save(state, metadata)
            if latch.signal is not None and done < num_steps:
                log.flush()
                raise Interrupted(latch.signal, done)
        log.flush()
    return state


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
        yield batch, jax.device_put(batch.arrays, shardings)


class _StepLog:
    """Reads a step's metrics after the next one was dispatched, and logs them with the rates."""

    def __init__(self, config: RunConfig, mesh: Mesh, writer: MetricsWriter, names: list[str]):
        self._config, self._writer, self._names = config, writer, names
        self._pending: tuple[Batch, dict[str, jax.Array]] | None = None
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
        done = batch.step + 1
        if done % self._config.train.log_every_steps and done != self._config.train.num_steps:
            return
        self._writer.write(
            {"step": done, "source": self._names[batch.source]} | values | self.throughput.read()
        )


class _SignalLatch:
    """Remembers SIGINT and SIGTERM, so that the loop stops between steps; twice kills."""

    signal: int | None = None

    def __enter__(self) -> "_SignalLatch":
        self._before = {n: signal.signal(n, self._catch) for n in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _catch(self, number: int, _frame: FrameType | None) -> None:
        if self.signal is not None:
            raise KeyboardInterrupt
        self.signal = number
