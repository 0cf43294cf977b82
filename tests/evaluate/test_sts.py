import json
import math

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scipy.stats import spearmanr
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.evaluation import EmbeddingSimilarityEvaluator

from jina_jax.config import EvaluateConfig, PromptConfig, RerankingSet, StsSet
from jina_jax.config.evaluate import evaluate_problems
from jina_jax.errors import UserError
from jina_jax.evaluate.results import score_all
from jina_jax.evaluate.sts import StsTask, read_sts, score_sts, spearman
from jina_jax.inference.embedder import Embedder
from tests.random_texts import texts

ROWS = [("a man", "a person", 4.2), ("a cat", 'it\'s a "car"', 0.5)]


def sts(path, **more):
    return read_sts(StsSet("dev", (str(path),), **more))


def test_spearman_by_hand():
    # Ranks (1, 2.5, 2.5, 4) and (1, 3, 2, 4), less 2.5: 4.5 / sqrt(4.5 · 5).
    found = spearman(np.array([1.0, 2, 2, 3]), np.array([1.0, 3, 2, 4]))
    assert found == pytest.approx(4.5 / math.sqrt(4.5 * 5), abs=1e-12)
    # Without ties 1 - 6 Σd² / (n (n² - 1)): ranks (1, 2, 3, 4, 5) and (2, 1, 4, 3, 5).
    found = spearman(np.arange(5.0), np.array([20.0, 10, 40, 30, 5e9]))
    assert found == pytest.approx(1 - 6 * 4 / (5 * 24), abs=1e-12)
    assert spearman(np.arange(5.0), -(np.arange(5.0) ** 3)) == pytest.approx(-1, abs=1e-12)
    assert spearman(np.arange(5.0), np.ones(5)) == 0


@pytest.mark.parametrize("values", [3, 10, 10_000])
def test_spearman_equals_scipys_with_few_and_many_ties(values):
    rng = np.random.default_rng(values)
    x, noise = rng.integers(0, values, (2, 500))
    y = x + 0.7 * noise // 2
    assert spearman(x.astype(float), y) == pytest.approx(spearmanr(x, y).statistic, abs=1e-12)


def test_correlation_equals_sentence_transformers(exported):
    left, right = ([t or "fish" for t in texts(200, seed=n, longest=12)] for n in (1, 2))
    rng = np.random.default_rng(0)
    # Half of the pairs share words, and scores have ties, as in the STS Benchmark. No text is cut:
    # pairs whose texts are cut to the same have the order that rounding gives them.
    shared = rng.random(200) < 0.5
    right = [f"{a} {b}" if s else b for a, b, s in zip(left, right, shared)]
    scores = np.round(2.5 * shared + 2 * rng.random(200), 1).tolist()
    # Rounding alone would order pairs of one cosine: each cosine stays once.
    embedder = Embedder.load(exported)
    cosines = np.einsum("nd,nd->n", embedder.encode(left), embedder.encode(right))
    kept = np.unique(np.round(cosines, 4), return_index=True)[1]
    assert len(kept) > 100
    left, right, scores = ([side[i] for i in kept] for side in (left, right, scores))
    theirs = EmbeddingSimilarityEvaluator(left, right, scores, main_similarity="cosine")(
        SentenceTransformer(str(exported), device="cpu")
    )
    ours = score_sts(StsTask("dev", left, right, scores), embedder)
    assert ours["spearman"] == pytest.approx(theirs["spearman_cosine"], abs=1e-4)
    assert abs(ours["spearman"]) > 0.1


class Angles(Embedder):
    """Reads the embedding off the text."""

    prompts = PromptConfig()

    def __init__(self):
        pass

    def encode(self, texts, *, prompt=None, progress=False):
        angles = np.deg2rad([float(t) for t in texts])
        return np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)


def test_columns_go_where_they_belong_and_tasks_are_averaged():
    # Distances 10, 50, 30 against scores 3, 1, 2 agree; against 1, 3, 2 they are reversed.
    left, right = ["0", "20", "-40"], ["10", "70", "-10"]
    tasks = [StsTask("a", left, right, [3, 1, 2]), StsTask("b", left, right, [1, 3, 2])]
    found = score_all(tasks, {"m": Angles()}, score_sts)
    assert found.keys() == {"a", "b", "average"}
    for task, value in (("a", 1), ("b", -1), ("average", 0)):
        assert found[task]["m"]["spearman"] == pytest.approx(value, abs=1e-12)
    assert score_all([], {"m": Angles()}, score_sts) == {}


def test_every_kind_of_file_gives_the_same(tmp_path):
    names = ("sentence1", "sentence2", "score")
    records = [dict(zip(names, row)) for row in ROWS]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    pq.write_table(pa.Table.from_pylist(records), tmp_path / "a.parquet")
    (tmp_path / "a.csv").write_text(
        'score,sentence1,sentence2\n4.2,a man,a person\n0.5,a cat,"it\'s a ""car"""\n'
    )
    # The STS Benchmark's own form, with columns left over and a quote that means nothing.
    lines = [f"g\tf\ty\t{i}\t{row[2]}\t{row[0]}\t{row[1]}\n" for i, row in enumerate(ROWS)]
    (tmp_path / "b.csv").write_text("".join(lines))
    expected = StsTask("dev", *([row[i] for row in ROWS] for i in range(3)))
    assert sts(tmp_path / "a.jsonl") == expected
    assert sts(tmp_path / "a.parquet", kind="parquet") == expected
    assert sts(tmp_path / "a.csv", kind="csv") == expected
    assert sts(tmp_path / "b.csv", kind="text", fields=("6", "7", "5")) == expected


@pytest.mark.parametrize(
    "rows, what",
    [
        ([("a", "b", "high")], r"a\.jsonl:1 holds 'high' in field 'score', not a finite number"),
        ([("a", "b", 1), ("a", "b", None)], r"a\.jsonl:2 holds None in field 'score'"),
        ([("a", "b", float("nan"))], r"holds nan in field 'score'"),
        ([("a", "b", True)], r"holds True in field 'score'"),
        ([("a", ["b"], 1)], r"holds \['b'\] in field 'sentence2', not a text"),
        ([("a", "b", 1), ("c", "d", 1.0)], r"2 pairs and less than two different scores"),
        ([], r"'dev' has 0 pairs"),
    ],
)
def test_what_cannot_be_scored_is_named(tmp_path, rows, what):
    records = [dict(zip(("sentence1", "sentence2", "score"), row)) for row in rows]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    with pytest.raises(UserError, match=what):
        sts(tmp_path / "a.jsonl")


def test_a_configuration_that_cannot_be_used_is_told():
    good = StsSet("a", ("a",))
    assert list(evaluate_problems(EvaluateConfig(sts=(good,)))) == []
    cases = {
        "evaluate.sts are named 'a'": EvaluateConfig(sts=(good, good)),
        "evaluate.reranking.0 (a) has no paths": EvaluateConfig(
            reranking=(RerankingSet("a", ()),)
        ),
        "evaluate.sts.0 (average): the mean": EvaluateConfig(sts=(StsSet("average", ("a",)),)),
        "column numbers from 1, got sentence1": EvaluateConfig(sts=(StsSet("a", ("a",), "text"),)),
    }  # fmt: skip
    for what, config in cases.items():
        (problem,) = evaluate_problems(config)
        assert what in problem


def test_pairs_with_an_empty_text_are_left_out_and_counted(tmp_path, capsys):
    rows = [("a", " ", 1), ("a", "b", 2), ("", "c", 3), ("c", "d", 4)]
    keys = ("sentence1", "sentence2", "score")
    content = "".join(json.dumps(dict(zip(keys, row))) + "\n" for row in rows)
    (tmp_path / "a.jsonl").write_text(content)
    assert sts(tmp_path / "a.jsonl") == StsTask("dev", ["a", "c"], ["b", "d"], [2.0, 4.0])
    assert "dev: 2 pairs with an empty text are left out" in capsys.readouterr().err
