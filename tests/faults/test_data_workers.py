"""Data workers that die or hang, and a trainer that dies with them."""

import os
import re
import signal
import time
from pathlib import Path

import pytest

from jina_jax.errors import ExitCode
from jina_jax.train.metrics.writer import read_metrics
from tests.trainer import children, planned, start, wait_for_step, workers

pytestmark = pytest.mark.slow

FLAGS = ("--train.num-steps=100000", "--feed.workers=2", "--feed.prefetch-batches=1")


def shared_memory(pid):
    """The blocks of shared memory that a trainer and its workers hold."""
    maps = [Path(f"/proc/{p}/maps").read_text() for p in (pid, *workers(pid))]
    return {Path(path) for text in maps for path in re.findall(r"/dev/shm/psm_\w+", text)}


def is_gone(paths, but=0):
    """Whether files are gone, or are in a moment: Python's resource tracker removes them.

    A process that is killed may have made one of which it has not told the tracker yet: `but`.
    """
    deadline = time.monotonic() + 30
    while sum(path.exists() for path in paths) > but:
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True


def harm_a_worker(folder, run, number, *flags):
    """Sends a worker a signal; the trainer's exit code, what it said, and after how long."""
    process = start(folder, run, *FLAGS, *flags)
    assert wait_for_step(folder, run, process, 10)
    held = shared_memory(process.pid)
    assert held
    os.kill(workers(process.pid)[0], number)
    began = time.monotonic()
    _, said = process.communicate(timeout=120)
    assert is_gone(held, but=1), "shared memory is left"
    return process.returncode, said, time.monotonic() - began


def test_a_killed_worker_ends_the_run_and_the_next_has_the_same_batches(folder, uninterrupted):
    code, said, _ = harm_a_worker(folder, "worker_killed", signal.SIGKILL)
    assert code == ExitCode.DATA_STALLED, said
    assert "a data worker was killed" in said and "Traceback" not in said
    reached = len(read_metrics(folder / "worker_killed" / "metrics.jsonl"))
    process = start(folder, "worker_killed", *FLAGS, "--feed.workers=0")
    assert wait_for_step(folder, "worker_killed", process, reached + 20)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    found = [line["batch"] for line in read_metrics(folder / "worker_killed" / "metrics.jsonl")]
    assert len(found) >= reached + 20
    assert found == planned(folder, FLAGS[:1], len(found))


def test_a_stopped_worker_ends_the_run_in_time_with_all_stacks(folder, uninterrupted):
    code, said, seconds = harm_a_worker(
        folder, "worker_stopped", signal.SIGSTOP, "--faults.batch-timeout-s=10"
    )
    assert code == ExitCode.DATA_STALLED, said
    assert "no batch came within 10 s (faults.batch_timeout_s): one of the workers hangs" in said
    assert "where each thread is:" in said and "_on_devices" in said
    assert 9 < seconds < 90


def test_a_killed_trainer_leaves_no_process_and_no_memory(folder, uninterrupted):
    process = start(folder, "orphans", *FLAGS)
    assert wait_for_step(folder, "orphans", process, 10)
    assert len(workers(process.pid)) == 2
    processes = {Path(f"/proc/{child}") for child in children(process.pid)}
    memory = shared_memory(process.pid)
    assert memory
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)  # ends when nobody holds its standard error any more
    assert is_gone(processes)
    assert is_gone(memory, but=2), "shared memory is left"


def test_a_worker_that_is_stopped_dies_with_a_killed_trainer(folder, uninterrupted):
    process = start(folder, "stopped_orphans", *FLAGS)
    assert wait_for_step(folder, "stopped_orphans", process, 10)
    stopped = workers(process.pid)[0]
    os.kill(stopped, signal.SIGSTOP)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)
    assert is_gone([Path(f"/proc/{stopped}")])
