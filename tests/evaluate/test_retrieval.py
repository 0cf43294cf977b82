import dataclasses
import math

import pytest

from jina_jax.evaluate.retrieval import RetrievalTask, corpus_of, rank_by_bm25, score

TASK = RetrievalTask(
    "task",
    queries={"a": "red apples", "b": "blue whales"},
    corpus=corpus_of(
        {
            "x": "apples that are red grow on trees",
            "y": "whales of the sea are blue",
            "z": "a green field",
        }
    ),
    relevant={"a": {"x": 1}, "b": {"y": 1}},
)


def test_ndcg_and_recall_by_hand():
    ranking = {
        "a": {"x": 0.9, "y": 0.5, "z": 0.1},  # found first
        "b": {"z": 0.9, "x": 0.8, "y": 0.7},  # found third: 1 / log2(4)
    }
    values = score(TASK, ranking, 10)
    assert values["ndcg@10"] == pytest.approx((1 + 1 / math.log2(4)) / 2, abs=1e-6)
    assert values["recall@10"] == 1.0
    assert score(TASK, ranking, 2)["recall@2"] == 0.5


@pytest.mark.parametrize("passage", ["the", "!", "", "a"])
def test_bm25_of_passages_without_a_word_is_zero(passage):
    task = dataclasses.replace(TASK, corpus=corpus_of({"x": passage, "y": "?"}))
    assert rank_by_bm25(task, 3) == {query: {"x": 0.0, "y": 0.0} for query in "ab"}


def test_bm25_ranks_by_shared_words():
    ranking = rank_by_bm25(TASK, 3)
    assert max(ranking["a"], key=ranking["a"].get) == "x"
    assert max(ranking["b"], key=ranking["b"].get) == "y"
    assert score(TASK, ranking, 10)["ndcg@10"] == 1.0
