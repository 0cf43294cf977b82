"""launch/local_2proc.sh: two real processes train, are killed, and one goes on."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.trainer import ROOT, curve, finish, start, wait_for_step

# Enough that neither has ended before a busy machine has seen that it has begun.
STEPS = 100


def start_two(folder, run):
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "XLA_FLAGS": "--xla_force_host_platform_device_count=1",
    }
    return subprocess.Popen(
        [ROOT / "launch" / "local_2proc.sh", folder / "config.py", f"--workdir={folder / run}",
         f"--train.num-steps={STEPS}"],
        env=environment, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip


def steps(folder, run):
    return [step for step, *_ in curve(folder, run)]


@pytest.mark.slow
def test_two_are_killed_and_one_goes_on(folder):
    two = start_two(folder, "killed_of_two")
    assert wait_for_step(folder, "killed_of_two", two, 15)
    os.killpg(two.pid, signal.SIGKILL)
    two.communicate(timeout=60)
    done = len(steps(folder, "killed_of_two"))
    assert 15 <= done < STEPS
    said = finish(start(folder, "killed_of_two", f"--train.num-steps={STEPS}", devices=1))
    # Checkpoints are made every 7 steps; one that was being written is not there.
    resumed = int(re.search(r"from step (\d+) ", said)[1])
    assert resumed % 7 == 0 and done - 15 <= resumed <= done
    assert steps(folder, "killed_of_two") == list(range(1, STEPS + 1))


@pytest.mark.slow
def test_a_signal_to_the_script_stops_both_with_everything_saved(folder):
    two = start_two(folder, "stopped")
    assert wait_for_step(folder, "stopped", two, 5)
    two.send_signal(signal.SIGTERM)
    _, errors = two.communicate(timeout=120)
    assert two.returncode == 128 + signal.SIGTERM, errors
    assert errors.count("is saved. The same command goes on from there") == 2
    assert 5 <= len(steps(folder, "stopped")) < STEPS


def test_what_both_refuse_ends_the_script_with_their_code(folder):
    two = subprocess.run(
        [ROOT / "launch" / "local_2proc.sh", "no-such-config"], capture_output=True, text=True,
        env=os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
    )  # fmt: skip
    assert two.returncode == 2 and "no config 'no-such-config'" in two.stderr
    assert "no such job" not in two.stderr
