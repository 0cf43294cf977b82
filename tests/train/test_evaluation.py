"""Evaluation during training, in real processes: figures, the best checkpoint, resumption."""

import dataclasses
import json
import signal
import time

import jax
import numpy as np
import pytest

from jina_jax.checkpoint.checkpoints import load_checkpoint
from jina_jax.config import EvaluateConfig, RetrievalSet
from jina_jax.config.evaluate import evaluate_problems
from jina_jax.config.files import read_run
from jina_jax.config.validation import validate
from jina_jax.errors import UserError
from jina_jax.evaluate.retrieval import load_task, rank_by_embedding, score
from jina_jax.evaluate.run import measures, read_tasks
from jina_jax.inference.embedder import Embedder
from jina_jax.shards.manifest import load_manifest
from tests.prepared import tiny_config
from tests.trainer import curve, evaluations, finish, start

pytestmark = pytest.mark.slow

BEST = "retrieval/average/ndcg@10"
FLAGS = ("--evaluate.every-steps=10", f"--evaluate.keep-best={BEST}")


@pytest.fixture(scope="module")
def evaluated(folder):
    finish(start(folder, "evaluated", *FLAGS))
    return folder / "evaluated"


def test_it_changes_no_step(folder, evaluated, uninterrupted):
    assert curve(folder, "evaluated") == uninterrupted


def test_the_best_step_is_kept_and_used(evaluated):
    found = evaluations(evaluated)
    assert [line["step"] for line in found] == [10, 20, 30, 40]
    best = max(found, key=lambda line: line[BEST])
    assert load_checkpoint(evaluated).step == best["step"]
    # What is measured from the kept parameters is what was measured in training.
    config = read_run(evaluated)
    embedder = Embedder.load(evaluated)
    values = []
    for source in load_manifest(config.data_path).sources:
        task = load_task(source.name, config.data_path / source.eval_path)
        values.append(score(task, rank_by_embedding(task, embedder, 10), 10)["ndcg@10"])
        assert values[-1] == pytest.approx(best[f"retrieval/{source.name}/ndcg@10"], abs=1e-3)
    assert np.mean(values) == pytest.approx(best[BEST], abs=1e-3)


@pytest.mark.slow
def test_a_kill_loses_and_doubles_no_evaluation(folder, evaluated):
    process = start(folder, "killed_evaluating", *FLAGS)
    path, deadline = folder / "killed_evaluating" / "evaluations.jsonl", time.monotonic() + 300
    while process.poll() is None and not evaluations(path.parent):
        assert time.monotonic() < deadline
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    finish(start(folder, "killed_evaluating", *FLAGS))
    assert evaluations(path.parent) == evaluations(evaluated)
    kept = [load_checkpoint(run) for run in (evaluated, folder / "killed_evaluating")]
    assert kept[0].step == kept[1].step
    for a, b in zip(*(jax.tree.leaves(k.params) for k in kept), strict=True):
        assert np.array_equal(a, b)


def test_an_evaluation_that_a_kill_cut_off_is_made_on_resumption(folder, evaluated):
    lines = (evaluated / "evaluations.jsonl").read_text().splitlines(keepends=True)
    (evaluated / "evaluations.jsonl").write_text("".join(lines[:-1]))
    finish(start(folder, "evaluated", *FLAGS))
    assert (evaluated / "evaluations.jsonl").read_text().splitlines(keepends=True) == lines


def test_an_unknown_measure_is_named_with_those_that_are(folder):
    flags = (FLAGS[0], "--evaluate.keep-best=sts/average/spearman")
    process = start(folder, "unknown", *flags)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 2 and "is not measured; choose one of" in errors
    assert BEST in errors and not curve(folder, "unknown")  # before any step


def test_the_measures_that_are_offered_are_those_that_are_found(evaluated):
    config = read_run(evaluated)
    offered = measures(read_tasks(config), config.evaluate.top_k)
    assert {"step", *offered} == evaluations(evaluated)[0].keys()


OWN_FILE = """
from dataclasses import replace
from jina_jax.config import EvaluateConfig, NegationSet, RetrievalSet
from tests.prepared import tiny_config

def get_config():
    files = dict.fromkeys(("corpus", "queries"), ({rows!r},))
    retrieval = RetrievalSet("own", **files, qrels=({rows!r},), qrels_kind="jsonl")
    evaluate = EvaluateConfig(
        retrieval=(retrieval,), negation=(NegationSet("own", ({rows!r},)),),
        every_steps=10, keep_best="retrieval/own/ndcg@10",
    )
    return replace(tiny_config({folder!r}), evaluate=evaluate)
"""


@pytest.mark.slow
def test_own_sets_are_measured_and_choose_the_best(folder, tmp_path):
    words = ["zero", "one", "two", "three", "four", "five"]
    rows = [
        {"_id": str(i), "text": w, "query-id": str(i), "corpus-id": str((i + 1) % 6), "score": 1,
         "query": w, "positive": words[i - 1], "negative": words[i - 2]}
        for i, w in enumerate(words)
    ]  # fmt: skip
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "config.py").write_text(OWN_FILE.format(rows=str(path), folder=str(folder)))
    finish(start(tmp_path, "run", "--train.num-steps=20"))
    found = evaluations(tmp_path / "run")
    assert [line["step"] for line in found] == [10, 20]
    names = ("docs", "numbers", "own")
    for line in found:
        values = [line[f"retrieval/{name}/ndcg@10"] for name in names]
        assert line[BEST] == pytest.approx(np.mean(values))
        assert 0 <= line["negation/own/hard_negation"] <= 1
    best = max(found, key=lambda line: line["retrieval/own/ndcg@10"])
    assert load_checkpoint(tmp_path / "run").step == best["step"]


def test_a_set_must_not_have_the_name_of_a_source(folder):
    config = tiny_config(str(folder))
    evaluate = EvaluateConfig(retrieval=(RetrievalSet("docs", "folder"),))
    with pytest.raises(UserError, match=r"evaluate\.retrieval\.0 \(docs\): a source has that name"):
        validate(dataclasses.replace(config, evaluate=evaluate))


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"keep_best": "retrieval/average/ndcg@10"}, "set evaluate.every_steps"),
        ({"keep_best": "ndcg@10", "every_steps": 5}, "is no KIND/TASK/MEASURE"),
    ],
)
def test_options_that_say_nothing(options, problem):
    (found,) = evaluate_problems(EvaluateConfig(**options))
    assert problem in found


def test_a_run_folder_is_a_config(evaluated, tmp_path):
    assert read_run(evaluated).evaluate.keep_best == BEST
    given = json.loads((evaluated / "config.json").read_text())
    cases = {
        "invented": given | {"invented": 1},
        "feed.global_batch_size": given | {"feed": given["feed"] | {"global_batch_size": "many"}},
        "data.sources.0.wait": given
        | {"data": given["data"] | {"sources": [given["data"]["sources"][0] | {"wait": 1}]}},
    }
    for field, changed in cases.items():
        (tmp_path / "config.json").write_text(json.dumps(changed))
        with pytest.raises(UserError, match=field):
            read_run(tmp_path)
