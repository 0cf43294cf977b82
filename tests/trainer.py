"""Runs the real trainer in processes of its own, and reads what it left."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import IO

from jina_jax.cli.arguments import config_verb
from jina_jax.feed.pipeline import feed_of_run
from jina_jax.shards.manifest import load_manifest
from jina_jax.train.evaluation import EVALUATIONS_FILE
from jina_jax.train.metrics.writer import read_metrics
from tests.compiling import QUICKLY

ROOT = Path(__file__).parents[1]
_started: list[subprocess.Popen[str]] = []


def start(
    folder: Path, run: str, *flags: str, devices: int = 2, stderr: int | IO[str] = subprocess.PIPE,
    before: Callable[[], None] | None = None, verb: str = "train",
) -> subprocess.Popen[str]:  # fmt: skip
    """`jina-jax train` or another verb on `config.py` of the folder, with virtual devices.

    `before` is called in the new process first.
    """
    environment = os.environ | {
        "PYTHONPATH": str(ROOT),
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices} {QUICKLY}",
    }
    command = [sys.executable, "-m", "jina_jax.cli", verb, str(folder / "config.py")]
    process = subprocess.Popen(
        [*command, f"--workdir={folder / run}", *flags],
        env=environment, stderr=stderr, text=True, preexec_fn=before,
    )  # fmt: skip
    _started.append(process)
    return process


def end_all() -> None:
    """Kills the trainers that a failed test left."""
    while _started:
        _started.pop().kill()


def finish(process: subprocess.Popen[str]) -> str:
    """Waits for a trainer that must succeed; gives what it said."""
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    return errors


def wait_for_step(folder: Path, run: str, process: subprocess.Popen[str], step: int) -> bool:
    """Waits until the run has logged `step`, or its process has ended."""
    path, deadline = folder / run / "metrics.jsonl", time.monotonic() + 300
    while process.poll() is None and time.monotonic() < deadline:
        if len(read_metrics(path)) >= step:
            return True
        time.sleep(0.002)
    return False


def wait_until(
    condition: Callable[[], object], process: subprocess.Popen[str], timeout_s: float = 300
) -> bool:
    """Waits until something holds (True), or the process has ended (False)."""
    deadline = time.monotonic() + timeout_s
    while process.poll() is None:
        if condition():
            return True
        assert time.monotonic() < deadline, "it never came to pass"
        time.sleep(0.001)
    return False


def children(pid: int) -> dict[int, str]:
    """The processes that a process has started: their numbers and command lines."""
    found = {}
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in map(int, task.read_text().split()):
            found[child] = Path(f"/proc/{child}/cmdline").read_text().replace("\0", " ")
    return found


def workers(pid: int) -> list[int]:
    """The data workers of a trainer."""
    return [child for child, command in children(pid).items() if "spawn_main" in command]


def planned(folder: Path, flags: tuple[str, ...], count: int) -> list[str]:
    """Fingerprints of the first batches of a run of `config.py`, drawn in this process."""
    config = config_verb("train", "", [str(folder / "config.py"), *flags])
    drawn = feed_of_run(config, load_manifest(config.data_path)).batches
    return [batch.fingerprint for batch in islice(drawn, count)]


def stop_at(
    folder: Path, run: str, step: int, number: int, *flags: str, devices: int = 2
) -> tuple[int, str]:
    """Starts a trainer and sends it a signal at `step`; gives its exit code and what it said."""
    process = start(folder, run, *flags, devices=devices)
    if wait_for_step(folder, run, process, step):
        process.send_signal(number)
    _, errors = process.communicate(timeout=300)
    return process.returncode, errors


def curve(folder: Path, run: str) -> list[tuple[int, str, float, float]]:
    """Step, source, loss and gradient norm of every logged step."""
    return [
        (v["step"], v["source"], v["loss"], v["gradient_norm"])
        for v in read_metrics(folder / run / "metrics.jsonl")
    ]


def evaluations(run_path: Path) -> list[dict[str, float]]:
    """The lines of a run's evaluations: `step`, and KIND/TASK/MEASURE → value."""
    return read_metrics(run_path / EVALUATIONS_FILE)
