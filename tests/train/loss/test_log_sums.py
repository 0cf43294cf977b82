import jax.numpy as jnp
import numpy as np
import pytest

from jina_jax.train.loss.log_sums import LOWEST, Compare, log_sums
from jina_jax.train.loss.matches import Ids, known_matches
from jina_jax.train.loss.tiles import tile_shape
from tests.train.loss.contrast_cases import ONE, unit


def test_sums_of_keys_are_not_computed_unless_asked_for():
    rng = np.random.default_rng(8)
    q, k = unit(rng, 8, 4), unit(rng, 16, 4)
    rows, keys = Ids(jnp.arange(8)), Ids(jnp.full(16, -1))
    sums = log_sums(q, k, jnp.float32(20), rows, keys, None, Compare(), ONE)
    np.testing.assert_allclose(sums.key_N, np.float32(LOWEST))
    np.testing.assert_allclose(sums.row_max_B, (20 * q @ k.T).max(1), rtol=1e-6)


def test_known_matches_by_hand():
    # Pairs (5, 0), (2, 7), (5, 8), (3, 0).
    matches, runs = known_matches(jnp.array([5, 2, 5, 3]), jnp.array([0, 7, 8, 0]))
    np.testing.assert_array_equal(matches.text_M, [7, 0, 0, 8])
    np.testing.assert_array_equal(runs, [[2, 2], [0, 1], [2, 2], [1, 1]])
    assert matches.most == 2
    # Where each query is there once, nothing is to be looked for.
    assert known_matches(jnp.array([5, 2]), jnp.array([0, 0]))[0].most == 0


@pytest.mark.parametrize(
    ("rows", "keys", "tile_bytes", "shape"),
    [
        (10, 20, 2**20, (10, 20)),
        (17, 17, 400, (9, 9)),  # edge 10: two parts each
        (3, 1000, 400, (3, 33)),  # 33 fit: 31 parts
        (1000, 3, 400, (33, 3)),
        (16384, 16384, 2**24, (2048, 2048)),
        (1000, 1000, 250_000 * 4, (384, 384)),  # 500 fit: three parts of a multiple of 128
        (5, 5, 1, (1, 1)),
    ],
)
def test_tile_shape(rows, keys, tile_bytes, shape):
    assert tile_shape(rows, keys, tile_bytes) == shape
