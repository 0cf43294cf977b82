"""Entries that do not count: known matches, and negatives that are not there."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jina_jax.train.loss.log_sums import Compare, LossSharding, log_sums
from jina_jax.train.loss.matches import Ids, known_matches
from tests.train.loss.contrast_cases import (
    ONE,
    assert_equals_oracle,
    compute,
    measure,
    mesh,
    triplets,
    unit,
)


def test_what_stands_for_a_missing_negative_has_no_influence():
    arrays, options = triplets(np.random.default_rng(6), 16, 2)
    other = unit(np.random.default_rng(7), 16, 2, 64)
    has = options["has_negative_BN"]
    moved = *arrays[:2], jnp.where(has[..., None], arrays[2], other)
    one, gradients = measure(arrays, 0.05, ONE, **options)
    two, _ = measure(moved, 0.05, ONE, **options)
    assert one == two
    assert not np.any(gradients[2][~has])
    assert np.any(gradients[2][has], axis=-1).mean() > 0.9


def test_masks_change_the_loss_by_what_they_leave_out():
    rng = np.random.default_rng(1)
    q, p = unit(rng, 6, 4), unit(rng, 6, 4)
    # Pairs 0 and 3 share a positive, 1 and 2 a query, and query 5 is the text of positive 4.
    identity = jnp.array([[0, 6], [1, 7], [1, 8], [3, 6], [4, 9], [9, 11]], jnp.int32)
    assert_equals_oracle((q, p), 0.05, ONE, identity_BT=identity)
    matches, runs = known_matches(identity[:, 0], identity[:, 1])
    ids = Ids(jnp.arange(6), identity, identity[:, 1], runs)

    @jax.jit
    def rows(keys):
        without_runs = ids._replace(run_N2=None)
        return log_sums(q, keys, jnp.float32(20), ids, without_runs, matches, Compare(), ONE).row_B

    for i, j, shared in ((0, 3, True), (2, 1, True), (5, 4, True), (0, 1, False), (4, 3, False)):
        assert (rows(p)[i] == rows(p.at[j].set(-p[j]))[i]) == shared, (i, j)


@pytest.mark.parametrize(("which", "gather"), [("1", "all_gather"), ("8", "ring")])
def test_a_known_match_of_a_query_counts_nowhere_against_it(which, gather):
    # Queries 0 to 2 are one text with three positives; positive 1 is also pair 4's, and stands as
    # the hard negative of pairs 0 and 5. The other pairs have texts of their own.
    rng = np.random.default_rng(3)
    arrays = [unit(rng, 8, 16), unit(rng, 8, 16), unit(rng, 8, 1, 16)]
    identity = np.arange(24, dtype=np.int32).reshape(8, 3)
    identity[:3, 0], identity[4, 1] = 0, identity[1, 1]
    identity[[0, 5], 2] = identity[1, 1]
    sharding = LossSharding(mesh(which), gather, 64)
    options = {"identity_BT": jnp.asarray(identity)}

    assert_equals_oracle(arrays, 0.05, sharding, **options)
    q, p, n = arrays

    def losses(p, n):
        # Other queries are at right angles to everything.
        found = measure((q.at[3:].set(0), p, n), 0.05, sharding, **options)[0]
        return float(found.query_loss), float(found.margin_loss)

    start = losses(p, n)
    assert losses(p, n.at[jnp.array([0, 5])].multiply(-1)) == start
    assert losses(p.at[4].multiply(-1), n) == start
    assert losses(p, n.at[6].multiply(-1)) != start != losses(p.at[6].multiply(-1), n)


def test_masked_negatives_get_no_gradient():
    rng = np.random.default_rng(2)
    q, p = unit(rng, 2, 4), unit(rng, 2, 4)
    identity = jnp.array([[0, 1], [0, 1]], jnp.int32)
    gradients = measure((q, p), 0.05, ONE, identity_BT=identity)[1]
    assert max(np.abs(x).max() for x in gradients) < 1e-5


@pytest.mark.parametrize("which", ["1", "8"])
@pytest.mark.parametrize("identity", [None, np.arange(32).reshape(8, 4)])
def test_triplets_without_any_negative_are_pairs(which, identity):
    rng = np.random.default_rng(7)
    q, p, n = unit(rng, 8, 4), unit(rng, 8, 4), unit(rng, 8, 2, 4)
    sharding = LossSharding(mesh(which), tile_bytes=40)
    numbers = None if identity is None else jnp.asarray(identity, jnp.int32)
    of_pairs = None if numbers is None else numbers[:, :2]
    without = measure((q, p), 0.05, sharding, identity_BT=of_pairs)
    masked = measure(
        (q, p, n), 0.05, sharding, identity_BT=numbers, has_negative_BN=jnp.zeros((8, 2), bool)
    )
    assert masked[0].loss == pytest.approx(float(without[0].loss), abs=1e-6)
    assert (masked[0].margin_loss, masked[0].negative_cosine, masked[0].masked_share) == (0, 0, 0)
    for found, expected in zip(masked[1][:2], without[1][:2]):
        np.testing.assert_allclose(found, expected, atol=2e-6)
    assert not np.any(masked[1][2])


def test_masked_share_by_hand():
    # Pairs 0 and 1 share a positive; the hard negative of pair 2 is the query of pair 0, and that
    # of pair 1 is not there. Of 3 · 2 positives and 3 · 2 negatives, 3 are masked.
    rng = np.random.default_rng(0)
    identity = jnp.array([[0, 1, 2], [3, 1, 4], [5, 6, 0]], jnp.int32)
    found = compute(
        unit(rng, 3, 4), unit(rng, 3, 4), unit(rng, 3, 1, 4), temperature=0.05,
        identity_BT=identity, has_negative_BN=jnp.array([[True], [False], [True]]),
    )  # fmt: skip
    assert found.masked_share == pytest.approx(3 / 12, abs=1e-7)


def test_in_batch_cosine_leaves_out_known_matches():
    # Pairs 0 and 1 share a text: of the cosines with others, those of queries 0 and 1 with each
    # other's positives do not count.
    q = jnp.array([[1, 0, 0], [0, 1, 0], [0, 1, 0]], jnp.float32)
    p = jnp.array([[0.8, 0.6, 0], [0.6, 0.8, 0], [0, 0, 1]], jnp.float32)
    identity = jnp.array([[0, 1], [2, 1], [3, 4]], jnp.int32)

    def cosine(q, identity_BT):
        return compute(q, p, temperature=0.05, identity_BT=identity_BT).in_batch_cosine

    assert cosine(q, None) == pytest.approx((0.6 + 0 + 0.6 + 0 + 0.6 + 0.8) / 6, abs=1e-6)
    assert cosine(q, identity) == pytest.approx((0 + 0 + 0.6 + 0.8) / 4, abs=1e-6)
    assert cosine(q, jnp.zeros((3, 2), jnp.int32)) == pytest.approx(0, abs=1e-6)
    assert not jax.grad(cosine)(q, None).any()
