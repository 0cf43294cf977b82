import dataclasses
import signal

import pytest

from jina_jax.config import AlarmConfig
from jina_jax.train.metrics.writer import read_metrics
from jina_jax.train.watch.alarms import Alarms
from tests.trainer import finish, start, stop_at

THREE = AlarmConfig(lines=3, from_step=10)
HEALTHY = (0.8, 0.7, 0.2)


def alarms(config=THREE, *, sources=("a", "b"), batch_size=16, warmup_steps=5):
    return Alarms(config, sources, batch_size=batch_size, warmup_steps=warmup_steps)


def line(step, **sources):
    """Each source as (accuracy, cosine of its positives, of those of others)."""
    names = ("accuracy", "positive_cosine", "in_batch_cosine")
    return {"step": step} | {
        f"source/{source}/{name}": value
        for source, values in sources.items()
        for name, value in zip(names, values, strict=True)
    }


def judged(judge, figures, first=10):
    """(step, kind, state) of what lines of source a bring."""
    return [
        (step, alarm.kind, alarm.state)
        for step, values in enumerate(figures, first)
        for alarm in judge.judge(line(step, a=values))
    ]


@pytest.mark.parametrize(
    ("kind", "bad", "good"),
    [
        ("alike", (1.0, 0.99, 0.951), (1.0, 0.99, 0.949)),
        ("no_gap", (0.8, 0.5, 0.481), (0.8, 0.5, 0.479)),
        # Of 16, two guesses find one in 1 - (15/16)² = 0.121.
        ("chance", (0.121, 0.5, 0.2), (0.122, 0.5, 0.2)),
    ],
)
def test_each_sign_raises_one_alarm_and_clears_it(kind, bad, good):
    assert judged(alarms(), [good] * 9) == []
    assert judged(alarms(), [bad] * 9) == [(12, kind, "raised")]
    course = [bad] * 5 + [good] * 5 + [bad] * 3
    assert judged(alarms(), course) == [
        (12, kind, "raised"), (17, kind, "cleared"), (22, kind, "raised"),
    ]  # fmt: skip
    # Only lines in a row count, in both directions.
    assert judged(alarms(), [bad, bad, good] * 4) == []
    assert judged(alarms(), [bad] * 3 + [good, good, bad] * 4) == [(12, kind, "raised")]


def test_figures_that_are_not_finite_tell_nothing():
    bad, nan = (1.0, 0.99, 0.99), (float("nan"),) * 3
    assert judged(alarms(), [bad, nan, bad, nan, bad]) == [(14, "alike", "raised")]
    assert judged(alarms(), [bad] * 3 + [nan] * 9) == [(12, "alike", "raised")]


def test_nothing_is_judged_too_early():
    bad = (0.0, 0.99, 0.99)
    assert [step for step, *_ in judged(alarms(), [bad] * 20, first=1)] == [12, 12]
    late = alarms(warmup_steps=14)
    assert [step for step, *_ in judged(late, [bad] * 20, first=1)] == [17, 17]
    assert judged(alarms(dataclasses.replace(THREE, lines=0)), [bad] * 20) == []


def test_sources_are_judged_apart_and_named():
    judge, found = alarms(), []
    bad = (0.05, 0.6, 0.3)
    for step in range(10, 22):
        # Source b is in every second line alone.
        of_b = {"b": bad} if step % 2 else {}
        found += judge.judge(line(step, a=HEALTHY, **of_b))
    (alarm,) = found
    assert (alarm.kind, alarm.source, alarm.state) == ("chance", "b", "raised")
    assert alarm.message.startswith("ALARM source b at step 15: accuracy 0.05, chance 0.1211")
    assert "query_field and positive_field" in alarm.message


def test_a_line_without_figures_of_a_source_tells_nothing():
    assert alarms().judge({"step": 50, "loss": 1.0, "source/a/batches": 3}) == []


def test_no_gap_is_not_over_where_all_have_become_alike():
    course = [(0.8, 0.5, 0.49)] * 3 + [(1.0, 0.99, 0.99)] * 6
    assert judged(alarms(), course) == [(12, "no_gap", "raised"), (15, "alike", "raised")]


def alarms_of(folder, run):
    return [
        (values["step"], alarm)
        for values in read_metrics(folder / run / "metrics.jsonl")
        for alarm in values.get("alarm", ())
    ]


@pytest.mark.slow
def test_a_run_of_constant_embeddings_says_so_once_even_when_it_is_resumed(folder):
    # Of one token every text is the same: all would be known matches.
    flags = (
        "--feed.query-tokens=1", "--feed.positive-tokens=1", "--model.dropout-rate=0",
        "--alarms.from-step=6", "--alarms.lines=3", "--loss.no-mask-false-negatives",
    )  # fmt: skip
    code, before = stop_at(folder, "constant", 32, signal.SIGKILL, *flags)
    after = finish(start(folder, "constant", *flags))
    assert code == -signal.SIGKILL
    # Batches of numbers are those of steps 3, 7, 11, 15, ...
    found = [
        (step, a["kind"], a["source"], a["state"]) for step, a in alarms_of(folder, "constant")
    ]
    assert found == [(9, "alike", "docs", "raised"), (15, "alike", "numbers", "raised")]
    for _, alarm in alarms_of(folder, "constant"):
        assert (before + after).count(alarm["message"]) == before.count(alarm["message"]) == 1
    assert (before + after).count("ALARM") == 2
    assert "mean cosine 1.000 with the positives of others (alarms.alike=0.95)" in before


@pytest.mark.slow
def test_a_healthy_run_raises_none_however_early_it_is_judged(folder):
    finish(start(
        folder, "healthy", "--feed.global-batch-size=64", "--model.dropout-rate=0",
        "--model.num-layers=2",
        "--train.num-steps=100", "--optim.learning-rate=2e-3", "--alarms.from-step=30",
    ))  # fmt: skip
    assert alarms_of(folder, "healthy") == []
    last = read_metrics(folder / "healthy" / "metrics.jsonl")[-1]
    assert last["source/docs/accuracy"] > 0.3  # By chance 1/64.
