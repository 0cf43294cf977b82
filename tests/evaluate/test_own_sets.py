"""One's own sets through mteb's task classes, beside what `evaluate` says of them."""

import json
from pathlib import Path

import mteb
import numpy as np
import pytest
from mteb.abstasks.retrieval import AbsTaskRetrieval
from mteb.models import SearchEncoderWrapper

from jina_jax.cli.main import main
from jina_jax.config import NegationSet, RerankingSet, RetrievalSet, StsSet, Suite, SuiteTask
from jina_jax.errors import UserError
from jina_jax.evaluate.negation import read_negation, score_negation
from jina_jax.evaluate.reranking import read_reranking, score_reranking
from jina_jax.evaluate.retrieval import rank_by_embedding, score
from jina_jax.evaluate.retrieval_set import read_retrieval
from jina_jax.evaluate.sts import read_sts, score_sts
from jina_jax.inference.embedder import Embedder
from jina_jax.mteb.model import open_model
from jina_jax.mteb.run import run_suite
from jina_jax.mteb.tasks import own_task, suite_tasks
from tests.random_texts import texts


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    """One of each kind, of random texts that all differ."""
    folder = tmp_path_factory.mktemp("sets")
    words = list(dict.fromkeys(t.strip() for t in texts(700, seed=5) if t.strip()))
    rng = np.random.default_rng(0)

    def write(name, rows):
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))

    write("sts.jsonl", [
        {"sentence1": a, "sentence2": b, "score": s}
        for a, b, s in zip(words[:40], words[40:80], rng.integers(0, 6, 40).tolist())
    ])  # fmt: skip
    write("reranking.jsonl", [
        {"query": words[i], "positive": words[i + 1 : i + 3], "negative": words[i + 3 : i + 16]}
        for i in range(80, 240, 16)
    ])  # fmt: skip
    corpus = words[240:440]
    write("corpus.jsonl", [
        {"_id": f"p{i}", "title": t[:5] if i % 2 else "", "text": t} for i, t in enumerate(corpus)
    ])  # fmt: skip
    write("queries.jsonl", [{"_id": f"q{i}", "text": t} for i, t in enumerate(words[440:460])])
    rows = [(i, int(p), int(s)) for i in range(20) for p, s in
            zip(rng.choice(200, 20, replace=False), rng.integers(0, 4, 20))]  # fmt: skip
    (folder / "qrels").mkdir()
    (folder / "qrels" / "dev.tsv").write_text(
        "query-id\tcorpus-id\tscore\n" + "".join(f"q{i}\tp{p}\t{s}\n" for i, p, s in rows)
    )
    write("negation.jsonl", [
        {"query": a, "positive": b, "negative": c}
        for a, b, c in zip(words[460:500], words[500:540], words[540:580])
    ])  # fmt: skip
    return {
        "sts": StsSet("own-sts", (str(folder / "sts.jsonl"),)),
        "reranking": RerankingSet("own-reranking", (str(folder / "reranking.jsonl"),)),
        "retrieval": RetrievalSet("own-retrieval", str(folder), "dev"),
        "negation": NegationSet("own-negation", (str(folder / "negation.jsonl"),)),
    }


@pytest.fixture(scope="module")
def model(exported):
    return open_model(exported, "tests/exported")


@pytest.fixture(scope="module")
def ours(sets, exported):
    embedder = Embedder.load(exported)
    retrieval = read_retrieval(sets["retrieval"])
    return {
        "own-sts": score_sts(read_sts(sets["sts"]), embedder)["spearman"],
        "own-reranking": score_reranking(read_reranking(sets["reranking"]), embedder, 10)["map@10"],
        "own-retrieval": score(retrieval, rank_by_embedding(retrieval, embedder, 10), 10)[
            "ndcg@10"
        ],
        "own-negation": score_negation(read_negation(sets["negation"]), embedder)["hard_negation"],
    }


def test_mtebs_scores_are_those_of_evaluate(sets, model, ours, tmp_path, monkeypatch):
    exact = {}

    def note(self, scores, qrels, results, hf_split, hf_subset):
        # mteb rounds the means that it gives to five digits.
        measure = self.metadata.main_score.replace("_at_", "_cut_")
        exact[self.metadata.name] = np.mean([of[measure] for of in scores.values()])
        return {}

    monkeypatch.setattr(AbsTaskRetrieval, "task_specific_scores", note)
    found = run_suite(model, Suite("own", {"own": tuple(sets.values())}), tmp_path)
    assert {s.task for s in found} == ours.keys()
    for one in found:
        assert 0.01 < abs(ours[one.task]) < 0.99
        theirs = exact.get(one.task, one.score / 100)
        assert theirs == pytest.approx(ours[one.task], abs=1e-6)
        assert one.score / 100 == pytest.approx(theirs, abs=5.1e-6)
    assert exact.keys() == {"own-reranking", "own-retrieval"}


def test_results_are_mtebs_own_and_follow_the_files(sets, model, ours, tmp_path):
    suite = Suite("own", {"own": (sets["sts"], sets["negation"])})
    run_suite(model, suite, tmp_path)
    (path,) = tmp_path.rglob("own-negation.json")
    result = mteb.results.TaskResult.from_disk(path)
    assert result.get_score() == pytest.approx(ours["own-negation"])
    assert result.scores["test"][0].keys() >= {"easy_negation", "hard_negation"}
    before = path.stat().st_mtime_ns
    run_suite(model, suite, tmp_path)
    assert path.stat().st_mtime_ns == before
    (file,) = sets["negation"].paths
    lines = Path(file).read_text().splitlines(keepends=True)
    changed = tmp_path / "changed.jsonl"
    changed.write_text("".join(lines[:10]))
    other = NegationSet("own-negation", (str(changed),))
    (found,) = run_suite(model, Suite("own", {"own": (other,)}), tmp_path)
    assert path.stat().st_mtime_ns > before
    embedder_score = mteb.results.TaskResult.from_disk(path).get_score()
    assert found.score / 100 == pytest.approx(embedder_score) != pytest.approx(result.get_score())


def test_the_description_of_triplets(sets):
    task = own_task(sets["negation"])
    task.load_data()
    found = task._calculate_descriptive_statistics_from_split("test")
    triplets = read_negation(sets["negation"])
    assert found["num_samples"] == 40
    assert found["number_of_characters"] == sum(len(t) for column in triplets[1:] for t in column)


def test_what_a_suite_cannot_hold_is_told_before_any_work(sets, tmp_path):
    cases = {
        "name of several tasks": (sets["sts"], sets["sts"]),
        "'BIOSSES' is the name of a task of mteb": (StsSet("BIOSSES", ("a",)),),
        r"has no paths": (StsSet("a", ()),),
        r"matches no file": (StsSet("a", (str(tmp_path / "none"),)),),
        r"has no Invented": (SuiteTask("Invented"), sets["sts"]),
    }
    for what, tasks in cases.items():
        with pytest.raises(UserError, match=what):
            suite_tasks(Suite("own", {"own": tasks}), None)


def test_a_mirror_need_not_hold_own_sets(sets, tmp_path):
    assert suite_tasks(Suite("own", {"own": (sets["sts"],)}), tmp_path)["own"]


def test_the_verb_takes_own_sets(sets, exported, ours, tmp_path, capsys):
    (tmp_path / "mine.py").write_text(
        "from jina_jax.config.evaluate import *\n"
        "from jina_jax.config.evaluate import Suite\n"
        f"def get_suite():\n    return Suite('mine', {{'all': ({sets['sts']!r},)}})\n"
    )
    args = [f"--suite={tmp_path / 'mine.py'}", f"--output={tmp_path / 'out'}"]
    assert main(["mteb", str(exported), *args]) == 0
    out = capsys.readouterr().out
    assert "own-sts" in out and f"{100 * ours['own-sts']:.2f}" in out


def test_a_corpus_is_searched_as_mteb_searches_it(model, sets):
    task = own_task(sets["retrieval"])
    task.load_data()
    data = task.dataset["default"]["dev"]
    titled = data["corpus"].add_column("title", ["", "a title"] * 100)
    more = {
        "task_metadata": task.metadata, "hf_split": "dev", "hf_subset": "default",
        "encode_kwargs": {"batch_size": 32, "show_progress_bar": False}, "num_proc": None,
    }  # fmt: skip
    found = []
    for searcher in (model, SearchEncoderWrapper(model)):
        searcher.index(titled, **more)
        found.append(searcher.search(data["queries"], top_k=30, **more))
    ours, theirs = found
    assert ours.keys() == theirs.keys() and len(ours) == 20
    for query, ranked in theirs.items():
        assert ours[query] == pytest.approx(ranked, abs=1e-6) and len(ranked) == 30
