"""Runs the real trainer in processes of its own, and reads what it left."""

import os
import subprocess
import sys
import time
from pathlib import Path

from jina_jax.train.metrics import read_metrics

ROOT = Path(__file__).parents[1]


def start(folder: Path, run: str, *flags: str, devices: int = 2) -> subprocess.Popen[str]:
    """`jina-jax train` on `config.py` of the folder, with virtual devices."""
    environment = os.environ | {
        "PYTHONPATH": str(ROOT),
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
    }
    command = [sys.executable, "-m", "jina_jax.cli", "train", str(folder / "config.py")]
    return subprocess.Popen(
        [*command, f"--workdir={folder / run}", *flags],
        env=environment, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


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
