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
    assert values["mrr@10"] == values["map@10"] == pytest.approx((1 + 1 / 3) / 2, abs=1e-6)
    assert score(TASK, ranking, 2)["recall@2"] == 0.5
    assert score(TASK, ranking, 2)["mrr@2"] == 0.5


def test_several_relevant_passages_of_two_degrees_by_hand():
    task = dataclasses.replace(TASK, relevant={"a": {"x": 2, "y": 1, "z": 0}})
    values = score(task, {"a": {"z": 0.9, "x": 0.8, "y": 0.7}}, 3)
    gain = (2 / math.log2(3) + 1 / math.log2(4)) / (2 + 1 / math.log2(3))
    assert values == pytest.approx(
        {"ndcg@3": gain, "recall@3": 1, "map@3": (1 / 2 + 2 / 3) / 2, "mrr@3": 1 / 2}, abs=1e-6
    )
    # Cut after two, the average precision is still of both relevant passages.
    assert score(task, {"a": {"z": 0.9, "x": 0.8, "y": 0.7}}, 2)["map@2"] == 1 / 2 / 2


def test_of_equal_scores_the_later_id_comes_first():
    values = score(TASK, {"a": {"x": 0.5, "y": 0.5, "z": 0.5}, "b": {"y": 0.5, "x": 0.5}}, 3)
    assert values["mrr@3"] == pytest.approx((1 / 3 + 1) / 2, abs=1e-6)
    assert score(TASK, {"a": {"x": 0.5, "y": 0.5}, "b": {"y": 0.5, "x": 0.5}}, 1) == {
        "ndcg@1": 0.5, "recall@1": 0.5, "map@1": 0.5, "mrr@1": 0.5
    }  # fmt: skip


@pytest.mark.parametrize("passage", ["the", "!", "", "a"])
def test_bm25_of_passages_without_a_word_is_zero(passage):
    task = dataclasses.replace(TASK, corpus=corpus_of({"x": passage, "y": "?"}))
    assert rank_by_bm25(task, 3) == {query: {"x": 0.0, "y": 0.0} for query in "ab"}


def test_bm25_ranks_by_shared_words():
    ranking = rank_by_bm25(TASK, 3)
    assert max(ranking["a"], key=ranking["a"].get) == "x"
    assert max(ranking["b"], key=ranking["b"].get) == "y"
    assert score(TASK, ranking, 10)["ndcg@10"] == 1.0
