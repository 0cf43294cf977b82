import json
from functools import partial

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.evaluation import RerankingEvaluator

from jina_jax.config import RerankingSet
from jina_jax.errors import UserError
from jina_jax.evaluate.reranking import (
    Candidates,
    RerankingTask,
    mean_average_precision,
    read_reranking,
    score_reranking,
)
from jina_jax.evaluate.results import score_all
from jina_jax.inference.embedder import Embedder
from tests.evaluate.test_sts import Angles
from tests.random_texts import texts


def read(path, rows, **more):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return read_reranking(RerankingSet("dev", (str(path),), **more))


def scores(*values):
    return [np.array(v, np.float32) for v in values]


def plain_map(positives, negatives, k):
    """The definition, one query after another; equal scores put the irrelevant one first."""
    precisions = []
    for of_positive, of_negative in zip(positives, negatives):
        ranked = sorted([(-s, 1) for s in of_positive] + [(-s, 0) for s in of_negative])
        hits, total = 0, 0.0
        for rank, (_, relevant) in enumerate(ranked[:k], start=1):
            hits += relevant
            total += relevant * hits / rank
        precisions.append(total / len(of_positive))
    return sum(precisions) / len(precisions)


def test_map_by_hand():
    # Ranks of the relevant: 1 and 3, so (1/1 + 2/3) / 2; the other query has its one at rank 2.
    found = mean_average_precision(scores([0.9, 0.5], [0.1]), scores([0.7], [0.2]), 10)
    assert found == pytest.approx(((1 + 2 / 3) / 2 + 1 / 2) / 2, abs=1e-6)
    # Cut after two, the relevant one at rank 3 counts as not found.
    found = mean_average_precision(scores([0.9, 0.5]), scores([0.7]), 2)
    assert found == pytest.approx(1 / 2, abs=1e-6)


def test_equal_scores_gain_nothing():
    found = mean_average_precision(scores([0.5]), scores([0.5, 0.5]), 10)
    assert found == pytest.approx(1 / 3, abs=1e-6)


@pytest.mark.parametrize("k", [1, 3, 10, 1000])
def test_map_equals_its_definition(k):
    rng = np.random.default_rng(k)
    # Few different scores, so that many are equal.
    positives, negatives = (
        [rng.integers(0, 8, n) / 8 for n in rng.integers(1, most, 50)] for most in (6, 30)
    )
    found = mean_average_precision(positives, negatives, k)
    assert found == pytest.approx(plain_map(positives, negatives, k), abs=1e-6)


def test_map_equals_sentence_transformers_where_all_ranks_count(exported):
    words = [t or "fish" for t in texts(900, seed=3)]
    words = list(dict.fromkeys(words))
    queries = [
        Candidates(words[9 * i], words[9 * i + 1 : 9 * i + 2 + i % 4], words[9 * i + 5 : 9 * i + 9])
        for i in range(len(words) // 9)
    ]
    samples = [{"query": c.query, "positive": c.positives, "negative": c.negatives}
               for c in queries]  # fmt: skip
    theirs = RerankingEvaluator(samples)(SentenceTransformer(str(exported), device="cpu"))
    # They have no cut-off; with at most 8 passages a query, neither has ours.
    ours = score_reranking(RerankingTask("dev", queries), Embedder.load(exported), 10)
    assert ours["map@10"] == pytest.approx(theirs["map"], abs=1e-4)
    assert 0.3 < ours["map@10"] < 0.9


def test_passages_are_ranked_with_their_own_query_and_tasks_averaged():
    first = RerankingTask("a", [Candidates("0", ["10"], ["40", "-30"])])
    second = RerankingTask("b", [Candidates("50", ["10"], ["40", "-30"])])
    found = score_all([first, second], {"m": Angles()}, partial(score_reranking, k=10))
    values = [found[t]["m"]["map@10"] for t in ("a", "b", "average")]
    assert values == pytest.approx([1, 1 / 2, 3 / 4], abs=1e-6)


def test_lists_and_single_texts_are_read_and_one_sided_queries_left_out(tmp_path, capsys):
    rows = [
        {"query": "q", "positive": ["a", "b"], "negative": "c"},
        {"query": ["r"], "positive": "d", "negative": ["e"]},
        {"query": "s", "positive": [], "negative": ["e"]},
        {"query": "t", "positive": ["e"], "negative": []},
    ]
    task = read(tmp_path / "a.jsonl", rows)
    assert task.queries == [Candidates("q", ["a", "b"], ["c"]), Candidates("r", ["d"], ["e"])]
    assert "dev: 2 queries without passages of both kinds are left out" in capsys.readouterr().err


def test_rows_of_one_query_are_one_query(tmp_path):
    (tmp_path / "a.tsv").write_text(
        "query\tpositive\tnegative\nq\ta\tc\nr\td\te\nq\ta\tf\nq\tb\t\ns\tx\t\n"
    )
    task = read_reranking(RerankingSet("dev", (str(tmp_path / "a.tsv"),), "tsv"))
    # `s` has no other passage and is left out.
    assert task.queries == [Candidates("q", ["a", "b"], ["c", "f"]), Candidates("r", ["d"], ["e"])]
    (tmp_path / "b.csv").write_text("query,positive,negative\n,a,b\n")
    with pytest.raises(UserError, match=r"b\.csv:2 holds '' in field 'query', not a text"):
        read_reranking(RerankingSet("dev", (str(tmp_path / "b.csv"),), "csv"))


@pytest.mark.parametrize(
    "row, what",
    [
        ({"query": "q", "positive": "a"}, r"a\.jsonl:1 has no field 'negative'; it has query, pos"),
        ({"query": "q", "positive": [1], "negative": "a"}, r"holds 1 in field 'positive', not a t"),
        ({"query": "", "positive": "a", "negative": "b"}, r"holds '' in field 'query', not a text"),
        ({"query": ["q", "r"], "positive": "a", "negative": "b"}, r"2 texts in field 'query'"),
        ({"query": "q", "positive": [], "negative": []}, r"no query with passages in both"),
    ],
)
def test_what_cannot_be_ranked_is_named(tmp_path, row, what):
    with pytest.raises(UserError, match=what):
        read(tmp_path / "a.jsonl", [row])
