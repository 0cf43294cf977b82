"""SIGKILL in the moments that matter: nothing is lost and nothing doubled."""

import signal

import pytest

from jina_jax.checkpoint.checkpoints import Checkpoints
from jina_jax.train.metrics.writer import read_metrics
from tests.trainer import curve, evaluations, finish, start, wait_until

pytestmark = pytest.mark.slow

EVALUATED = ("--evaluate.every-steps=14", "--evaluate.keep-best=retrieval/average/ndcg@10")


def kill_when(folder, run, flags, condition):
    """Starts trainers until one was killed while a condition of its run folder held."""
    for _ in range(10):
        process = start(folder, run, *flags)
        assert wait_until(lambda: condition(folder / run), process), "it was done before"
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert process.returncode == -signal.SIGKILL
        if condition(folder / run):  # and not only a moment before
            return
    pytest.fail("never killed in time")


def is_saving(run):
    return any((run / "checkpoints").glob("saving-[0-9]*"))


def is_between_save_and_evaluation(run):
    steps = Checkpoints(run / "checkpoints").steps
    return 14 in steps and not evaluations(run)


@pytest.fixture(scope="module")
def evaluated(folder):
    finish(start(folder, "evaluated_whole", *EVALUATED))
    return folder / "evaluated_whole"


def test_in_the_middle_of_a_save(folder, uninterrupted):
    kill_when(folder, "killed_saving", (), is_saving)
    finish(start(folder, "killed_saving"))
    assert curve(folder, "killed_saving") == uninterrupted
    assert not is_saving(folder / "killed_saving")


def test_between_a_save_and_its_evaluation(folder, evaluated):
    kill_when(folder, "killed_between", EVALUATED, is_between_save_and_evaluation)
    finish(start(folder, "killed_between", *EVALUATED))
    run = folder / "killed_between"
    assert evaluations(run) == evaluations(evaluated)
    assert [line["step"] for line in evaluations(run)] == [14, 28, 40]
    assert curve(run, "") == curve(evaluated, "")
    best, expected = (Checkpoints(r / "best").steps for r in (run, evaluated))
    assert best == expected


def test_time_is_told_over_all_lives(folder, uninterrupted):
    """The buckets of the last line hold what the killed process spent, and what was lost."""
    lines = read_metrics(folder / "killed_saving" / "metrics.jsonl")
    last = {k: v for k, v in lines[-1].items() if k.startswith("goodput/") and k.endswith("_s")}
    assert set(last) == {
        f"goodput/{bucket}_s"
        for bucket in ("start", "compile", "data_wait", "step", "checkpoint", "evaluation", "lost")
    }
    totals = [sum(line[name] for name in last) for line in lines]
    assert totals == sorted(totals) and all(value >= 0 for value in last.values())
