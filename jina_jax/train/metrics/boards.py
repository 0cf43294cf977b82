"""Where a run's figures are drawn: TensorBoard's files, and Weights & Biases if asked for."""

import json
import uuid
from contextlib import suppress
from typing import Any, Protocol

from tensorboardX import SummaryWriter

from jina_jax.config import RunConfig
from jina_jax.config.files import to_json
from jina_jax.errors import UserError
from jina_jax.system.terminal import say

TENSORBOARD_FOLDER = "tensorboard"
WANDB_ID_FILE = "wandb_id.txt"
"""The run's id there, so that a resumption goes on in the same curves."""


class Board(Protocol):
    """A place that figures are drawn in. None of its methods ends a run when it fails."""

    def draw(self, values: dict[str, float], step: int) -> None:
        """Adds a point to the curve of each name."""

    def tell(self, message: str, step: int) -> None:
        """Adds the text of an alarm."""

    def close(self) -> None:
        """Writes what is left."""


def open_boards(config: RunConfig, start: int) -> list[Board]:
    """The boards of a run that goes on after step `start`.

    Raises: UserError when Weights & Biases is asked for and not installed or not reached.
    """
    boards: list[Board] = [TensorBoard(config, start)]
    if config.train.wandb_project:
        boards.append(WeightsAndBiases(config))
    return boards


class TensorBoard:
    """Event files in the run folder."""

    def __init__(self, config: RunConfig, start: int):
        """What was drawn after step `start` is taken back."""
        # A full disk ends the board's thread, and what puts into a bounded queue, or leaves
        # something in it at the end, would wait for that thread for ever.
        self._board = SummaryWriter(
            str(config.run_path / TENSORBOARD_FOLDER), purge_step=start + 1, max_queue=0
        )
        self._board.file_writer.event_writer._event_queue.cancel_join_thread()

    def draw(self, values: dict[str, float], step: int) -> None:
        """See `Board`; nothing is drawn any more once the disk was full."""
        if self._is_alive():
            for name, value in values.items():
                self._board.add_scalar(name, value, step)

    def tell(self, message: str, step: int) -> None:
        """See `Board`."""
        if self._is_alive():
            self._board.add_text("alarm", message, step)

    def close(self) -> None:
        """See `Board`."""
        if self._is_alive():
            with suppress(OSError):
                self._board.close()

    def _is_alive(self) -> bool:
        return bool(self._board.file_writer.event_writer._worker.is_alive())


class WeightsAndBiases:
    """A run of `train.wandb_project`; key, server and mode are wandb's own, of the environment.

    Steps that a kill made the trainer do again are drawn twice, with the same values.
    """

    def __init__(self, config: RunConfig):
        """Opens the run, or the one of before.

        Raises: UserError.
        """
        try:
            import wandb
        except ImportError as error:
            raise UserError(
                "train.wandb_project needs the wandb package: pip install 'jina-jax[wandb]'"
            ) from error
        id_file = config.run_path / WANDB_ID_FILE
        if not id_file.exists():
            id_file.write_text(uuid.uuid4().hex[:8], encoding="utf-8")
        # Nothing of the machine goes there but the figures and the configuration.
        settings = wandb.Settings(
            console="off", disable_git=True, disable_code=True,
            x_disable_meta=True, x_disable_stats=True, silent=True,
        )  # fmt: skip
        try:
            self._run = wandb.init(
                project=config.train.wandb_project, name=config.name,
                id=id_file.read_text(encoding="utf-8"), resume="allow",
                dir=str(config.run_path), config=json.loads(to_json(config)), settings=settings,
            )  # fmt: skip
        except wandb.Error as error:
            raise UserError(
                f"Weights & Biases cannot be reached for train.wandb_project="
                f"{config.train.wandb_project}: {error}\nrun `wandb login`, or set "
                f"WANDB_MODE=offline and upload {config.run_path / 'wandb'} later with `wandb sync`"
            ) from error
        self._run.define_metric("*", step_metric="step")
        self._failures = (wandb.Error, OSError)
        self._is_lost = False
        say(f"Weights & Biases: {self._run.url or self._run.dir}")

    def draw(self, values: dict[str, float], step: int) -> None:
        """See `Board`."""
        self._try("log", {"step": step} | values)

    def tell(self, message: str, step: int) -> None:
        """See `Board`."""
        self._try("alert", f"step {step}", message)

    def close(self) -> None:
        """See `Board`."""
        self._try("finish")

    def _try(self, method: str, *args: Any) -> None:
        if self._is_lost:
            return
        try:
            getattr(self._run, method)(*args)
        except self._failures as error:
            self._is_lost = True
            say(f"WEIGHTS & BIASES LOST: no more goes there until the next start: {error}")
