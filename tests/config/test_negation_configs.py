"""The configs that make triplets with negations and train on them, on a few sentences."""

import json
from dataclasses import replace

import numpy as np
import pytest

from jina_jax.cli.main import main
from jina_jax.config.files import load_config
from jina_jax.config.validation import validate
from jina_jax.inference.initial import with_named_model
from jina_jax.negation.build import build_negations
from jina_jax.prepare.run import prepare
from jina_jax.shards.manifest import load_manifest
from jina_jax.train.metrics.writer import read_metrics
from tests.minilm import minilm_folder
from tests.negation.negation_runs import lines
from tests.pairs import write

SENTENCES = [
    ("Two dogs are running in the park.", "The dogs are outside.", "The dogs are not outside."),
    ("A woman is reading a long book.", "A woman is reading.", "A woman is not reading."),
    ("The old man is eating an apple.", "A man is eating fruit.", "A man is not eating fruit."),
]


def test_every_triplet_is_trained_on_both_ways(tmp_path):
    lines = [
        {"premise": premise, "hypothesis": hypothesis, "label": label}
        for premise, *hypotheses in SENTENCES
        for label, hypothesis in zip(("entailment", "contradiction"), hypotheses)
    ]
    (tmp_path / "nli.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    maker = load_config("negation_triplets")
    sources = tuple(
        replace(s, kind="jsonl", dataset="", paths=(str(tmp_path / "nli.jsonl"),))
        for s in maker.data.sources
    )
    triplets = tmp_path / "triplets"
    build_negations(maker.negation, replace(maker.data, sources=sources), triplets, progress=False)
    trained = with_named_model(load_config("negation_minilm"))
    validate(trained)
    read = tuple(
        replace(s, paths=(str(triplets / s.paths[0].rpartition("/")[2]),))
        for s in trained.data.sources
    )
    data = replace(trained.data, sources=read, eval_pairs=0)
    prepare(data, tmp_path / "data", progress=False)
    counts = {s.name: s.train for s in load_manifest(tmp_path / "data").sources}
    assert counts == {
        f"{name}{way}": 3
        for name in ("contradicted", "entailed", "entailing")
        for way in ("", "_exchanged")
    }
    negated = [json.loads(x) for x in (triplets / "entailing.jsonl").read_text().splitlines()]
    assert [t["positive"] for t in negated] == [premise for premise, *_ in SENTENCES]
    assert "not" in negated[0]["negative"]


NUMBERS = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")


def nli_rows():
    """Of 40 premises, one that is entailed and one that contradicts."""
    for i in range(40):
        place = f"house {NUMBERS[i // 10]} of street {NUMBERS[i % 10]}"
        premise = f"The old dog is sleeping soundly in {place}."
        yield {"premise": premise, "hypothesis": f"A dog is in {place}.", "label": "entailment"}
        yield {"premise": premise, "hypothesis": f"No dog is in {place}.", "label": "contradiction"}


# On one device: each would hold the model and its moments.
SMALL = (
    "--data.eval-pairs", "4", "--feed.global-batch-size", "8", "--train.num-steps", "2",
    "--train.log-every-steps", "1", "--optim.warmup-steps", "1", "--mesh.data", "1",
)  # fmt: skip


def make_negations(folder):
    """Runs the verb on the rows, in the folder that one works in."""
    write(folder / "nli.jsonl", list(nli_rows()))
    files = []
    for i in range(3):
        at = f"--data.sources.{i}"
        files += [f"{at}.kind", "jsonl", f"{at}.dataset", "", f"{at}.paths", "nli.jsonl"]
    assert main(["negation", "negation_triplets", *files]) == 0


@pytest.mark.parametrize("name", ["negation_triplets", "negation_minilm"])
def test_data_are_looked_for_below_the_folder_that_one_works_in(name):
    paths = [path for source in load_config(name).data.sources for path in source.paths]
    assert not any(path.startswith(("/", "..")) for path in paths)


@pytest.mark.slow
def test_the_commands_that_the_configs_name_train_minilm(tmp_path, monkeypatch):
    minilm_folder()
    monkeypatch.chdir(tmp_path)
    make_negations(tmp_path)
    folder = tmp_path / "runs" / "negation_triplets" / "negation"
    first = "house one of street one."
    for name, negative in (
        ("contradicted", f"No dog is in {first}"),
        ("entailed", f"A dog is not in {first}"),
        ("entailing", f"The old dog is not sleeping soundly in {first}"),
    ):
        rows = lines(folder / f"{name}.jsonl")
        assert (len(rows), rows[0]["negative"]) == (40, negative)
    for verb in ("prepare", "train"):
        assert main([verb, "negation_minilm", *SMALL]) == 0
    steps = read_metrics(tmp_path / "runs" / "negation_minilm" / "metrics.jsonl")
    assert len(steps) == 2 and np.isfinite([step["loss"] for step in steps]).all()
