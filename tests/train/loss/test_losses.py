"""The contrastive loss of batches that are small enough to work out by hand."""

import jax.numpy as jnp
import numpy as np
import pytest

from jina_jax.config import LossConfig
from jina_jax.train.loss.contrastive import _check_sizes, contrastive_loss
from jina_jax.train.loss.log_sums import LossSharding
from tests.train.loss.contrast_cases import ONE, compute, mesh, unit

ONE_WAY = LossConfig(positive_weight=0.0)


def test_two_orthogonal_pairs_by_hand():
    q = jnp.eye(2, dtype=jnp.float32)
    both = compute(q, q)
    assert both.loss == pytest.approx(2 * 0.31326169, abs=1e-6)
    assert both.query_loss == pytest.approx(np.log(1 + np.exp(-1)), abs=1e-6)
    assert (both.positive_cosine, both.in_batch_cosine, both.masked_share) == (1, 0, 0)
    assert both.margin_loss is None and both.negative_cosine is None
    one_way = compute(q, q, config=ONE_WAY)
    assert one_way.loss == both.query_loss
    assert one_way.positive_loss is None


def test_triplets_by_hand():
    # Denominators 2e + 2 of cosines 1, 1, 0, 0; the negatives are no queries, so back it is e + 1.
    q = jnp.eye(2, dtype=jnp.float32)
    found = compute(q, q, q[:, None])
    assert found.query_loss == pytest.approx(np.log(2 + 2 / np.e), abs=1e-6)
    assert found.positive_loss == pytest.approx(np.log(1 + 1 / np.e), abs=1e-6)
    # A negative that is the positive misses the margin by ε.
    assert found.margin_loss == pytest.approx(0.05, abs=1e-7)
    assert found.loss == pytest.approx(np.log(2 + 2 / np.e) + np.log(1 + 1 / np.e) + 0.05, abs=1e-6)
    assert found.negative_cosine == 1.0


def test_margin_by_hand():
    # Cosines of positives 0.6, 1 and of negatives 0.8, 0.94, 0.6, 0: hinges 0.25, 0.39, 0, 0.
    q = jnp.eye(3, dtype=jnp.float32)[:2]
    p = jnp.array([[0.6, 0.8, 0], [0, 1, 0]], jnp.float32)
    n = jnp.array([[[0.8, 0, 0.6], [0.94, 0, 0.34117444]], [[0.8, 0.6, 0], [1, 0, 0]]], jnp.float32)
    found = compute(q, p, n)
    assert found.margin_loss == pytest.approx((0.25 + 0.39) / 4, abs=1e-6)
    assert found.negative_cosine == pytest.approx((0.8 + 0.94 + 0.6) / 4, abs=1e-6)
    only = compute(
        q, p, n, config=LossConfig(0.0, 0.0, margin_weight=2.0, margin=0.3),
        has_negative_BN=jnp.array([[True, False], [True, True]]),
    )  # fmt: skip
    assert only.loss == pytest.approx(2 * 0.5 / 3, abs=1e-6)
    assert only.negative_cosine == pytest.approx(1.4 / 3, abs=1e-6)


def test_both_directions_count():
    # q→p alone would not see that two queries are one point.
    q = jnp.array([[1.0, 0.0], [1.0, 0.0]], jnp.float32)
    p = jnp.eye(2, dtype=jnp.float32)
    forward = compute(q, p, config=ONE_WAY).loss
    backward = compute(p, q, config=ONE_WAY).loss
    assert backward == pytest.approx(np.log(2), abs=1e-6)
    both = compute(q, p).loss
    assert both == pytest.approx(float(forward + backward), abs=1e-6)


def test_accuracy_by_hand():
    def accuracy(*arrays):
        return compute(*arrays, temperature=0.05).accuracy

    q = jnp.eye(3, dtype=jnp.float32)
    assert accuracy(q, q[jnp.array([0, 2, 1])]) == pytest.approx(1 / 3, abs=1e-6)
    assert accuracy(q, q) == 1.0
    # A hard negative at cosine 0.8 beats a positive at 0.6.
    p = jnp.array([[0.6, 0.8, 0], [0, 1, 0], [0, 0, 1]], jnp.float32)
    hard = jnp.array([[0.0, 0.0, 1.0], [0.8, 0.0, 0.6], [0.0, 0.0, 1.0]], jnp.float32)
    assert accuracy(q, p) == 1.0
    assert accuracy(q, p, hard[:, None]) == pytest.approx(2 / 3)


def test_sizes_that_do_not_fit_are_refused():
    rng = np.random.default_rng(9)
    q, identity = unit(rng, 16, 4), jnp.zeros((16, 3), jnp.int32)
    # Behind the annotations, which tests check and users' runs do not.
    with pytest.raises(ValueError, match="8 positives for 16 queries"):
        _check_sizes(q, q[:8], None, None, 1)
    with pytest.raises(ValueError, match="8 rows of hard negatives for 16 queries"):
        _check_sizes(q, q, q[:8, None], None, 1)
    with pytest.raises(ValueError, match="12 pairs do not divide by 8 devices"):
        contrastive_loss(q[:12], q[:12], temperature=0.1, sharding=LossSharding(mesh("8")))
    with pytest.raises(ValueError, match=r"shape \(16, 3\) for 16 records of 2 texts"):
        contrastive_loss(q, q, temperature=0.1, sharding=ONE, identity_BT=identity)
