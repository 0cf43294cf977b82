"""Metrics of a run: one JSON line per logged step, the same on the boards, and on the terminal."""

import json
import math
import sys
import time
from pathlib import Path
from typing import Any

from tqdm import tqdm

from jina_jax.config import RunConfig
from jina_jax.system.terminal import say
from jina_jax.train.metrics.boards import open_boards

METRICS_FILE = "metrics.jsonl"


class MetricsWriter:
    """Writes `metrics.jsonl` in the run folder, and draws on its boards."""

    def __init__(self, config: RunConfig, start: int):
        """Opens the files; on resume, what was written after step `start` is taken back.

        Raises: UserError when a board that is asked for cannot be had.
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
            # It comes with the next line, when there is room again; so the run goes on.
            say(f"METRICS FAILED: step {step} cannot be written to {self._path}: {error}")
        else:
            self.draw(values)
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
            text += self._time_left(step)
            print(f"step {step}/{self._num_steps}  {text}", file=sys.stderr, flush=True)
        for alarm in values.get("alarm", ()):
            tqdm.write(alarm["message"], file=sys.stderr)

    def _time_left(self, step: int) -> str:
        """As the steps since the first line of this start tell, which leaves compiling out."""
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
                board.tell(alarm["message"], step)


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
