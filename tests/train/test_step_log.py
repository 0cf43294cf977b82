import json
import signal

import numpy as np
import pytest

from jina_jax.feed.mixture import interleave
from jina_jax.train.metrics.writer import read_metrics
from jina_jax.train.step_log import MEANS, SourceMetrics
from tests.prepared import STEPS
from tests.trainer import finish, start, stop_at


def counted(done=0):
    # Sources 0, 1, 0, 0, 1, 0, ...
    mixture = interleave([(0, np.array([2.0, 1.0]))], 12)
    return SourceMetrics({"a": 30, "b": 16}, mixture, batch_size=8, done=done)


def step(loss, accuracy=0.5, **more):
    return {"loss": loss, "accuracy": accuracy, "learning_rate": 1.0} | more


def test_figures_by_hand():
    sources = counted()
    for source, values in (
        (0, step(3.0)),
        (1, step(7.0, 0.25)),
        (0, step(2.0, 1.0)),
        (0, step(1.0)),
    ):
        sources.add(source, values)
    assert sources.read() == {
        "source/a/batches": 3, "source/a/records": 24, "source/a/epochs": 24 / 30,
        "source/a/share": 0.75, "source/a/asked_share": pytest.approx(2 / 3),
        "source/a/loss": 2.0, "source/a/accuracy": pytest.approx(2 / 3),
        "source/b/batches": 1, "source/b/records": 8, "source/b/epochs": 0.5,
        "source/b/share": 0.25, "source/b/asked_share": pytest.approx(1 / 3),
        "source/b/loss": 7.0, "source/b/accuracy": 0.25,
    }  # fmt: skip


def test_means_begin_anew_and_counts_go_on():
    sources = counted()
    sources.add(0, step(3.0, masked_share=0.5))
    sources.read()
    sources.add(1, step(5.0))
    found = sources.read()
    assert (found["source/a/batches"], found["source/b/batches"]) == (1, 1)
    assert found["source/b/loss"] == 5.0
    assert not {"source/a/loss", "source/a/masked_share"} & found.keys()


def test_what_a_run_will_draw():
    assert counted().planned() == "of 12 batches: a 8 (2.13 epochs), b 4 (2.00 epochs)"


def test_a_resumed_run_counts_what_was_drawn_before():
    sources = counted(done=5)
    sources.add(0, step(1.0))
    found = sources.read()
    assert (found["source/a/batches"], found["source/b/batches"]) == (4, 2)
    assert found["source/a/share"] == pytest.approx(2 / 3)


def of_sources(line):
    return {name: value for name, value in line.items() if name.startswith("source/")}


@pytest.mark.slow
def test_a_run_tells_of_its_sources_also_when_it_was_killed(folder, uninterrupted):
    each = read_metrics(folder / "whole" / "metrics.jsonl")
    stop_at(folder, "of_sources", 2, signal.SIGKILL, "--train.log-every-steps=8")
    finish(start(folder, "of_sources", "--train.log-every-steps=8"))
    found = read_metrics(folder / "of_sources" / "metrics.jsonl")
    assert [line["step"] for line in found] == list(range(8, STEPS + 1, 8))
    assert of_sources(found[-1]).items() >= {
        "source/docs/batches": 30, "source/docs/asked_share": 0.75, "source/docs/share": 0.75,
        "source/numbers/batches": 10, "source/numbers/records": 160,
    }.items()  # fmt: skip
    manifest = json.loads((folder / "data" / "manifest.json").read_text())
    for source in manifest["sources"]:
        name, records = source["name"], source["train"]
        last = found[-1]
        assert last[f"source/{name}/epochs"] == last[f"source/{name}/records"] / records
        # Resumption begins at step 14, within the second of these lines.
        for number in (2, 3, 4):
            steps = [v for v in each[8 * number : 8 * number + 8] if v["source"] == name]
            assert len(steps) in (2, 6)
            for mean in MEANS:
                if mean in steps[0]:
                    wanted = np.mean([v[mean] for v in steps])
                    assert found[number][f"source/{name}/{mean}"] == pytest.approx(wanted, rel=1e-6)
    assert {"source/docs/in_batch_cosine", "source/docs/masked_share"} <= found[0].keys()
