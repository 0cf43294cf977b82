"""Ctrl-C, as a person presses it: to the trainer and its workers at once."""

import os
import signal

import pytest

from tests.trainer import curve, finish, start, wait_for_step


@pytest.mark.slow
def test_ctrl_c_saves_and_says_how_to_go_on(folder, uninterrupted):
    process = start(folder, "ctrl_c", "--feed.workers=1", before=os.setpgrp)
    assert wait_for_step(folder, "ctrl_c", process, 8)
    os.killpg(process.pid, signal.SIGINT)
    _, said = process.communicate(timeout=300)
    assert process.returncode == 128 + signal.SIGINT, said
    reached = curve(folder, "ctrl_c")[-1][0]
    assert f"stopped by SIGINT; step {reached} is saved" in said
    assert "The same command goes on from there" in said and "Traceback" not in said
    finish(start(folder, "ctrl_c"))
    assert curve(folder, "ctrl_c") == uninterrupted
