"""The recipes' commands, on a little text and for a few steps."""

import gzip
import json

import numpy as np
import pytest

from jina_jax.cli.main import main
from jina_jax.config.files import load_phases
from jina_jax.shards.manifest import load_manifest
from jina_jax.train.metrics.writer import read_metrics
from tests.config.test_negation_configs import SMALL, make_negations
from tests.minilm import minilm_folder
from tests.negation.negation_runs import lines


def losses(run):
    return [step["loss"] for step in read_metrics(run / "metrics.jsonl")]


@pytest.mark.slow
def test_the_demo_goes_on_with_hard_negatives_of_its_own(tmp_path, monkeypatch):
    minilm_folder()
    monkeypatch.chdir(tmp_path)
    small = [*SMALL, "--data.sources.0.paths", "email", "logging"]
    more = {"demo": ["--mine.max-queries", "30"], "demo_hard_negatives": []}
    for name, flags in more.items():
        phase = f"demo_hard_negatives:{name}"
        for verb in ("prepare", "train", *(["mine"] * (name == "demo"))):
            assert main([verb, phase, *small, *flags]) == 0
    mined = lines(tmp_path / "runs" / "demo" / "mined" / "pydocs.jsonl")
    manifest = load_manifest(tmp_path / "runs" / "demo_hard_negatives" / "data")
    assert 8 < manifest.sources[1].train <= len({(r["query"], r["positive"]) for r in mined})
    run = tmp_path / "runs" / "demo_hard_negatives"
    assert np.isfinite(losses(run)).all() and len(losses(run)) == 2
    # Pairs are there for those that are held out, and no batch is of them.
    steps = read_metrics(run / "metrics.jsonl")
    assert [step.get("source/pydocs/batches", 0) for step in steps] == [0, 0]


@pytest.mark.slow
def test_the_mixture_trains_both_phases(tmp_path, monkeypatch):
    minilm_folder()
    monkeypatch.chdir(tmp_path)
    raw = tmp_path / "raw"
    for folder in ("opentrivia/categories", "tldr_pages"):
        (raw / folder).mkdir(parents=True)
    pairs = [(f"What is the {n}th town of the valley of rivers?", f"town {n}") for n in range(40)]
    (raw / "opentrivia" / "categories" / "towns").write_text(
        "".join(f"#Q {question}\n^ {answer}\nA {answer}\n\n" for question, answer in pairs)
    )
    with gzip.open(raw / "tldr_pages" / "a.jsonl.gz", "wt") as file:
        for n in range(40):
            row = {"a": f"List the files of folder number {n}", "b": f"ls folder-{n}"}
            file.write(json.dumps(row) + "\n")
    make_negations(tmp_path)
    # As many of a sample's 40 passages may be as near as the right one.
    small = [*SMALL, "--data.max-bad-share", "0.05"]
    top = ["--data.consistency.top-k", "40", "--data.sources.2.paths", "json", "email"]
    for phase in load_phases("mixture"):
        more = top if phase.data.consistency.enabled else []
        for verb in ("prepare", "train"):
            assert main([verb, f"mixture:{phase.name}", *small, *more]) == 0
    run = tmp_path / "runs" / "mixture_triplets"
    assert len(losses(run)) == 2 and np.isfinite(losses(run)).all()
    of_pairs = load_manifest(tmp_path / "runs" / "mixture_pairs" / "data").sources
    assert [s.prompts for s in of_pairs] == [("query: ", "passage: ")] * 3
    of_triplets = load_manifest(run / "data").sources
    assert {s.prompts for s in of_triplets} == {("", "")} and len(of_triplets) == 6
