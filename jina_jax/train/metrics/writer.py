"""Metrics of a run: a JSON line per logged step, drawn by TensorBoard and Weights & Biases too."""

import json
import math
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from tqdm import tqdm

from jina_jax.config import RunConfig
from jina_jax.config.files import to_json
from jina_jax.errors import UserError
from jina_jax.system.terminal import say

TENSORBOARD_FOLDER = "tensorboard"
WANDB_ID_FILE = "wandb_id.txt"
"""The run's id there, so that a resumption goes on in the same curves."""


@contextmanager
def _left_out(*packages: str) -> Iterator[None]:
    """While another package is imported, which imports these where they are installed."""
    # None is how `sys.modules` says that a module cannot be imported; its type does not know that.
    new = [name for name in packages if name not in sys.modules]
    sys.modules.update(dict.fromkeys(new))  # type: ignore[arg-type]
    try:
        yield
    finally:
        for name in new:
            del sys.modules[name]


class TensorBoard:
    """Event files in the run folder."""

    def __init__(self, config: RunConfig, start: int):
        """Opens the files; points after step `start` are removed."""
        # Seconds of every start, for tensors and places that it is not given here.
        with _left_out("torch", "boto3"):
            from tensorboardX import SummaryWriter
        # A full disk ends the board's thread, and what puts into a bounded queue, or leaves
        # something in it at the end, would wait for that thread for ever.
        self._board = SummaryWriter(
            str(config.run_path / TENSORBOARD_FOLDER), purge_step=start + 1, max_queue=0
        )
        self._board.file_writer.event_writer._event_queue.cancel_join_thread()

    def draw(self, values: dict[str, float], step: int) -> None:
        """Draws nothing any more once the disk was full."""
        if self._is_alive():
            for name, value in values.items():
                self._board.add_scalar(name, value, step)

    def alarm(self, message: str, step: int) -> None:
        if self._is_alive():
            self._board.add_text("alarm", message, step)

    def close(self) -> None:
        if self._is_alive():
            with suppress(OSError):
                self._board.close()

    def _is_alive(self) -> bool:
        return bool(self._board.file_writer.event_writer._worker.is_alive())


class WeightsAndBiases:
    """A run of `train.wandb_project`; key, server and mode are wandb's own, of the environment.

    Steps that are repeated after a kill are drawn twice, with the same values.
    """

    def __init__(self, config: RunConfig):
        """Opens the run, or goes on with the one that an earlier start opened.

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
        self._try("log", {"step": step} | values)

    def alarm(self, message: str, step: int) -> None:
        self._try("alert", f"step {step}", message)

    def close(self) -> None:
        self._try("finish")

    def _try(self, method: str, *args: Any) -> None:
        if self._is_lost:
            return
        try:
            getattr(self._run, method)(*args)
        except self._failures as error:
            self._is_lost = True
            say(f"WEIGHTS & BIASES LOST: no more goes there until the next start: {error}")


def open_boards(config: RunConfig, start: int) -> list[TensorBoard | WeightsAndBiases]:
    """The boards of a run that goes on after step `start`; none ends the run when it fails.

    Raises: UserError when Weights & Biases is asked for and not installed or not reached.
    """
    asked = [WeightsAndBiases(config)] if config.train.wandb_project else []
    return [TensorBoard(config, start), *asked]


METRICS_FILE = "metrics.jsonl"


class MetricsWriter:
    """Writes `metrics.jsonl` in the run folder, and draws on its boards."""

    def __init__(self, config: RunConfig, start: int):
        """Opens the files; on resume, lines after step `start` are removed.

        Raises: UserError when a board that the configuration asks for cannot be opened.
        """
        self._path, self._num_steps = config.run_path / METRICS_FILE, config.train.num_steps
        keep_until(self._path, start)
        self._boards = open_boards(config, start)
        self._file = self._path.open("ab", buffering=0)
        self._unwritten = b""
        self._first: tuple[int, float] | None = None
        self._bar = (
            tqdm(total=self._num_steps, initial=start, unit="step", dynamic_ncols=True)
            if sys.stderr.isatty()
            else None
        )

    def __enter__(self) -> "MetricsWriter":
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()
        for board in self._boards:
            board.close()
        self._file.close()

    def write(self, values: dict[str, Any]) -> None:
        """Writes one step's values; `step` is among them. Numbers also go to the boards, and the
        messages of an `alarm` (a list of them) there and to the terminal.
        """
        step = values["step"]
        self._unwritten += json_line(values).encode()
        try:
            while self._unwritten:
                self._unwritten = self._unwritten[self._file.write(self._unwritten) :]
        except OSError as error:
            # The run goes on: the line is written with the next one, when there is room again.
            say(f"METRICS FAILED: step {step} cannot be written to {self._path}: {error}")
        else:
            self.draw(values)
        # Scored pairs have no positive that could be first.
        accuracy = f"  accuracy {values['accuracy']:.3f}" if "accuracy" in values else ""
        text = f"loss {values['loss']:.4f}{accuracy}  {values['pairs_per_s']:.0f} pairs/s"
        if "mfu" in values:
            text += f"  MFU {values['mfu']:.1%}"
        if self._bar is not None:
            self._bar.set_postfix_str(text, refresh=False)
            self._bar.update(step - self._bar.n)
        else:
            text += self._time_left(step)
            say(f"step {step}/{self._num_steps}  {text}")
        for alarm in values.get("alarm", ()):
            with suppress(OSError):
                tqdm.write(alarm["message"], file=sys.stderr)

    def _time_left(self, step: int) -> str:
        """Estimated from the steps since the first line of this start, without compilation."""
        now = time.monotonic()
        if self._first is None:
            self._first = step, now
            return ""
        first_step, began = self._first
        left_s = (now - began) / max(1, step - first_step) * (self._num_steps - step)
        return f"  {tqdm.format_interval(left_s)} left"

    def draw(self, values: dict[str, Any]) -> None:
        """Puts a step's values on the boards; `step` is among them."""
        step = values["step"]
        numbers = {
            name: value
            for name, value in values.items()
            if name != "step" and isinstance(value, int | float)
        }
        for board in self._boards:
            board.draw(numbers, step)
            for alarm in values.get("alarm", ()):
                board.alarm(alarm["message"], step)


def json_line(values: dict[str, Any]) -> str:
    """A line of JSON, with null for NaN and infinity, which JSON lacks."""

    def of(value: Any) -> Any:
        return None if isinstance(value, float) and not math.isfinite(value) else value

    return json.dumps({name: of(value) for name, value in values.items()}) + "\n"


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a `metrics.jsonl`; a last line that was cut off by a kill is left out."""
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").split("\n")
    return [json.loads(line) for line in lines[:-1]]


def keep_until(path: Path, step: int) -> None:
    """Removes the lines of later steps from a file with a line per step."""
    kept = [values for values in read_metrics(path) if values["step"] <= step]
    temporary = path.with_suffix(".tmp")
    temporary.write_text("".join(json.dumps(v) + "\n" for v in kept), encoding="utf-8")
    temporary.replace(path)
