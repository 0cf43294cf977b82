"""Orbax checkpoints of a run: the only file that knows Orbax.

A checkpoint of step t holds two parts, so that evaluation reads parameters without the optimizer:
`params` and `training` (step, optimizer state, and what is learned beside the encoder), each as
flat path → array. Its metadata names the configuration and the manifest it was trained with. The
best step of an evaluated run, and an imported model, are `params` alone.
"""

from pathlib import Path
from typing import Any

import jax
from orbax.checkpoint import v1 as ocp

from jina_jax.errors import UserError
from jina_jax.train.step import TrainState


def _flatten(tree: Any) -> dict[str, Any]:
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def _unflatten(like: Any, flat: dict[str, Any]) -> Any:
    return jax.tree.unflatten(jax.tree.structure(like), [flat[name] for name in _flatten(like)])


def _training(state: TrainState) -> dict[str, Any]:
    """What a state holds beside the parameters."""
    return {"step": state.step, "opt_state": state.opt_state, "learned": state.learned}


class Checkpoints:
    """The checkpoints below one folder; a context manager that finishes pending saves."""

    def __init__(self, folder: Path, *, keep: int | None = None):
        """Opens the folder.

        Args:
          folder: where the steps lie; made when missing.
          keep: the newest steps to keep; None opens for reading and deletes nothing.
        """
        self.folder = folder.absolute()
        if keep is None:
            self._checkpointer = ocp.training.Checkpointer(self.folder)
        else:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._checkpointer = ocp.training.Checkpointer(
                self.folder,
                preservation_policy=ocp.training.preservation_policies.LatestN(keep),
                cleanup_tmp_directories=True,
            )

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_: object) -> None:
        self._checkpointer.close()

    @property
    def latest(self) -> int | None:
        """The newest committed step."""
        newest = self._checkpointer.latest
        return None if newest is None else newest.step

    def save(self, state: TrainState, metadata: dict[str, Any]) -> None:
        """Starts to save `state` under its own step number; a second call waits for the first."""
        self._checkpointer.save_checkpointables_async(
            int(state.step),
            {
                "params": _flatten(state.params),
                "training": _flatten(_training(state)),
            },
            custom_metadata=metadata,
            force=True,
        )

    def save_params(self, step: int, params: Any, metadata: dict[str, Any]) -> None:
        """Saves parameters alone, in place of what the step held; returns when they are saved."""
        self._checkpointer.save_checkpointables(
            step, {"params": _flatten(params)},
            custom_metadata=metadata, force=True, overwrite=True,
        )  # fmt: skip

    def metadata(self, step: int) -> dict[str, Any]:
        """What `save` was given beside the state."""
        return dict(self._checkpointer.checkpointables_metadata(step).custom_metadata or {})

    def restore(self, step: int, like: TrainState) -> TrainState:
        """Reads a whole state.

        Args:
          step: a committed one.
          like: a state of `jax.ShapeDtypeStruct` with shardings: the shapes wanted.
        """
        training = _training(like)
        loaded = self._checkpointer.load_checkpointables(
            step, {"params": _flatten(like.params), "training": _flatten(training)}
        )
        rest = _unflatten(training, loaded["training"])
        params = _unflatten(like.params, loaded["params"])
        return TrainState(rest["step"], params, rest["opt_state"], rest["learned"])

    def restore_params(self, step: int, like: Any) -> Any:
        """Reads the parameters alone; `like` as for `restore`."""
        loaded = self._checkpointer.load_checkpointables(step, {"params": _flatten(like)})
        return _unflatten(like, loaded["params"])


def open_for_reading(folder: Path) -> Checkpoints:
    """Opens a run's checkpoints.

    Raises: UserError when there is none.
    """
    if not folder.is_dir():
        raise UserError(f"no checkpoint in {folder}: run `jina-jax train` first")
    checkpoints = Checkpoints(folder)
    if checkpoints.latest is None:
        raise UserError(f"no finished checkpoint in {folder}: run `jina-jax train` first")
    return checkpoints
