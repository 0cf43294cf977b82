"""Kills a real trainer with SIGKILL, again and again, and compares with one left in peace."""

import random
import signal

import pytest

from tests.prepared import STEPS
from tests.trainer import curve, finish, start, stop_at


@pytest.mark.slow
def test_sigkill_at_random_steps_changes_nothing(folder, uninterrupted):
    chance = random.Random(0)
    killed = 0
    for step in sorted(chance.sample(range(3, STEPS - 3), 3)):
        code, _ = stop_at(folder, "killed_at_random", step, signal.SIGKILL)
        killed += code == -signal.SIGKILL
    finish(start(folder, "killed_at_random"))
    assert killed == 3
    assert curve(folder, "killed_at_random") == uninterrupted


@pytest.mark.slow
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
