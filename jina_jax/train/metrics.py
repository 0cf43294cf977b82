"""Metrics of a run: one JSON line per logged step, the same in TensorBoard, and on the terminal."""

import json
import math
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

from tensorboardX import SummaryWriter
from tqdm import tqdm

from jina_jax.progress import say

METRICS_FILE = "metrics.jsonl"


class MetricsWriter:
    """Writes `metrics.jsonl` and `tensorboard/` below a run folder."""

    def __init__(self, run_path: Path, *, start: int, num_steps: int):
        """Opens the files; on resume, what was written after step `start` is taken back."""
        self._path = run_path / METRICS_FILE
        keep_until(self._path, start)
        self._file = self._path.open("ab", buffering=0)
        self._unwritten = b""
        # A full disk ends the board's thread, and what puts into a bounded queue, or leaves
        # something in it at the end, would wait for that thread for ever.
        self._board = SummaryWriter(
            str(run_path / "tensorboard"), purge_step=start + 1, max_queue=0
        )
        self._board.file_writer.event_writer._event_queue.cancel_join_thread()
        self._bar = (
            tqdm(total=num_steps, initial=start, unit="step", dynamic_ncols=True)
            if sys.stderr.isatty()
            else None
        )
        self._num_steps = num_steps

    def __enter__(self) -> "MetricsWriter":
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()
        if self._can_draw():
            with suppress(OSError):
                self._board.close()
        self._file.close()

    def write(self, values: dict[str, Any]) -> None:
        """Writes one step's values; `step` is among them. Numbers also go to TensorBoard, and the
        messages of an `alarm` (a list of them) there and to the terminal.
        """
        step = values["step"]
        self._unwritten += json_line(values).encode()
        try:
            while self._unwritten:
                self._unwritten = self._unwritten[self._file.write(self._unwritten) :]
        except OSError as error:
            # It comes with the next line, when there is room again; so the run goes on.
            say(f"METRICS FAILED: step {step} cannot be written to {self._path}: {error}")
        else:
            self._draw(values, step)
        text = (
            f"loss {values['loss']:.4f}  accuracy {values['accuracy']:.3f}  "
            f"{values['pairs_per_s']:.0f} pairs/s"
        )
        if "mfu" in values:
            text += f"  MFU {values['mfu']:.1%}"
        if self._bar is not None:
            self._bar.set_postfix_str(text, refresh=False)
            self._bar.update(step - self._bar.n)
        else:
            print(f"step {step}/{self._num_steps}  {text}", file=sys.stderr, flush=True)
        for alarm in values.get("alarm", ()):
            tqdm.write(alarm["message"], file=sys.stderr)

    def _draw(self, values: dict[str, Any], step: int) -> None:
        if not self._can_draw():
            return
        for name, value in values.items():
            if name != "step" and isinstance(value, int | float):
                self._board.add_scalar(name, value, step)
        for alarm in values.get("alarm", ()):
            self._board.add_text("alarm", alarm["message"], step)

    def _can_draw(self) -> bool:
        return bool(self._board.file_writer.event_writer._worker.is_alive())


def json_line(values: dict[str, Any]) -> str:
    """A line of JSON, which has no word for NaN and infinity: null."""

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
    """Takes back the lines of a file of steps that were written after a step."""
    kept = [values for values in read_metrics(path) if values["step"] <= step]
    temporary = path.with_suffix(".tmp")
    temporary.write_text("".join(json.dumps(v) + "\n" for v in kept), encoding="utf-8")
    temporary.replace(path)
