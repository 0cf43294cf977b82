"""Kills a real trainer with SIGKILL, again and again, and compares with one left in peace."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from jina_jax.data.prepare import prepare
from jina_jax.train.metrics import read_metrics
from tests.prepared import CONFIG_FILE, tiny_config, write_jsonl

ROOT = Path(__file__).parents[2]
STEPS = 40


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("resume")
    write_jsonl(folder)
    prepare(tiny_config(str(folder)).data, folder / "data", progress=False)
    (folder / "config.py").write_text(CONFIG_FILE.format(folder=str(folder)))
    return folder


def start(folder, run, *flags):
    environment = os.environ | {
        "PYTHONPATH": str(ROOT),
        "XLA_FLAGS": "--xla_force_host_platform_device_count=2",
    }
    command = [sys.executable, "-m", "jina_jax.cli", "train", str(folder / "config.py")]
    return subprocess.Popen(
        [*command, f"--workdir={folder / run}", *flags],
        env=environment, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def finish(process):
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    return errors


def stop_at(folder, run, step, number):
    process = start(folder, run)
    path = folder / run / "metrics.jsonl"
    deadline = time.monotonic() + 300
    while process.poll() is None and time.monotonic() < deadline:
        if len(read_metrics(path)) >= step:
            process.send_signal(number)
            break
        time.sleep(0.002)
    _, errors = process.communicate(timeout=300)
    return process.returncode, errors


def curve(folder, run):
    return [
        (v["step"], v["source"], v["loss"], v["gradient_norm"])
        for v in read_metrics(folder / run / "metrics.jsonl")
    ]


@pytest.fixture(scope="module")
def uninterrupted(folder):
    finish(start(folder, "whole"))
    found = curve(folder, "whole")
    assert [step for step, *_ in found] == list(range(1, STEPS + 1))
    return found


def test_sigkill_at_random_steps_changes_nothing(folder, uninterrupted):
    chance = random.Random(0)
    killed = 0
    for step in sorted(chance.sample(range(3, STEPS - 3), 3)):
        code, _ = stop_at(folder, "killed", step, signal.SIGKILL)
        killed += code == -signal.SIGKILL
    finish(start(folder, "killed"))
    assert killed == 3
    assert curve(folder, "killed") == uninterrupted


def test_sigterm_saves_the_step_and_says_so(folder, uninterrupted):
    code, errors = stop_at(folder, "terminated", 10, signal.SIGTERM)
    assert code == 128 + signal.SIGTERM
    assert "stopped by SIGTERM" in errors
    reached = curve(folder, "terminated")[-1][0]
    process = start(folder, "terminated")
    finish(process)
    assert 10 <= reached < STEPS
    assert curve(folder, "terminated") == uninterrupted


def test_another_configuration_is_refused_on_resumption(folder, uninterrupted):
    process = start(folder, "whole", "--optim.learning-rate=0.5", "--loss.temperature=0.1")
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 2
    assert "loss.temperature: 0.05 → 0.1" in errors
    assert "optim.learning_rate: 0.003 → 0.5" in errors
    assert curve(folder, "whole") == uninterrupted
