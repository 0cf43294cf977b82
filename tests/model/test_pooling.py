import jax
import jax.numpy as jnp
import numpy as np

from jina_jax.model.pooling import pool, unit


def mean_pool(*arguments):
    return unit(pool(*arguments))


HIDDEN = jnp.array([[[3.0, 0.0], [3.0, 8.0], [0.0, 2.0], [50.0, 50.0]]])
SEGMENTS = jnp.array([[1, 1, 2, 0]])


def test_by_hand():
    # Text 1: mean (3, 4), length 5. Text 2: (0, 2), length 2. Slot 3 is empty.
    expected = [[[0.6, 0.8], [0.0, 1.0], [0.0, 0.0]]]
    np.testing.assert_allclose(mean_pool(HIDDEN, SEGMENTS, 3), expected, rtol=0, atol=1e-6)


def test_gradient_of_empty_slots_is_zero():
    gradient = jax.grad(lambda h: mean_pool(h, jnp.zeros((1, 4), int), 2).sum())(HIDDEN)
    np.testing.assert_array_equal(gradient, jnp.zeros_like(HIDDEN))


def test_gradient_against_finite_differences():
    def f(hidden):
        return (mean_pool(hidden, SEGMENTS, 3) * jnp.arange(6.0).reshape(1, 3, 2)).sum()

    gradient, step = jax.grad(f)(HIDDEN), 1e-2
    for index in np.ndindex(HIDDEN.shape):
        nudge = jnp.zeros_like(HIDDEN).at[index].set(step)
        slope = (f(HIDDEN + nudge) - f(HIDDEN - nudge)) / (2 * step)
        np.testing.assert_allclose(gradient[index], slope, rtol=0, atol=1e-3)


def test_bfloat16_is_summed_in_float32():
    # 1 + 256 * 2**-8: a bfloat16 sum would stay at 1.
    hidden = jnp.full((1, 257, 1), 2.0**-8, jnp.bfloat16).at[0, 0, 0].set(1.0)
    hidden = jnp.concatenate([hidden, jnp.ones_like(hidden)], axis=-1)
    pooled = mean_pool(hidden, jnp.ones((1, 257), int), 1)
    assert pooled.dtype == jnp.float32
    ratio = 2.0 / 257
    expected = np.array([ratio, 1.0]) / np.hypot(ratio, 1.0)
    np.testing.assert_allclose(pooled[0, 0], expected, rtol=0, atol=1e-6)
