"""Scored pairs beside the matrix of all pairs of pairs, on any mesh, and what they need."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jina_jax.config import LossConfig, MeshConfig
from jina_jax.devices.mesh import make_mesh, replicated, split_first_axis
from jina_jax.train.loss.log_sums import LossSharding
from jina_jax.train.loss.scored import ranking_loss, scored_loss
from tests.train.loss.contrast_cases import ONE, mesh, near, unit

BOTH = LossConfig(cosent_weight=0.7, angle_weight=1.3)


def dense(x, y, score, config):
    """In float64, over the matrix of all pairs of pairs."""
    x, y, score = (np.asarray(a, np.float64) for a in (x, y, score))
    half = x.shape[1] // 2
    cosine = (x * y).sum(1)
    u, v = x[:, :half] + 1j * x[:, half:], y[:, :half] + 1j * y[:, half:]
    product = (u * v.conj()).sum(1)
    angle = abs(product.real + product.imag)

    def ranked(s):
        apart = (s[None] - s[:, None]) / config.score_temperature
        return np.log1p(np.exp(apart)[score[:, None] > score[None]].sum())

    return config.cosent_weight * ranked(cosine) + config.angle_weight * ranked(angle)


def batch(size, dimensions=16):
    rng = np.random.default_rng(size)
    x = unit(rng, size, dimensions)
    return x, near(x, rng, 2.0), jnp.asarray(rng.integers(0, 11, size) / 2, jnp.float32)


@pytest.mark.parametrize("which", ["1", "8", "2x4", "2x2x2", "4x1x2"])
def test_equals_all_pairs_of_pairs(which):
    x, y, score = batch(512)
    sharding = LossSharding(mesh(which))

    def loss(x, y):
        return scored_loss(x, y, score, sharding=sharding, config=BOTH).loss

    value, gradients = jax.jit(jax.value_and_grad(loss, (0, 1)))(x, y)
    assert float(value) == pytest.approx(dense(x, y, score, BOTH), rel=1e-6)
    # Along two random directions, in float64.
    rng = np.random.default_rng(1)
    for gradient, place in zip(gradients, (0, 1), strict=True):
        step = rng.standard_normal(x.shape)
        ends = []
        for sign in (1, -1):
            moved = [np.asarray(x, np.float64), np.asarray(y, np.float64)]
            moved[place] = moved[place] + sign * 1e-5 * step
            ends.append(dense(*moved, score, BOTH))
        wanted = (ends[0] - ends[1]) / 2e-5
        assert float((gradient * step).sum()) == pytest.approx(wanted, rel=1e-4)


def test_scores_that_are_all_the_same_have_no_order():
    x, y, score = batch(8)
    found, gradient = jax.value_and_grad(
        lambda x: scored_loss(x, y, jnp.zeros_like(score), sharding=ONE, config=BOTH).loss
    )(x)
    assert found == 0 and not gradient.any()


def test_the_order_of_scores_alone_counts():
    logits = jnp.array([3.0, 1.0, 2.0])
    # Pair 1 has the lowest score: 1 - 3 and 1 - 2; pair 2 is below pair 0: 2 - 3.
    wanted = np.log1p(np.exp(-2) + np.exp(-1) + np.exp(-1))
    for score in ([5.0, 0.0, 1.0], [0.3, -1e6, 0.2]):
        assert ranking_loss(logits, jnp.array(score)) == pytest.approx(wanted, rel=1e-6)


def test_logits_far_apart_stay_finite():
    logits = jnp.array([-1000.0, 1000.0, 0.0])
    value, gradient = jax.value_and_grad(ranking_loss)(logits, jnp.array([2.0, 0.0, 1.0]))
    assert value == pytest.approx(2000.0) and np.isfinite(gradient).all()
    assert ranking_loss(-logits, jnp.array([2.0, 0.0, 1.0])) == 0


def test_memory_goes_with_the_batch():
    mesh = make_mesh(MeshConfig(data=1))
    rows = split_first_axis(mesh)
    shape = jax.ShapeDtypeStruct((8192, 384), jnp.float32, sharding=rows)
    score = jax.ShapeDtypeStruct((8192,), jnp.float32, sharding=replicated(mesh))

    def loss(x, y, score):
        return scored_loss(x, y, score, sharding=LossSharding(mesh), config=BOTH).loss

    compiled = jax.jit(jax.value_and_grad(loss, (0, 1))).lower(shape, shape, score).compile()
    # Two arrays of 8,192 x 384 are 24 MiB; a matrix of 8,192 x 8,192 would be 256 MiB.
    assert compiled.memory_analysis().temp_size_in_bytes < 100 * 2**20
    assert "8192,8192" not in compiled.as_text()
