"""Checkpoints of a run: the only file that knows Orbax.

A checkpoint of step t is a folder named t with two parts, so that evaluation reads parameters
without the optimizer: `params` and `training` (step, optimizer state, and what is learned beside
the encoder), each as flat path → array. `params` is the model: where training keeps an average of
the parameters it is that, and those that training goes on from lie in `training`. Its metadata
names the configuration and the manifest it was trained with. The best step of an evaluated run, and
an imported model, are `params` alone.

A step is written under another name, sealed with the SHA-256 of its files when every process has
written its part, and only then named t: a folder with a number is complete, whatever happened when.
Whoever reads it compares with the seal first, and takes the newest step that is good. Of a run
whose folder is at a URL the steps lie there, as `stored.py` says.
"""

import dataclasses
import json
import logging
import shutil
import threading
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils
from orbax.checkpoint import v1 as ocp

from jina_jax.checkpoint.arrays import (
    beside_params,
    check_arrays,
    flatten,
    shapes_of,
    unflatten,
)
from jina_jax.checkpoint.merged import Merged
from jina_jax.checkpoint.state import TrainState
from jina_jax.checkpoint.stored import Snapshot, StoredSteps, snapshot
from jina_jax.config import FeedConfig, LoraConfig, ModelConfig, PoolingConfig, PromptConfig
from jina_jax.config.files import RUN_FILE, read_section
from jina_jax.errors import SaveFailed, StoreAway, UserError
from jina_jax.model.encoder import init_params
from jina_jax.model.huggingface import check_shape
from jina_jax.model.lora import merged as with_merged_adapters
from jina_jax.model.lora import split_trained, with_adapters
from jina_jax.system.atomic import sync
from jina_jax.system.hashing import damage, seal
from jina_jax.system.mirror import url_of
from jina_jax.system.terminal import say
from jina_jax.system.untrusted import from_json

_SAVING = "saving-"
"""Begins the name of what is not complete."""
_PARTS = ("params", "training")


def _is_ours(record: logging.LogRecord) -> bool:
    # Orbax logs each failure several times with its stack; `Checkpoints` says it once.
    return "orbax" not in record.pathname


logging.getLogger("absl").addFilter(_is_ours)


def _any_process(problem: str) -> str:
    """The problem of this process, or a note that another has one; all call it together."""
    if jax.process_count() == 1:
        return problem
    of_all = np.asarray(multihost_utils.process_allgather(np.int32(bool(problem))))
    others = [str(i) for i, has in enumerate(of_all.tolist()) if has]
    return problem or (f"as process {', '.join(others)} found" if others else "")


class Checkpoints:
    """The checkpoints below one folder; a context manager that finishes pending saves."""

    def __init__(
        self,
        folder: Path,
        *,
        keep: int | None = None,
        before_seal: Callable[[], None] = lambda: None,
    ):
        """Opens the folder.

        Args:
          folder: where the steps lie, or, in a mirror of a run at a URL, come to; made when
            missing.
          keep: the newest steps to keep; None opens for reading and changes nothing.
          before_seal: called at a URL right before a step is complete there.
        Raises: UserError for a path that Orbax cannot read from.
        """
        self.folder = folder.absolute()
        url = url_of(self.folder.parent)
        self._stored = StoredSteps(f"{url}/{self.folder.name}", self.folder) if url else None
        self.place = self._stored.url if self._stored else str(self.folder)
        """Where the steps lie, for people."""
        self._before_seal, self._is_away = before_seal, False
        if "[" in str(self.folder):
            raise UserError(
                f"{self.folder}: Orbax takes '[' in a path for a pattern, and could not read what "
                f"it saved there; choose a workdir and a name without it"
            )
        self._keep = keep
        self._pending: threading.Thread | None = None
        self.failure = ""
        """Why the save that was started last has failed, as soon as that is known."""
        if keep is not None:
            self.folder.mkdir(parents=True, exist_ok=True)

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.wait()
        elif self._pending is not None:
            # Other processes may be gone: nothing is asked of them.
            self._pending.join()

    @property
    def steps(self) -> list[int]:
        """The complete steps, the newest last. Whether they are good, `newest_good` tells."""
        if self._stored:
            return self._stored.steps()
        if not self.folder.is_dir():
            return []
        return sorted(int(path.name) for path in self.folder.iterdir() if path.name.isdecimal())

    def _path(self, step: int) -> Path:
        return self.folder / str(step)

    def newest_good(
        self, parts: Sequence[str] = _PARTS, among: Sequence[int] | None = None
    ) -> int | None:
        """The newest step whose files are as they were sealed, which all processes look for.

        A damaged one is named on standard error and, where this is open for writing, set aside as
        STEP.damaged.

        Args:
          parts: that will be read.
          among: steps to look at, the newest last; all by default.
        """
        share = jax.process_index(), jax.process_count()
        for step in reversed(self.steps if among is None else among):
            problem = _any_process(self.damage(step, parts, share))
            if not problem:
                return step
            if self._stored:
                self._stored.forget(step)
            if step not in self.steps:
                continue  # A trainer that works here has removed it in the meantime.
            is_first = jax.process_index() == 0
            say(f"CHECKPOINT DAMAGED: {self.place}/{step}: {problem}", enabled=is_first)
            if self._keep is not None and is_first:
                aside = self._set_aside(step)
                say(f"it is set aside as {aside}, and the newest good step is used")
        return None

    def damage(self, step: int, parts: Sequence[str] = (), share: tuple[int, int] = (0, 1)) -> str:
        """What is wrong with a step; empty where nothing is.

        Args:
          step: the step.
          parts: to look at, all by default.
          share: as in `hashing.damage`; at a URL, of the processes that saved the step.
        """
        if self._stored:
            return self._stored.fetch(step, parts or _PARTS, share)
        return damage(self._path(step), below=parts, share=share)

    def _set_aside(self, step: int) -> str:
        if self._stored:
            return self._stored.set_aside(step)
        aside = _free_name(self.folder / f"{step}.damaged")
        self._path(step).rename(aside)
        return str(aside)

    def send_kept(self) -> None:
        """Sends the newest step of this machine that an earlier start had written and not sent,
        where all processes have their parts of it.

        Raises: SaveFailed.
        """
        if self._stored is None:
            return
        kept = self._stored.kept()
        of_all = [kept]
        if jax.process_count() > 1:
            of_all = np.asarray(multihost_utils.process_allgather(np.int32(kept))).tolist()
        if kept < 0 or len(set(of_all)) > 1 or kept <= max(self.steps, default=-1):
            return
        saving = self.folder / f"{_SAVING}{kept}"
        said = json.loads((saving / f"index.{jax.process_index()}.json").read_bytes())
        say(f"step {kept}, which was not sent, is put into {self.place}")
        self._in_thread(partial(self._send, saving, kept, said))
        self.wait()

    def save(self, state: TrainState, metadata: dict[str, Any]) -> None:
        """Starts to save `state` under its own step number, once the save before has ended.

        Raises: SaveFailed when that one has failed; nothing is started then.
        """
        self.wait()
        parts = {
            "params": flatten(state.model_params), "training": flatten(beside_params(state)),
        }  # fmt: skip
        self._start(int(state.step), parts, metadata)

    def save_params(self, step: int, params: Any, metadata: dict[str, Any]) -> None:
        """Saves parameters alone, in place of what the step held; returns when they are saved.

        Raises: SaveFailed.
        """
        self.wait()
        self._start(step, {"params": flatten(params)}, metadata)
        self.wait()

    def wait(self) -> bool:
        """Waits until what is being saved is saved, on all processes.

        Returns: whether anything was.
        Raises: SaveFailed on every process when any of them has failed.
        """
        if self._pending is None:
            return False
        self._pending.join()
        self._pending = None
        if problem := _any_process(self.failure):
            raise self._failed(problem, bool(_any_process("away" if self._is_away else "")))
        return True

    def failed(self) -> SaveFailed:
        """What this process's last failure is raised as."""
        return self._failed(self.failure, self._is_away)

    def _failed(self, problem: str, is_away: bool) -> SaveFailed:
        return (StoreAway if is_away else SaveFailed)(self.place, problem)

    def _start(self, step: int, parts: Mapping[str, Any], metadata: dict[str, Any]) -> None:
        assert self._keep is not None, "opened for reading"
        self.failure, self._is_away = "", False
        saving = self.folder / f"{_SAVING}{step}"
        if self._stored:
            taken = snapshot(parts)
            arrays = {
                part: {n: {"dtype": np.dtype(x.dtype).name, "shape": list(x.shape)}
                       for n, x in of.items()}
                for part, of in parts.items()
            }  # fmt: skip
            said = {"metadata": metadata, "arrays": arrays}
            self._in_thread(partial(self._write_and_send, saving, step, taken, said))
            return
        if jax.process_index() == 0:
            for left in self.folder.glob(f"{_SAVING}*"):
                shutil.rmtree(left, ignore_errors=True)
        try:
            # Where Orbax cannot make a folder its threads hold the process for minutes.
            with TemporaryDirectory(dir=self.folder, prefix=f"{_SAVING}probe-"):
                pass
            response = ocp.save_checkpointables_async(
                saving, dict(parts), overwrite=True, custom_metadata=metadata
            )
        except (OSError, ValueError, RuntimeError) as error:
            self._fail(step, error)
            self._pending = threading.Thread(target=lambda: None)
        else:
            shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), dict(parts))
            self._pending = threading.Thread(
                target=self._complete, args=(response, saving, step, shapes), name="checkpoint"
            )
        self._pending.start()

    def _complete(self, response: Any, saving: Path, step: int, shapes: dict[str, Any]) -> None:
        """Seals and names a step when all processes have written it; removes old ones."""
        try:
            response.result()
            if jax.process_index() == 0:
                # What can't be found again is no checkpoint.
                self._check(saving, shapes)
                seal(saving)
                shutil.rmtree(self._path(step), ignore_errors=True)
                saving.rename(self._path(step))
                sync(self.folder)
                assert self._keep is not None
                for old in self.steps[: -self._keep]:
                    shutil.rmtree(self._path(old), ignore_errors=True)
        except Exception as error:
            self._fail(step, error)

    def _in_thread(self, work: Callable[[], None]) -> None:
        self._pending = threading.Thread(target=work, name="checkpoint")
        self._pending.start()

    def _write_and_send(
        self, saving: Path, step: int, taken: Snapshot, said: dict[str, Any]
    ) -> None:
        assert self._stored is not None
        try:
            said["files"] = self._stored.write(saving, taken)
            self._stored.keep_until_sent(saving, said)
        except Exception as error:
            self._fail(step, error)
            # The others wait for what this one has to say.
            self._stored.tell_failure()
            return
        self._send(saving, step, said)

    def _send(self, saving: Path, step: int, said: dict[str, Any]) -> None:
        assert self._stored is not None and self._keep is not None
        try:
            self._stored.send(saving, step, said, self._before_seal)
            if jax.process_index() == 0:
                self._stored.trim(self._keep)
        except Exception as error:
            self._is_away = True
            self._fail(step, error)

    def _fail(self, step: int, error: BaseException) -> None:
        self.failure = f"step {step} cannot be saved: {error}"
        say(f"CHECKPOINT FAILED: {self.failure}")

    def metadata(self, step: int) -> dict[str, Any]:
        """What `save` was given beside the state."""
        if self._stored:
            return dict(self._stored.seal(step)["metadata"])
        return dict(ocp.checkpointables_metadata(self._path(step)).custom_metadata or {})

    def merged(self, step: int) -> Merged | None:
        """What the model of a step was merged from; None where it was trained or imported."""
        kept = self.metadata(step).get("merged")
        return None if kept is None else from_json(Merged, kept)

    def restore(self, step: int, like: TrainState) -> TrainState:
        """Reads a whole state.

        Args:
          step: a good one.
          like: a state of `jax.ShapeDtypeStruct` with shardings: the shapes and dtypes wanted.
        Raises: UserError when the step holds other arrays.
        """
        training = beside_params(like)
        wanted = {"params": flatten(like.model_params), "training": flatten(training)}
        loaded = self._load(step, wanted)
        rest = unflatten(training, loaded["training"])
        model = loaded["params"]
        return TrainState(
            rest["step"], unflatten(like.params, model | rest["params"]), rest["opt_state"],
            rest["learned"], rest["projection"], unflatten(like.average, model),
        )  # fmt: skip

    def restore_params(self, step: int, like: Any) -> Any:
        """Reads the parameters alone; `like` and errors as for `restore`."""
        return unflatten(like, self._load(step, {"params": flatten(like)})["params"])

    def _load(self, step: int, wanted: dict[str, dict[str, Any]]) -> dict[str, Any]:
        if self._stored:
            held = self._stored.seal(step)["arrays"]
            check_arrays(f"{self.place}/{step}", wanted, {p: shapes_of(held[p]) for p in wanted})
            if problem := _any_process(self._stored.fetch_for(step, wanted)):
                raise UserError(f"{self.place}/{step} cannot be read: {problem}")
            return {p: self._stored.load(step, p, arrays) for p, arrays in wanted.items()}
        # Orbax would cast silently.
        self._check(self._path(step), wanted)
        return dict(ocp.load_checkpointables(self._path(step), wanted))

    @staticmethod
    def _check(folder: Path, wanted: dict[str, dict[str, Any]]) -> None:
        check_arrays(str(folder), wanted, ocp.checkpointables_metadata(folder).metadata)


def _free_name(path: Path) -> Path:
    """The path, or the first of PATH.1, PATH.2, ... that is free."""
    number, free = 0, path
    while free.exists():
        number += 1
        free = path.with_name(f"{path.name}.{number}")
    return free


STARTS_FILE = "starts.jsonl"
"""Of the run folder: when, at which step and on what each start of its training was."""
BEST_FOLDER = "best"
"""Of the run folder: the parameters that evaluation during training found best."""


class Trained(NamedTuple):
    """What a run's checkpoint holds of the model."""

    params: Any
    config: ModelConfig
    pooling: PoolingConfig
    prompts: PromptConfig
    max_tokens: int
    """Tokens of the longest text that training could see."""
    step: int
    ema_decay: float = 0.0
    """Of the average that `params` are; 0 where they are those of one step."""
    merged: Merged | None = None
    """What they were merged from."""
    lora: LoraConfig = LoraConfig()
    adapters: Any = None
    """What a run with adapters trains, before it was merged into `params`; None of others."""


def is_run(folder: Path) -> bool:
    """Whether a folder is that of a run, and not of a model."""
    return (folder / "checkpoints").is_dir()


class RunModel(NamedTuple):
    """What a run's configuration says of its model."""

    config: ModelConfig
    pooling: PoolingConfig
    prompts: PromptConfig
    max_tokens: int
    """Tokens of the longest text that training could see."""
    ema_decay: float
    """Of the average of parameters that its checkpoints hold; 0 for none."""
    lora: LoraConfig


def read_run_model(run_path: Path) -> RunModel:
    """What a run's model is; its weights are not read.

    Raises: UserError when the folder is no run, or its configuration is damaged.
    """
    config_path = run_path / RUN_FILE
    if not config_path.is_file():
        raise UserError(f"{run_path} holds no trained model: run `jina-jax train` first")
    # Only these parts, so that a run of another version is read as long as they are the same.
    model: ModelConfig = read_section(run_path, "model", ModelConfig)
    pooling = read_section(run_path, "pooling", PoolingConfig, PoolingConfig())
    prompts = read_section(run_path, "data.prompts", PromptConfig, PromptConfig())
    feed = read_section(run_path, "feed", FeedConfig)
    decay = read_section(run_path, "train.ema_decay", float, 0.0)
    check_shape(dataclasses.asdict(model), config_path)
    lora = read_section(run_path, "lora", LoraConfig, LoraConfig())
    max_tokens = max(feed.query_tokens, feed.positive_tokens)
    return RunModel(model, pooling, prompts, max_tokens, decay, lora)


def _draw(model: RunModel, key: jax.Array) -> Any:
    return with_adapters(init_params(model.config, key, model.pooling), model.lora, key)


def load_checkpoint(run_path: Path, step: int | None = None) -> Trained:
    """Reads the parameters of a run, without the optimizer: of `best/` where evaluations during
    training chose one (evaluate.keep_best), else the newest. With train.ema_decay they are the
    average. Adapters are merged.

    A damaged step is skipped with a message on standard error.

    Args:
      run_path: folder of the run.
      step: this one of `checkpoints/` instead.
    Raises: UserError when the folder is no run, or has no undamaged checkpoint or no such step.
    """
    model = read_run_model(run_path)
    like = jax.eval_shape(partial(_draw, model), jax.random.key(0))
    place_at = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place_at), like)
    folders = [run_path / BEST_FOLDER] * (step is None) + [run_path / "checkpoints"]
    for folder in folders:
        checkpoints = Checkpoints(folder)
        among = checkpoints.steps if step is None else [step]
        good = checkpoints.newest_good(parts=("params",), among=among)
        if good is not None:
            params = checkpoints.restore_params(good, like)
            adapters = split_trained(params, model.lora)[0] if model.lora.rank else None
            return Trained(
                with_merged_adapters(params, model.lora), *model[:4], good, model.ema_decay,
                checkpoints.merged(good), model.lora, adapters,
            )  # fmt: skip
    if step is not None:
        there = ", ".join(map(str, checkpoints.steps)) or "none"
        raise UserError(f"no undamaged step {step} in {folder}; the steps there are: {there}")
    raise UserError(f"no undamaged checkpoint in {folder}: run `jina-jax train` first")
