import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jina_jax.feed.order import permute


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


@settings(deadline=None)
@given(st.integers(1, 3000), st.lists(st.integers(-(2**70), 2**70), max_size=3))
def test_any_size_and_seeds_give_a_permutation(size, seeds):
    rows = permute(np.arange(size), size, *seeds)
    assert np.array_equal(np.sort(rows), np.arange(size))


@given(st.integers(1, 2**62 - 1), st.data())
def test_rows_of_any_size_lie_within_it_and_differ(size, data):
    positions = data.draw(st.lists(st.integers(0, size - 1), unique=True, max_size=20))
    rows = permute(np.array(positions, np.int64), size, 7)
    assert len(set(rows.tolist())) == len(positions)
    assert all(0 <= row < size for row in rows.tolist())
