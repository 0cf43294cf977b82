import numpy as np
import pytest

from jina_jax.feed.shuffle import permute


@pytest.mark.parametrize("size", [1, 2, 3, 5, 16, 17, 1000, 4097])
def test_is_a_permutation(size):
    rows = permute(np.arange(size), size, 7)
    assert sorted(rows.tolist()) == list(range(size))


def test_seeds_choose_it_and_repeat_it():
    index = np.arange(1000)
    first = permute(index, 1000, 1, 2)
    assert np.array_equal(first, permute(index, 1000, 1, 2))
    for other in [(2, 1), (1, 3), (1,), (-1, 2)]:
        # Two unrelated permutations of 1000 agree in one place on average.
        assert np.sum(first == permute(index, 1000, *other)) < 10


def test_any_part_can_be_asked_for_alone():
    whole = permute(np.arange(777), 777, 5)
    assert np.array_equal(permute(np.array([3, 700, 3]), 777, 5), whole[[3, 700, 3]])


def test_mixes_neighbours_and_halves():
    rows = permute(np.arange(100_000), 100_000, 0)
    assert abs(np.corrcoef(np.arange(100_000), rows)[0, 1]) < 0.02
    assert abs(np.corrcoef(rows[:-1], rows[1:])[0, 1]) < 0.02
    assert abs(np.mean(rows[:50_000] < 50_000) - 0.5) < 0.01
