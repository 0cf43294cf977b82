"""From text to a model that sentence-transformers loads, through the command line."""

import dataclasses
import json

import numpy as np
import pyarrow.parquet as pq
import pytest
from sentence_transformers import SentenceTransformer

from jina_jax.cli.main import main
from jina_jax.train.metrics.writer import read_metrics
from tests.prepared import CONFIG_FILE, tiny_config, write_jsonl

TEXTS = ["Wait for a task to end.", "  two   spaces", "", "ünïcode ﬁne", "log " * 100]

SCORED_FILE = (
    CONFIG_FILE.replace("return tiny_config({folder!r})", "config = tiny_config({folder!r})")
    + """
    from jina_jax.config import (
        EvaluateConfig, NegationSet, RerankingSet, RetrievalSet, StsSet
    )
    return replace(config, evaluate=EvaluateConfig(
        sts=(StsSet("own", ({folder!r} + "/sts.jsonl",)),),
        reranking=(RerankingSet("own", ({folder!r} + "/reranking.jsonl",)),),
        retrieval=(RetrievalSet("own", {folder!r} + "/beir"),),
        negation=(NegationSet("own", ({folder!r} + "/negation.tsv",), "tsv"),),
    ))
"""
)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("end_to_end")
    write_jsonl(folder)
    (folder / "config.py").write_text(CONFIG_FILE.format(folder=str(folder)))
    for verb in ("prepare", "train", "evaluate", "export"):
        assert main([verb, str(folder / "config.py")]) == 0
    (folder / "texts.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in TEXTS))
    return folder


def test_metrics_tell_of_every_step(run):
    lines = read_metrics(run / "run" / "metrics.jsonl")
    assert [v["step"] for v in lines] == list(range(1, 41))
    assert lines[-1].keys() >= {
        "loss", "accuracy", "learning_rate", "gradient_norm", "real_tokens_per_s",
        "padding_share", "step_time_s", "data_wait_s", "source",
    }  # fmt: skip
    assert np.mean([v["loss"] for v in lines[-8:]]) < np.mean([v["loss"] for v in lines[:8]])
    assert {v["source"] for v in lines} == {"docs", "numbers"}
    assert list((run / "run" / "tensorboard").iterdir())


def test_training_again_changes_nothing(run):
    before = (run / "run" / "metrics.jsonl").read_bytes()
    assert main(["train", str(run / "config.py")]) == 0
    assert (run / "run" / "metrics.jsonl").read_bytes() == before


def test_evaluation_compares_with_bm25_and_the_start(run):
    results = json.loads((run / "run" / "evaluation.json").read_text())
    assert results.keys() == {"docs", "numbers", "average"}
    for systems in results.values():
        assert systems.keys() == {"untrained", "trained", "bm25"}
        for values in systems.values():
            assert list(values) == ["ndcg@10", "recall@10", "map@10", "mrr@10"]
            assert 0 <= values["map@10"] <= values["ndcg@10"] <= values["recall@10"] <= 1
            # Each query has one relevant passage.
            assert values["map@10"] == pytest.approx(values["mrr@10"], abs=1e-6)
    assert results["average"]["trained"]["ndcg@10"] == pytest.approx(
        (results["docs"]["trained"]["ndcg@10"] + results["numbers"]["trained"]["ndcg@10"]) / 2
    )


def write_sets(folder):
    names = ["zero", "one", "two", "three", "four"]
    passages = [f"the number {i}" for i in range(5)]

    def write(name, rows):
        (folder / name).parent.mkdir(exist_ok=True, parents=True)
        (folder / name).write_text("".join(json.dumps(r) + "\n" for r in rows))

    pairs = [(a, p, 5 - abs(i - j)) for i, a in enumerate(names) for j, p in enumerate(passages)]
    write("sts.jsonl", [dict(zip(("sentence1", "sentence2", "score"), row)) for row in pairs])
    others = TEXTS[:2] + TEXTS[3:]
    rows = [{"query": a, "positive": [p], "negative": others} for a, p in zip(names, passages)]
    write("reranking.jsonl", rows)
    texts = enumerate([*passages, *others])
    write("beir/corpus.jsonl", [{"_id": f"p{i}", "text": t} for i, t in texts])
    write("beir/queries.jsonl", [{"_id": f"q{i}", "text": t} for i, t in enumerate(names)])
    rows = "".join(f"q{i}\tp{i}\t1\n" for i in range(5))
    (folder / "beir" / "qrels").mkdir()
    (folder / "beir" / "qrels" / "test.tsv").write_text(f"query-id\tcorpus-id\tscore\n{rows}")
    triplets = "".join(f"{a}\t{p}\tnot {p}\n" for a, p in zip(names, passages))
    (folder / "negation.tsv").write_text(f"query\tpositive\tnegative\n{triplets}")


def test_sets_of_the_config_are_evaluated_too(run, capsys):
    write_sets(run)
    (run / "scored.py").write_text(SCORED_FILE.format(folder=str(run)))
    assert main(["evaluate", str(run / "scored.py")]) == 0
    out = capsys.readouterr().out
    tasks = {
        "sts": ("spearman", {"own"}),
        "reranking": ("map@10", {"own"}),
        "evaluation": ("ndcg@10", {"docs", "numbers", "own"}),
        "negation": ("hard_negation", {"own"}),
    }
    for kind, (measure, names) in tasks.items():
        results = json.loads((run / "run" / f"{kind}.json").read_text())
        assert results.keys() == names | {"average"}
        values = {system: of[measure] for system, of in results["own"].items()}
        assert values.keys() - {"bm25"} == {"untrained", "trained"}
        assert kind == "negation" or values["trained"] != values["untrained"]
        assert f"{100 * values['trained']:.1f}" in out
        mean = np.mean([results[n]["trained"][measure] for n in names])
        assert results["average"]["trained"][measure] == pytest.approx(mean)
    assert main(["export", str(run / "scored.py")]) == 0
    card = (run / "run" / "export" / "README.md").read_text()
    assert "docs (held out)" in card and "own" in card and "own (held out)" not in card
    for verb in ("evaluate", "export"):
        assert main([verb, str(run / "config.py")]) == 0
    assert not (run / "run" / "sts.json").exists()


def test_checkpoint_export_and_sentence_transformers_agree(run, capsys):
    for model, out in (("run", "a.npy"), ("run/export", "b.npy")):
        assert main(["encode", str(run / model), str(run / "texts.jsonl"), str(run / out)]) == 0
    ours, exported = np.load(run / "a.npy"), np.load(run / "b.npy")
    assert ours.shape == (len(TEXTS), 32)
    assert np.array_equal(ours, exported)
    theirs = SentenceTransformer(str(run / "run" / "export"), device="cpu").encode(TEXTS)
    np.testing.assert_allclose(theirs, ours, atol=1e-5)


def test_encode_writes_parquet(run, capsys):
    out = run / "out.parquet"
    assert main(["encode", str(run / "run"), str(run / "texts.jsonl"), str(out)]) == 0
    table = pq.read_table(out)
    assert table["text"].to_pylist() == TEXTS
    assert len(table["embedding"][0].as_py()) == 32


def test_search_finds_a_passage_by_itself(run, capsys):
    assert main(["search", str(run / "run"), str(run / "texts.jsonl"), TEXTS[0]]) == 0
    first = capsys.readouterr().out.splitlines()[1]
    assert first.split(maxsplit=1) == ["1.000", TEXTS[0]]


def test_inspect_shows_the_run(run, capsys):
    assert main(["inspect", str(run / "run"), "--samples", "1"]) == 0
    out = capsys.readouterr().out
    assert "retrieval (%)" in out
    assert "learning rate" in out


def test_why_and_plot_find_the_data_of_a_run(run, tmp_path, capsys):
    assert main(["inspect", str(run / "run"), "--why", "never read"]) == 0
    assert "no record of" in capsys.readouterr().out
    # Its data have no scores: that is what is told, not that there are none.
    main(["inspect", str(run / "run"), "--plot", str(tmp_path / "scores.png")])
    assert "no prepared data" not in capsys.readouterr().err


def test_model_card_names_data_and_scores(run):
    card = (run / "run" / "export" / "README.md").read_text()
    config = tiny_config("x")
    for source in config.data.sources:
        assert source.name in card
    assert "ndcg@10" in card and "mrr@10" in card
    assert dataclasses.asdict(config)["name"] in card
