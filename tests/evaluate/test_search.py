import numpy as np
import pytest

from jina_jax.evaluate.search import top_k


def test_by_hand_and_earlier_of_equals_first():
    corpus = np.array([[1, 0], [0, 1], [1, 0], [0.6, 0.8]], np.float32)
    score, index = top_k(np.array([[1, 0]], np.float32), corpus, 3)
    assert index.tolist() == [[0, 2, 3]]
    assert score[0] == pytest.approx([1, 1, 0.6], abs=1e-6)


@pytest.mark.parametrize("block", [7, 64, 1000])
def test_equals_a_sort_whatever_the_block(block):
    rng = np.random.default_rng(0)
    # Whole numbers, so that products are exact and equal scores are common.
    q, corpus = (rng.integers(-3, 4, (n, 8)).astype(np.float32) for n in (11, 301))
    score, index = top_k(q, corpus, 20, block=block)
    exact = q @ corpus.T
    expected = np.argsort(-exact, axis=1, kind="stable")[:, :20]
    assert np.array_equal(index, expected)
    assert np.array_equal(score, np.take_along_axis(exact, expected, axis=1))


def test_fewer_passages_than_k():
    score, index = top_k(np.ones((2, 4), np.float32), np.ones((3, 4), np.float32), 10)
    assert index.tolist() == [[0, 1, 2]] * 2
    assert score.shape == (2, 3)
