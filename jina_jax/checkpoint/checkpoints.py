"""Checkpoints of a run: the only file that knows Orbax.

A checkpoint of step t is a folder named t with two parts, so that evaluation reads parameters
without the optimizer: `params` and `training` (step, optimizer state, and what is learned beside
the encoder), each as flat path → array. Its metadata names the configuration and the manifest it
was trained with. The best step of an evaluated run, and an imported model, are `params` alone.

A step is written under another name, sealed with the SHA-256 of its files when every process has
written its part, and only then named t: a folder with a number is complete, whatever happened when.
Whoever reads it compares with the seal first, and takes the newest step that is good.
"""

import dataclasses
import logging
import shutil
import threading
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils
from orbax.checkpoint import v1 as ocp

from jina_jax.checkpoint.state import TrainState
from jina_jax.config import FeedConfig, ModelConfig, PoolingConfig, PromptConfig
from jina_jax.config.files import RUN_FILE, read_section
from jina_jax.errors import SaveFailed, UserError
from jina_jax.model.encoder import init_params
from jina_jax.model.huggingface import check_shape
from jina_jax.system.atomic import sync
from jina_jax.system.hashing import damage, seal
from jina_jax.system.terminal import say

_SAVING = "saving-"
"""Begins the name of what is not complete."""
_PARTS = ("params", "training")


def _is_ours(record: logging.LogRecord) -> bool:
    # Orbax logs each failure several times with its stack; `Checkpoints` says it once.
    return "orbax" not in record.pathname


logging.getLogger("absl").addFilter(_is_ours)


def _flatten(tree: Any) -> dict[str, Any]:
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def _unflatten(like: Any, flat: dict[str, Any]) -> Any:
    return jax.tree.unflatten(jax.tree.structure(like), [flat[name] for name in _flatten(like)])


def _training(state: TrainState) -> dict[str, Any]:
    """What a state holds beside the parameters."""
    return {"step": state.step, "opt_state": state.opt_state, "learned": state.temperature}


def _any_process(problem: str) -> str:
    """The problem of this process, or a note that another has one; all call it together."""
    if jax.process_count() == 1:
        return problem
    of_all = np.asarray(multihost_utils.process_allgather(np.int32(bool(problem))))
    others = [str(i) for i, has in enumerate(of_all.tolist()) if has]
    return problem or (f"as process {', '.join(others)} found" if others else "")


class Checkpoints:
    """The checkpoints below one folder; a context manager that finishes pending saves."""

    def __init__(self, folder: Path, *, keep: int | None = None):
        """Opens the folder.

        Args:
          folder: where the steps lie; made when missing.
          keep: the newest steps to keep; None opens for reading and changes nothing.
        Raises: UserError for a path that Orbax cannot read from.
        """
        self.folder = folder.absolute()
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
        if not self.folder.is_dir():
            return []
        return sorted(int(path.name) for path in self.folder.iterdir() if path.name.isdecimal())

    def _path(self, step: int) -> Path:
        return self.folder / str(step)

    def newest_good(self, parts: Sequence[str] = _PARTS) -> int | None:
        """The newest step whose files are as they were sealed, which all processes look for.

        A damaged one is named on standard error and, where this is open for writing, set aside as
        STEP.damaged.

        Args:
          parts: that will be read.
        """
        share = jax.process_index(), jax.process_count()
        for step in reversed(self.steps):
            problem = _any_process(damage(self._path(step), below=parts, share=share))
            if not problem:
                return step
            if not self._path(step).is_dir():
                continue  # A trainer that works here has removed it in the meantime.
            is_first = jax.process_index() == 0
            say(f"CHECKPOINT DAMAGED: {self._path(step)}: {problem}", enabled=is_first)
            if self._keep is not None and is_first:
                aside = _free_name(self.folder / f"{step}.damaged")
                self._path(step).rename(aside)
                say(f"it is set aside as {aside}, and the newest good step is used")
        return None

    def save(self, state: TrainState, metadata: dict[str, Any]) -> None:
        """Starts to save `state` under its own step number, once the save before has ended.

        Raises: SaveFailed when that one has failed; nothing is started then.
        """
        self.wait()
        parts = {"params": _flatten(state.params), "training": _flatten(_training(state))}
        self._start(int(state.step), parts, metadata)

    def save_params(self, step: int, params: Any, metadata: dict[str, Any]) -> None:
        """Saves parameters alone, in place of what the step held; returns when they are saved.

        Raises: SaveFailed.
        """
        self.wait()
        self._start(step, {"params": _flatten(params)}, metadata)
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
            raise SaveFailed(self.folder, problem)
        return True

    def _start(self, step: int, parts: Mapping[str, Any], metadata: dict[str, Any]) -> None:
        assert self._keep is not None, "opened for reading"
        self.failure = ""
        saving = self.folder / f"{_SAVING}{step}"
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

    def _fail(self, step: int, error: BaseException) -> None:
        self.failure = f"step {step} cannot be saved: {error}"
        say(f"CHECKPOINT FAILED: {self.failure}")

    def metadata(self, step: int) -> dict[str, Any]:
        """What `save` was given beside the state."""
        return dict(ocp.checkpointables_metadata(self._path(step)).custom_metadata or {})

    def restore(self, step: int, like: TrainState) -> TrainState:
        """Reads a whole state.

        Args:
          step: a good one.
          like: a state of `jax.ShapeDtypeStruct` with shardings: the shapes and dtypes wanted.
        Raises: UserError when the step holds other arrays.
        """
        training = _training(like)
        loaded = self._load(step, {"params": _flatten(like.params), "training": _flatten(training)})
        rest = _unflatten(training, loaded["training"])
        params = _unflatten(like.params, loaded["params"])
        return TrainState(rest["step"], params, rest["opt_state"], rest["learned"])

    def restore_params(self, step: int, like: Any) -> Any:
        """Reads the parameters alone; `like` and errors as for `restore`."""
        return _unflatten(like, self._load(step, {"params": _flatten(like)})["params"])

    def _load(self, step: int, wanted: dict[str, dict[str, Any]]) -> dict[str, Any]:
        # Orbax would cast silently.
        self._check(self._path(step), wanted)
        return dict(ocp.load_checkpointables(self._path(step), wanted))

    @staticmethod
    def _check(folder: Path, wanted: dict[str, dict[str, Any]]) -> None:
        held = ocp.checkpointables_metadata(folder).metadata
        for part, arrays in wanted.items():
            if lines := _unlike(arrays, held[part]):
                raise UserError(
                    f"{folder}/{part} holds other arrays than this version and this "
                    f"configuration want (held → wanted):\n  " + "\n  ".join(lines)
                )


def _unlike(wanted: Mapping[str, Any], held: Mapping[str, Any]) -> list[str]:
    """One line for each array that is not held as it is wanted."""

    def words(array: Any) -> str:
        if array is None:
            return "(absent)"
        return f"{np.dtype(array.dtype).name}{list(array.shape)}"

    names = sorted({*wanted, *held})
    each = [(name, words(held.get(name)), words(wanted.get(name))) for name in names]
    return [f"{name}: {before} → {now}" for name, before, now in each if before != now]


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
    check_shape(dataclasses.asdict(model), config_path)
    return RunModel(model, pooling, prompts, max(feed.query_tokens, feed.positive_tokens))


def load_checkpoint(run_path: Path) -> Trained:
    """Reads the parameters of a run, without the optimizer: of `best/` where evaluations during
    training chose one (evaluate.keep_best), else the newest.

    A damaged step is skipped with a message on standard error.

    Raises: UserError when the folder is no run, or has no undamaged checkpoint.
    """
    config, pooling, prompts, max_tokens = read_run_model(run_path)
    like = jax.eval_shape(partial(init_params, config, pooling=pooling), jax.random.key(0))
    place_at = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place_at), like)
    for folder in (run_path / BEST_FOLDER, run_path / "checkpoints"):
        checkpoints = Checkpoints(folder)
        step = checkpoints.newest_good(parts=("params",))
        if step is not None:
            params = checkpoints.restore_params(step, like)
            return Trained(params, config, pooling, prompts, max_tokens, step)
    raise UserError(f"no undamaged checkpoint in {folder}: run `jina-jax train` first")
