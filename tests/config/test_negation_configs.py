"""The configs that make triplets with negations and train on them, on a few sentences."""

import json
from dataclasses import replace

from jina_jax.config.files import load_config
from jina_jax.config.validation import validate
from jina_jax.inference.initial import with_named_model
from jina_jax.negation.build import build_negations
from jina_jax.prepare.run import prepare
from jina_jax.shards.manifest import load_manifest

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
