"""One of two hosts dies or hangs: the other stops in time and says which. The first host has the
coordinator of JAX, the second has not.
"""

import os
import signal
import socket
import time

import numpy as np
import pytest

from jina_jax.errors import ExitCode
from tests.trainer import curve, finish, start, wait_for_step, wait_until

pytestmark = pytest.mark.slow

HEARTBEAT_S = 6
LONG = "--train.num-steps=100000"


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def start_two(folder, run, *flags, heartbeat_s=HEARTBEAT_S):
    port = free_port()
    return [
        start(
            folder, run, f"--distributed.coordinator=127.0.0.1:{port}",
            "--distributed.processes=2", f"--distributed.process-id={rank}",
            f"--faults.heartbeat-s={heartbeat_s}", *flags, devices=1,
        )
        for rank in range(2)
    ]  # fmt: skip


def harm(folder, run, rank, number, *flags, heartbeat_s=HEARTBEAT_S):
    """Sends one of two a signal; the other's exit code, what it said, and after how long."""
    two = start_two(folder, run, LONG, *flags, heartbeat_s=heartbeat_s)
    try:
        if not wait_for_step(folder, run, two[0], 15):
            two[1].kill()
            pytest.fail("\n".join(process.communicate()[1][-2000:] for process in two))
        two[rank].send_signal(number)
        began = time.monotonic()
        _, said = two[1 - rank].communicate(timeout=120)
        return two[1 - rank].returncode, said, time.monotonic() - began
    finally:
        for process in two:
            process.kill()
            process.wait()


def test_the_second_host_dies(folder, uninterrupted):
    code, said, seconds = harm(folder, "second_dies", 1, signal.SIGKILL)
    assert code == ExitCode.HOST_LOST, said
    assert f"process 1 (host {socket.gethostname()}) of 2 is gone or hangs" in said
    assert "start the same command on all hosts again" in said
    assert seconds < 5 * HEARTBEAT_S
    # One host goes on alone, on as many devices.
    process = start(folder, "second_dies", LONG)
    reached = len(curve(folder, "second_dies"))
    assert wait_for_step(folder, "second_dies", process, max(reached, len(uninterrupted)))
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=300)
    assert process.returncode == 128 + signal.SIGTERM, said
    assert "from step 0 of" not in said


@pytest.mark.parametrize("rank", [0, 1])
def test_a_host_hangs(folder, uninterrupted, rank):
    code, said, seconds = harm(folder, f"hangs{rank}", rank, signal.SIGSTOP)
    assert code == ExitCode.HOST_LOST, said
    assert f"process {rank} (host {socket.gethostname()}) of 2 is gone or hangs" in said
    assert "where each thread is:" in said
    assert seconds < 5 * HEARTBEAT_S


def test_a_step_that_stalls_ends_in_time(folder, uninterrupted):
    """The other process is stopped within a step, before its signs of life are missed."""
    flags = ("--faults.step-timeout-s=20",)
    code, said, seconds = harm(folder, "stalls", 1, signal.SIGSTOP, *flags, heartbeat_s=600)
    assert code == ExitCode.STEP_STALLED, said
    assert "did not end within 20 s (faults.step_timeout_s)" in said
    assert "where each thread is:" in said and "_run_steps" in said
    assert 15 < seconds < 60


def test_a_step_does_not_wait_for_another_hosts_compilation(folder, uninterrupted):
    """One host compiles for longer than a step may take: the other waits, as for a compilation."""
    first, second = start_two(
        folder, "compiles_long", LONG, "--faults.step-timeout-s=10", heartbeat_s=600
    )
    try:
        assert wait_until((folder / "compiles_long" / "config.json").exists, first)
        second.send_signal(signal.SIGSTOP)
        time.sleep(15)
        assert not curve(folder, "compiles_long")
        second.send_signal(signal.SIGCONT)
        assert wait_for_step(folder, "compiles_long", first, 3)
    finally:
        for process in (first, second):
            process.kill()
            process.wait()


def test_the_first_host_dies(folder, uninterrupted):
    """JAX itself ends the others then: their coordinator is gone."""
    code, said, seconds = harm(folder, "first_dies", 0, signal.SIGKILL)
    assert code in (-signal.SIGABRT, ExitCode.HOST_LOST), said
    assert "the leader" in said or "process 0 (host" in said
    assert seconds < 5 * HEARTBEAT_S


def test_all_hosts_set_a_damaged_step_aside(folder, uninterrupted):
    for process in start_two(folder, "both_damaged"):
        finish(process)
    steps = folder / "both_damaged" / "checkpoints"
    path = max((steps / "40" / "params").rglob("*"), key=lambda p: p.stat().st_size)
    os.truncate(path, 10)
    said = [finish(process) for process in start_two(folder, "both_damaged")]
    assert "CHECKPOINT DAMAGED" in said[0] and "from step 35" in said[0]
    assert (steps / "40").is_dir() and (steps / "40.damaged").is_dir()
    found, expected = curve(folder, "both_damaged"), uninterrupted
    assert [values[:2] for values in found] == [values[:2] for values in expected]
    np.testing.assert_allclose([v[2] for v in found], [v[2] for v in expected], rtol=1e-5)
