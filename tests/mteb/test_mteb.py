"""Our encoders under MTEB's harness, on small data sets in the layout of the hub."""

import json
from types import SimpleNamespace

import mteb
import numpy as np
import pytest
from sentence_transformers import SentenceTransformer
from sentence_transformers.evaluation import EmbeddingSimilarityEvaluator

from jina_jax.cli.main import main
from jina_jax.config import MeshConfig, PromptConfig, Suite, SuiteTask
from jina_jax.config.files import load_suite
from jina_jax.devices.mesh import make_mesh
from jina_jax.errors import UserError
from jina_jax.evaluate.reranking import mean_average_precision
from jina_jax.inference.embedder import Embedder
from jina_jax.mteb.model import MtebModel
from jina_jax.mteb.published import averages
from jina_jax.mteb.run import run_suite
from jina_jax.mteb.tasks import suite_tasks
from tests.minilm import minilm_folder

SMALL = Suite(
    "small",
    {
        "STS": (SuiteTask("BIOSSES"),),
        "Reranking": (SuiteTask("AskUbuntuDupQuestions"),),
    },
)
PAIRS = [
    ("a cat sat on the mat", "the cat sat on a mat", 4.5),
    ("dogs run fast", "the stock market fell", 0.2),
    ("he eats an apple", "he eats a red apple", 3.9),
    ("the sky is blue today", "rain falls in the evening", 1.1),
    ("open the window", "close the door please", 4.0),
]
PASSAGES = [
    "install python on ubuntu", "how to install python", "kill a process", "resize a partition",
    "python install help for ubuntu", "list open files", "mount a disk",
]  # fmt: skip
ASKED = {
    "how do i install python on ubuntu": ([0, 4], [1, 2, 3, 5]),
    "kill process": ([2], [0, 1, 3, 5, 6]),
}
CARD = """---
configs:
- {config_name: default, data_files: [{split: test, path: qrels.jsonl}]}
- {config_name: corpus, data_files: [{split: test, path: corpus.jsonl}]}
- {config_name: queries, data_files: [{split: test, path: queries.jsonl}]}
- {config_name: top_ranked, data_files: [{split: test, path: top.jsonl}]}
---
"""


@pytest.fixture(scope="module")
def mirror(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mirror")

    def write(path, rows):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))

    keys = ("sentence1", "sentence2", "score")
    write(folder / "mteb/biosses-sts/test.jsonl", [dict(zip(keys, row)) for row in PAIRS])
    name = mteb.get_task("AskUbuntuDupQuestions").metadata.dataset["path"]
    ask = folder / name
    write(
        ask / "corpus.jsonl",
        [{"id": f"d{i}", "title": "", "text": t} for i, t in enumerate(PASSAGES)],
    )
    write(ask / "queries.jsonl", [{"id": f"q{i}", "text": t} for i, t in enumerate(ASKED)])
    relevant = [(i, p) for i, (good, _) in enumerate(ASKED.values()) for p in good]
    write(
        ask / "qrels.jsonl",
        [{"query-id": f"q{i}", "corpus-id": f"d{p}", "score": 1} for i, p in relevant],
    )
    write(ask / "top.jsonl", [
        {"query-id": f"q{i}", "corpus-ids": [f"d{p}" for p in sorted(good + other)]}
        for i, (good, other) in enumerate(ASKED.values())
    ])  # fmt: skip
    (ask / "README.md").write_text(CARD)
    return folder


@pytest.fixture(scope="module")
def minilm():
    return minilm_folder()


@pytest.fixture(scope="module")
def model(minilm):
    # One copy of the weights, not one a device.
    encoder = Embedder.load(minilm, mesh=make_mesh(MeshConfig(data=1)))
    return MtebModel(encoder, "tests/minilm")


def test_the_scores_are_those_of_sentence_transformers_and_ours(mirror, minilm, model, tmp_path):
    sts, reranking = run_suite(model, SMALL, tmp_path, mirror)
    theirs = SentenceTransformer(str(minilm), device="cpu")
    left, right, score = zip(*PAIRS)
    evaluator = EmbeddingSimilarityEvaluator(left, right, score, main_similarity="cosine")
    assert 0.3 < sts.score / 100 < 0.99
    assert sts.score / 100 == pytest.approx(evaluator(theirs)["spearman_cosine"], abs=1e-9)

    def cosines(query, passages):
        return (
            model._encoder.encode([PASSAGES[p] for p in passages])
            @ model._encoder.encode([query])[0]
        )

    positives = [cosines(query, good) for query, (good, _) in ASKED.items()]
    negatives = [cosines(query, other) for query, (_, other) in ASKED.items()]
    ours = mean_average_precision(positives, negatives, 10)
    assert 0.5 < ours < 1
    # mteb rounds to five digits.
    assert reranking.map_at_10 == pytest.approx(100 * ours, abs=1e-3)
    assert averages([sts, reranking]) == {"STS": sts.score, "Reranking": reranking.score}


def test_results_are_mtebs_own_and_no_task_runs_twice(mirror, model, tmp_path):
    before = run_suite(model, SMALL, tmp_path, mirror)
    (path,) = tmp_path.rglob("BIOSSES.json")
    result = mteb.results.TaskResult.from_disk(path)
    assert 100 * result.get_score() == pytest.approx(before[0].score)

    def fail(*_, **__):
        raise AssertionError("a task that is done was run again")

    meta = model.mteb_model_meta
    encoder = SimpleNamespace(
        encode=fail,
        identity=lambda: meta.revision,
        dimensions=384,
        max_tokens=256,
        prompts=PromptConfig(),
    )
    again = MtebModel(encoder, meta.name)
    after = run_suite(again, SMALL, tmp_path, mirror)
    assert [s.score for s in after] == pytest.approx([s.score for s in before])
    path.unlink()
    with pytest.raises(AssertionError, match="run again"):
        run_suite(again, SMALL, tmp_path, mirror)


def test_every_missing_folder_of_a_mirror_is_named_before_any_work(mirror, tmp_path):
    suite = Suite(
        "more", {"all": (SuiteTask("BIOSSES"), SuiteTask("STS12"), SuiteTask("NFCorpus"))}
    )
    with pytest.raises(UserError, match="lacks 2 of 3") as raised:
        suite_tasks(suite, mirror)
    assert "hf download --repo-type dataset mteb/sts12-sts" in str(raised.value)
    assert "mteb/nfcorpus" in str(raised.value) and "biosses" not in str(raised.value)


def test_an_unknown_task_or_suite_is_named(tmp_path):
    with pytest.raises(UserError, match="has no Invented"):
        suite_tasks(Suite("odd", {"all": (SuiteTask("Invented"),)}), None)
    with pytest.raises(UserError, match="jina_v1, quick"):
        load_suite("invented")
    (tmp_path / "mine.py").write_text("def get_suite():\n    return 3\n")
    with pytest.raises(UserError, match=r"must return a jina_jax\.config\.Suite"):
        load_suite(str(tmp_path / "mine.py"))


@pytest.mark.parametrize("name", ["jina_v1", "quick"])
def test_shipped_suites_are_of_tasks_that_mteb_knows(name):
    groups = suite_tasks(load_suite(name), None)
    assert list(groups) == ["STS", "Reranking", "Retrieval"]


def test_the_verb_prints_scores_and_map(mirror, sentence_folder, tmp_path, capsys):
    (tmp_path / "mine.py").write_text(
        "from jina_jax.config.evaluate import Suite, SuiteTask\n"
        "def get_suite():\n"
        "    return Suite('mine', {'R': (SuiteTask('AskUbuntuDupQuestions'),)})\n"
    )
    verb = [
        "mteb",
        str(sentence_folder),
        f"--suite={tmp_path / 'mine.py'}",
        f"--mirror={mirror}",
        f"--output={tmp_path / 'out'}",
    ]
    assert main(verb) == 0
    printed = capsys.readouterr().out
    assert "MAP@10" in printed and "AskUbuntuDupQuestions" in printed and "average" in printed
    table = json.loads((tmp_path / "out" / "comparison.json").read_text())
    (row,) = table["rows"]
    assert row["measure"] == "map_at_1000"
    assert row["published"]["all-MiniLM-L6-v2"] == 63.48  # On the whole task.
    for value in (row["ours"], 63.48, row["ours"] - 63.48):
        assert f"{value:.2f}" in printed
    assert main([*verb, "--compare", "gtr-t5-base", "sentence-t5-xl"]) == 0
    printed = capsys.readouterr().out
    assert "60.86" in printed and "62.86" in printed and "63.48" not in printed
    assert "mean average precision over all passages" in printed
    assert main([*verb, "--compare"]) == 0
    assert "published" not in capsys.readouterr().out
    # Rounded embeddings have results of their own.
    assert main([*verb, "--compare", "--precision", "binary"]) == 0
    rounded = json.loads((tmp_path / "out" / "comparison.json").read_text())["rows"]
    assert rounded[0]["ours"] != row["ours"]
    names = sorted(path.name for path in (tmp_path / "out" / "results").iterdir())
    assert len(names) == 2 and names[1] == f"{names[0]}-binary"
    assert main([*verb, "--compare", "gpt"]) == 2
    assert "no published scores of 'gpt'; there are jina-emb" in capsys.readouterr().err


@pytest.mark.slow
def test_mtebs_mock_tasks_all_pass(model):
    results = mteb.mock_run(model)
    assert results.all_passed
    ran = [name for name, result in results.items() if result is not None]
    assert len(ran) >= 20
    assert np.isfinite([results[name].get_score() for name in ran]).all()
