"""A real ablation of two arms and two seeds, from the command line; kills; figures by hand."""

import dataclasses
import json
import os
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pyarrow.parquet as pq
import pytest

from jina_jax.ablate.run import ablate, source_task
from jina_jax.cli.main import main
from jina_jax.config import SourceConfig, T5Config, TrainConfig
from jina_jax.config.files import read_run
from jina_jax.devices.mesh import make_mesh
from jina_jax.errors import UserError
from jina_jax.inference.embedder import Embedder
from jina_jax.inference.initial import initial_params
from jina_jax.inference.model_folder import read_sentence_config
from jina_jax.prepare.run import prepare
from jina_jax.train.metrics.writer import read_metrics
from tests.ablate.sources import CONFIG_FILE, STEPS, filters, losses

ROOT = Path(__file__).parents[2]


def write_config(folder, function="filters"):
    path = folder / "config.py"
    path.write_text(CONFIG_FILE.format(function=function, folder=str(folder)))
    return str(path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two arms with two seeds, run to the end."""
    made = tmp_path_factory.mktemp("ablation")
    assert main(["ablate", write_config(made)]) == 0
    return made


def report(folder):
    return json.loads((folder / "run" / "ablation.json").read_text())


def results(folder, arm, seed):
    path = folder / "run" / arm / f"seed-{seed}" / "results.json"
    return json.loads(path.read_text())["measures"]


@pytest.mark.slow
def test_every_run_is_trained_and_measured(folder):
    for arm in ("none", "language"):
        for seed in (0, 1):
            run = folder / "run" / arm / f"seed-{seed}"
            assert len(read_metrics(run / "metrics.jsonl")) == STEPS
            assert json.loads((run / "config.json").read_text())["train"]["seed"] == seed
    for ending in ("png", "svg"):
        assert (folder / "run" / f"ablation.{ending}").stat().st_size > 5000


@pytest.mark.slow
def test_a_run_is_measured_on_the_common_pairs_as_by_hand(folder):
    # nDCG@10 with one relevant passage is 1 / log2(1 + rank), or 0 beyond rank 10.
    held = [json.loads(s) for s in (folder / "run/source/held_out.jsonl").read_text().splitlines()]
    for arm in ("none", "language"):
        embedder = Embedder.load(folder / "run" / arm / "seed-1")
        q, p = (embedder.encode([pair[n] for pair in held]) for n in ("query", "positive"))
        rank = 1 + (q @ p.T > np.sum(q * p, axis=1)[:, None] + 1e-6).sum(1)
        ndcg = np.where(rank <= 10, 1 / np.log2(1 + rank), 0).mean()
        assert results(folder, arm, 1)["ndcg@10"] == pytest.approx(ndcg, abs=1e-6)
        assert results(folder, arm, 1)["recall@10"] == pytest.approx((rank <= 10).mean())


@pytest.mark.slow
def test_arms_start_from_the_same_weights_within_a_seed_and_from_others_in_another(folder):
    starts = {}
    for arm, seed in ((a, s) for a in ("none", "language") for s in (0, 1)):
        values = json.loads((folder / "run" / arm / f"seed-{seed}" / "config.json").read_text())
        config = dataclasses.replace(
            filters(folder).base,
            train=TrainConfig(**values["train"]),
            model=T5Config(**values["model"]),
        )
        leaves = jax.tree.leaves(initial_params(config, make_mesh()))
        starts[arm, seed] = np.concatenate([np.ravel(leaf) for leaf in leaves])
    assert np.array_equal(starts["none", 0], starts["language", 0])
    assert np.array_equal(starts["none", 1], starts["language", 1])
    assert not np.array_equal(starts["none", 0], starts["none", 1])


@pytest.mark.slow
def test_the_table_has_the_figures_of_the_runs(folder, capsys):
    assert main(["ablate", write_config(folder)]) == 0
    lines = capsys.readouterr().out.splitlines()
    for arm in ("none", "language"):
        values = [100 * results(folder, arm, seed)["ndcg@10"] for seed in (0, 1)]
        row = next(line for line in lines if line.startswith(f"{arm} "))
        mean, spread = sum(values) / 2, abs(values[0] - values[1]) / 2**0.5
        assert f"{mean:.2f} ± {spread:.2f}" in row
        by_seed = next(line for line in lines[8:] if line.split()[0] == arm)
        assert by_seed.split()[1:] == [f"{value:.2f}" for value in values]
    gains = [
        100 * (results(folder, "language", s)["ndcg@10"] - results(folder, "none", s)["ndcg@10"])
        for s in (0, 1)
    ]
    row = next(line for line in lines if line.startswith("language "))
    assert row.endswith(f"{sum(gains) / 2:+.2f} ± {statistics.stdev(gains):.2f}")


@pytest.mark.slow
def test_what_the_filter_removed_and_found_is_counted_from_the_ledger(folder):
    planted = {
        row["row"]: row["kind"]
        for row in map(json.loads, (folder / "run/source/planted.jsonl").read_text().splitlines())
    }
    ledger = pq.read_table(folder / "run/data/language/ledger").to_pylist()
    dropped = [planted.get(r["row"], "clean") for r in ledger if r["stage"] == "language"]
    none, language = report(folder)["arms"]
    found = language["found"]["language"]
    assert {k: found[k] for k in ("clean", "mismatched", "foreign")} == {
        k: dropped.count(k) for k in ("clean", "mismatched", "foreign")
    }
    # German sentences are found, and numbers in English words are not taken for another language.
    assert found["foreign"] >= 28 and found["sought"] == 30
    assert none["removed"] == {} and none["found"] == {}
    assert language["removed"] == {"language": len(dropped)}
    assert language["trained_on"] == none["trained_on"] - len(dropped) == 200 - len(dropped)


def state(folder):
    return {p: p.stat().st_mtime_ns for p in (folder / "run").rglob("*") if p.is_file()}


@pytest.mark.slow
def test_what_is_done_is_not_done_again(folder):
    before = state(folder)
    assert main(["ablate", write_config(folder)]) == 0
    changed = {p.name for p, t in state(folder).items() if before.get(p) != t}
    assert changed <= {"ablation.json", "ablation.png", "ablation.svg"}


@pytest.mark.slow
def test_another_configuration_is_refused(folder, capsys):
    code = main(["ablate", write_config(folder), "--optim.learning-rate", "0.5"])
    said = capsys.readouterr().err
    assert code == 2
    assert "references.json was measured with another configuration" in said
    assert "optim.learning_rate: 0.003 → 0.5" in said


@pytest.mark.slow
def test_sigkill_loses_no_run_that_was_measured(folder, tmp_path):
    config = write_config(tmp_path)
    process = subprocess.Popen(
        [sys.executable, "-m", "jina_jax.cli", "ablate", config],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stderr=subprocess.DEVNULL,
    )
    # Seed 0 is measured in arm none, and arm language is on its way.
    path, deadline = tmp_path / "run/language/seed-0/metrics.jsonl", time.monotonic() + 200
    while process.poll() is None and time.monotonic() < deadline and len(read_metrics(path)) < 7:
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    assert process.wait(timeout=60) == -signal.SIGKILL
    measured = tmp_path / "run/none/seed-0/results.json"
    before = measured.stat().st_mtime_ns
    assert main(["ablate", config]) == 0
    assert measured.stat().st_mtime_ns == before
    first, second = report(folder), report(tmp_path)
    assert first["arms"] == second["arms"]


@pytest.mark.slow
def test_arms_that_differ_in_the_loss_share_data_and_held_out_pairs(tmp_path):
    found = ablate(losses(tmp_path), progress=False)
    prepared = (tmp_path / "run" / "data").glob("*/manifest.json")
    assert [path.parent.name for path in prepared] == ["both"]
    both, query = found.arms
    assert both.changes == {} and query.changes == {"loss.positive_weight": 0}
    assert both.measures != query.measures
    assert both.read == query.read == 300


def test_training_on_held_out_texts_is_refused(tmp_path):
    ablation = losses(tmp_path)
    source = ablation.base.data.sources[0]
    # The first 5 records of the source it trains on.
    held_out = dataclasses.replace(source, limit=5)
    data = dataclasses.replace(ablation.base.data, eval_pairs=0)
    base = dataclasses.replace(ablation.base, data=data)
    leaking = dataclasses.replace(ablation, base=base, held_out=held_out)
    with pytest.raises(UserError, match="arm 'both' would train on 5 records that hold a held-out"):
        ablate(leaking, progress=False)


def test_equal_texts_of_a_held_out_source_are_one(tmp_path):
    path = tmp_path / "held.jsonl"
    rows = [("A  query", "one"), ("a query", "two"), ("other", "ONE")]
    path.write_text("".join(json.dumps({"query": q, "positive": p}) + "\n" for q, p in rows))
    task = source_task(SourceConfig("held", paths=(str(path),)))
    assert (list(task.queries.values()), list(task.corpus.texts())) == (
        ["A  query", "other"], ["one", "two"],
    )  # fmt: skip
    assert [len(passages) for passages in task.relevant.values()] == [2, 1]


@pytest.mark.slow
def test_preparation_alone_gives_what_the_ablation_prepared(folder, tmp_path):
    ablation = filters(tmp_path)
    source = SourceConfig("numbers", paths=(str(folder / "run/source/pairs.jsonl"),), licence="CC0")
    data = dataclasses.replace(ablation.base.data, sources=(source,))
    manifest = prepare(data, tmp_path / "data", progress=False)
    theirs = json.loads((folder / "run/data/none/manifest.json").read_text())
    assert dataclasses.asdict(manifest)["sources"][0]["train"] == theirs["sources"][0]["train"]


NAMED_CONFIG = """
from dataclasses import replace
from pathlib import Path
from jina_jax.config import Arm, TokenizerConfig
from tests.ablate.sources import losses

def get_config():
    own = losses(Path({folder!r}))
    data = replace(own.base.data, tokenizer=TokenizerConfig())
    base = replace(own.base, model={model!r}, data=data)
    arms = (Arm("usual"), Arm("none", {{"model.hidden_dropout_prob": 0}}))
    return replace(own, base=base, arms=arms)
"""


@pytest.mark.slow
def test_arms_start_from_a_named_model_and_may_change_it(sentence_folder, tmp_path):
    path = tmp_path / "config.py"
    path.write_text(NAMED_CONFIG.format(folder=str(tmp_path), model=str(sentence_folder)))
    assert main(["ablate", str(path), "--train.num-steps", "2", "--mesh.data", "1"]) == 0
    configs = {arm: read_run(tmp_path / "run" / arm / "seed-0") for arm in ("usual", "none")}
    given = read_sentence_config(sentence_folder).config
    assert configs["usual"].model == given
    assert configs["none"].model == dataclasses.replace(given, hidden_dropout_prob=0.0)
    assert {c.train.initial_weights for c in configs.values()} == {str(sentence_folder)}
