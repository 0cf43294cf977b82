"""Distillation from a teacher's scores, beside float64 NumPy."""

import itertools

import jax.numpy as jnp
import numpy as np
import pytest

from jina_jax.config import LossConfig
from jina_jax.train.loss.log_sums import LossSharding
from tests.marks import some_slow
from tests.train.loss.contrast_cases import (
    ONE,
    assert_equals_oracle,
    compute,
    measure,
    mesh,
    triplets,
)

ALONE = LossConfig(query_weight=0.0, positive_weight=0.0, margin_weight=0.0, distill_weight=1.0)
Q = jnp.eye(3, dtype=jnp.float32)[:2]
P = jnp.array([[0.6, 0.8, 0], [0, 1, 0]], jnp.float32)


def test_margins_by_hand():
    # Cosines of positives 0.6, 1 and of negatives 0.8, 0: margins -0.2 and 1; the teacher's 0.3, 1.
    n = jnp.array([[[0.8, 0, 0.6]], [[1, 0, 0]]], jnp.float32)
    teacher = jnp.array([[0.5, 0.2], [3.0, 2.0]], jnp.float32)
    found = compute(Q, P, n, config=ALONE, teacher_BS=teacher)
    assert found.distill_loss == pytest.approx(0.5**2 / 2, abs=1e-6) == found.loss


def test_scores_of_pairs_by_hand():
    teacher = jnp.array([[0.9], [0.5]], jnp.float32)
    found = compute(Q, P, config=ALONE, teacher_BS=teacher)
    assert found.distill_loss == pytest.approx((0.3**2 + 0.5**2) / 2, abs=1e-6)


@pytest.mark.parametrize(
    ("gather", "which", "negatives"),
    some_slow(
        [("all_gather", "1", 0), ("all_gather", "8", 1), ("ring", "8", 3)],
        itertools.product(("all_gather", "ring"), ("1", "8"), (0, 1, 3)),
    ),
)
def test_equals_the_oracle(gather, which, negatives):
    rng = np.random.default_rng(negatives)
    arrays, options = triplets(rng, 40, max(negatives, 1))
    if not negatives:
        arrays = arrays[:2]
        del options["has_negative_BN"]
        options["identity_BT"] = options["identity_BT"][:, :2]
    teacher = rng.uniform(-1, 1, (40, 1 + negatives))
    teacher[rng.random(teacher.shape) < 0.2] = np.nan
    options["teacher_BS"] = jnp.asarray(teacher, jnp.float32)
    sharding = LossSharding(mesh(which), gather)
    for config in (
        ALONE,
        LossConfig(
            query_weight=0.5,
            positive_weight=1.0,
            margin_weight=3.0,
            margin=0.2,
            distill_weight=20.0,
        ),
    ):
        assert_equals_oracle(arrays, 0.3, sharding, config=config, **options)


def test_records_without_scores_teach_nothing():
    arrays, options = triplets(np.random.default_rng(8), 16, 2)
    nothing = jnp.full((16, 3), jnp.nan, jnp.float32)
    with_teacher, one = measure(arrays, 0.05, ONE, teacher_BS=nothing, **options,
                                config=LossConfig(distill_weight=5.0))  # fmt: skip
    without, two = measure(arrays, 0.05, ONE, **options)
    assert with_teacher.distill_loss == 0.0 and without.distill_loss is None
    assert with_teacher.loss == without.loss
    for a, b in zip(one, two, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7)
