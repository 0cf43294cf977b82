"""Builds triplets from NLI data and by rules."""

import pytest

from jina_jax.cli.tables import negations
from jina_jax.config import (
    DataConfig,
    NegationCheckConfig,
    NegationConfig,
    SourceConfig,
    TokenizerConfig,
)
from jina_jax.errors import UserError
from jina_jax.negation.build import BuiltSource, NegationReport
from jina_jax.prepare.run import prepare
from tests.negation.negation_runs import build, lines, sentences, triple
from tests.pairs import write

NLI = [
    ("A dog runs in the park.", "An animal is outside today.", "entailment"),
    ("A dog runs in the park.", "The dog is old.", "neutral"),
    ("A dog runs in the park.", "An animal is not outside today.", "contradiction"),
    ("A dog runs in the park.", "Cats sleep all day.", "contradiction"),
    ("A man eats.", "A man is eating food.", "entailment"),
]


def nli_source(folder):
    rows = [{"premise": p, "hypothesis": h, "label": label} for p, h, label in NLI]
    path = write(folder / "nli.jsonl", rows)
    return SourceConfig(
        "nli", paths=(str(path),), extractor="nli_triplets", negative_field="negative"
    )


def test_nli_groups_are_checked(tmp_path):
    built = build(tmp_path, nli_source(tmp_path))
    assert (built.triplets, built.rejected) == (1, {"polarity": 1})
    (row,) = lines(tmp_path / "out" / "nli.jsonl")
    assert triple(row) == (NLI[0][0], NLI[0][1], NLI[2][1])
    (rejected,) = lines(tmp_path / "out" / "nli.rejected.jsonl")
    assert (rejected["negative"], rejected["reason"]) == ("Cats sleep all day.", "polarity")
    check = NegationCheckConfig(polarity=False, min_overlap=0)
    every = build(tmp_path, nli_source(tmp_path), NegationConfig(check=check), "every")
    assert (every.read, every.triplets, every.rejected) == (3, 2, {})
    assert every.bad == {"no_pair": 1}


def test_pairs_and_sentences_are_negated_by_rules(tmp_path):
    texts = ["He is next to a dog.", "Who is it?", "She began to sing loudly.", "A car stops."]
    source = sentences(tmp_path, [*texts, 7])
    built = build(tmp_path, source)
    assert built.licence == "CC0"
    assert (built.read, built.triplets, built.bad) == (5, 2, {"wrong_type": 1})
    assert built.rejected == {"no_paraphrase": 2}
    assert [triple(row) for row in lines(tmp_path / "out" / "sentences.jsonl")] == [
        (texts[0], "He's beside a dog.", "He is not next to a dog."),
        (texts[2], "She started to sing loudly.", "She did not begin to sing loudly."),
    ]
    pairs = write(tmp_path / "pairs.jsonl", [
        {"query": "A dog sleeps here.", "positive": "An animal is asleep."},
        {"query": "A dog sleeps.", "positive": "Asleep."},
    ])  # fmt: skip
    built = build(tmp_path, SourceConfig("pairs", paths=(str(pairs),)), out="pairs")
    assert built.rejected == {"no_rule": 1}
    (row,) = lines(tmp_path / "pairs" / "pairs.jsonl")
    assert triple(row) == (
        "A dog sleeps here.", "An animal is asleep.", "An animal is not asleep.",
    )  # fmt: skip


def test_prepare_reads_what_was_built(tmp_path):
    texts = [f"The number {i} is next to {i + 1} here." for i in range(1200)]
    built = build(tmp_path, sentences(tmp_path, texts))
    assert built.triplets == 1200
    path = tmp_path / "out" / "sentences.jsonl"
    assert [row["query"] for row in lines(path)] == texts  # Over the bounds of blocks too.
    source = SourceConfig("negation", paths=(str(path),), negative_field="negative")
    data = DataConfig((source,), TokenizerConfig("train", vocab_size=60), eval_pairs=20)
    (summary,) = prepare(data, tmp_path / "prepared", progress=False).sources
    assert (summary.record, summary.train, summary.eval) == ("triplet", 1180, 20)


def test_the_same_again_changes_nothing_and_another_way_is_refused(tmp_path):
    source = nli_source(tmp_path)
    first = build(tmp_path, source)
    before = (tmp_path / "out" / "negation.json").stat().st_mtime_ns
    assert build(tmp_path, source) == first
    assert (tmp_path / "out" / "negation.json").stat().st_mtime_ns == before
    other = NegationConfig(check=NegationCheckConfig(max_words=9))
    with pytest.raises(UserError, match="was built with other options or input"):
        build(tmp_path, source, other)
    with pytest.raises(UserError, match="no source is named 'x'; they are nli"):
        build(tmp_path, source, NegationConfig(sources=("x",)))


@pytest.mark.parametrize(("no_rule", "hinted"), [(6, True), (5, False)])
def test_rules_that_fit_few_positives_name_the_other_method(no_rule, hinted):
    source = BuiltSource("commands", "", 10, 10 - no_rule, {}, {"no_rule": no_rule})
    shown = negations(NegationReport("x", {}, (source,)))
    assert ("negation.method=endpoint" in shown) == hinted
