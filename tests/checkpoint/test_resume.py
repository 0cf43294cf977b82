"""Kills a real trainer with SIGKILL, again and again, and compares with one left in peace."""

import random
import signal

import numpy as np
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


@pytest.mark.slow
def test_another_configuration_is_refused_on_resumption(folder, uninterrupted):
    process = start(folder, "whole", "--optim.learning-rate=0.5", "--loss.temperature=0.1")
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 2
    assert "loss.temperature: 0.05 → 0.1" in errors
    assert "optim.learning_rate: 0.003 → 0.5" in errors
    assert curve(folder, "whole") == uninterrupted
    assert "--train.initial-weights=" in errors and "--workdir" in errors


@pytest.mark.slow
def test_a_finished_run_goes_on_when_num_steps_is_raised(folder):
    flags = ("--optim.schedule=constant", "--train.log-every-steps=1")
    finish(start(folder, "at_once", "--train.num-steps=16", *flags))
    finish(start(folder, "raised", "--train.num-steps=8", *flags))
    said = finish(start(folder, "raised", "--train.num-steps=16", *flags, devices=1))
    assert "train.num_steps: 8 → 16" in said and "after step 8 it is 0.003" in said
    expected, found = curve(folder, "at_once"), curve(folder, "raised")
    assert [line[:2] for line in found] == [line[:2] for line in expected]
    assert len(found) == 16
    np.testing.assert_allclose([v[2] for v in found], [v[2] for v in expected], rtol=1e-4)
