import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jina_jax.model.attention import (
    WeightDropout,
    attend,
    attend_by_row,
    attend_cudnn,
    segment_mask,
)
from jina_jax.model.dropout import DropoutKey, is_kept, weight_seeds

ROWS, LENGTH, HEADS, WIDTH = 5, 24, 3, 16
SEGMENTS = jnp.asarray(np.sort(np.random.default_rng(0).integers(0, 4, (ROWS, LENGTH)), axis=1))


def inputs(dtype=jnp.float32):
    keys = jax.random.split(jax.random.key(0), 5)
    shape = (ROWS, LENGTH, HEADS, WIDTH)
    q, k, v, target = (jax.random.normal(key, shape) for key in keys[:4])
    bias = jax.random.normal(keys[4], (HEADS, LENGTH, LENGTH))
    return [x.astype(dtype) for x in (q * WIDTH**-0.5, k, v)], bias, target


def value_and_gradients(how, dtype=jnp.float32):
    (q, k, v), bias, target = inputs(dtype)
    mask = segment_mask(SEGMENTS)

    def loss(q, k, v, bias):
        mixed = how(q, k, v, mask, bias)
        return jnp.sum(mixed.astype(jnp.float32) * target), mixed

    gradients, mixed = jax.jit(jax.grad(loss, (0, 1, 2, 3), has_aux=True))(q, k, v, bias)
    return [np.asarray(x, np.float32) for x in (mixed, *gradients)]


def by_definition(q, k, v, mask, bias):
    """Text by text, in float64."""
    q, k, v, bias = (np.asarray(x, np.float64) for x in (q, k, v, bias))
    out = np.zeros_like(v)
    for r, row in enumerate(np.asarray(SEGMENTS)):
        for segment in set(row.tolist()):
            own = np.flatnonzero(row == segment)
            for h in range(HEADS):
                scores = q[r, own, h] @ k[r, own, h].T + bias[h][np.ix_(own, own)]
                weights = np.exp(scores - scores.max(axis=1, keepdims=True))
                out[r, own, h] = weights / weights.sum(axis=1, keepdims=True) @ v[r, own, h]
    return out


def test_each_text_attends_to_itself_alone():
    (q, k, v), bias, _ = inputs()
    expected = by_definition(q, k, v, None, bias)
    for how in (attend, attend_by_row):
        np.testing.assert_allclose(
            how(q, k, v, segment_mask(SEGMENTS), bias), expected, rtol=1e-5, atol=2e-6
        )


def test_the_arguments_for_cudnn_mean_the_same():
    def plain(q, k, v, mask, bias):
        # The kernel gets the bias rounded.
        return attend(q, k, v, mask, bias.astype(jnp.bfloat16).astype(jnp.float32))

    def fused(*args):
        return attend_cudnn(*args, implementation="xla")

    exact = value_and_gradients(plain)
    # In float32 nothing is rounded but the order of sums.
    (q, k, v), bias, _ = inputs()
    rounded = bias.astype(jnp.bfloat16).astype(jnp.float32)
    mixed = fused(q, k, v, segment_mask(SEGMENTS), rounded)
    np.testing.assert_allclose(mixed, exact[0], rtol=1e-5, atol=2e-6)
    for one, other in zip(
        value_and_gradients(fused, jnp.bfloat16), value_and_gradients(plain, jnp.bfloat16),
        strict=True,
    ):  # fmt: skip
        assert np.linalg.norm(one - other) < 0.02 * np.linalg.norm(other)


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-6), ("bfloat16", 2e-2)])
def test_large_scores_row_by_row(dtype, tolerance):
    keys = jax.random.split(jax.random.key(0), 3)
    q, k, v = (jax.random.normal(key, (3, 10, 2, 8)).astype(dtype) for key in keys)
    mask = segment_mask(jnp.array([[1] * 10, [1] * 3 + [2] * 7, [1] * 6 + [0] * 4]))
    # Queries this large make some weights vanish: the maximum must be taken off first.
    got, expected = (f(100 * q, k, v, mask) for f in (attend_by_row, attend))
    assert got.dtype == expected.dtype == dtype and got.shape == (3, 10, 2, 8)
    np.testing.assert_allclose(
        np.asarray(got, np.float32), np.asarray(expected, np.float32), rtol=0, atol=tolerance
    )


def key_of():
    # Rows of a batch that are not its first.
    return DropoutKey(jax.random.key(7), 3 + jnp.arange(ROWS))


def test_weights_are_dropped_by_chance_at_the_rate_and_each_by_itself():
    rate, seed_R = 0.1, weight_seeds(key_of())
    assert len(set(seed_R.tolist())) == ROWS
    head, query, key = jnp.meshgrid(*map(jnp.arange, (8, 128, 128)), indexing="ij")
    kept = np.stack([is_kept(seed, head, query, key, rate) for seed in seed_R]).astype(float)
    deviation = (rate * (1 - rate) / kept.size) ** 0.5
    assert abs(kept.mean() - (1 - rate)) < 4 * deviation
    # Of neighbours in each direction, of heads and of rows, one says nothing of the other.
    for axis in range(4):
        one, other = np.split(kept[:, :, :, :128], 2, axis) if axis else (kept[:2], kept[2:4])
        assert abs(np.corrcoef(one.ravel(), other.ravel())[0, 1]) < 4 / one.size**0.5
        near = np.take(kept, range(kept.shape[axis] - 1), axis).ravel()
        next_to = np.take(kept, range(1, kept.shape[axis]), axis).ravel()
        assert abs(np.corrcoef(near, next_to)[0, 1]) < 4 / near.size**0.5


@pytest.mark.parametrize("rate", [0.0, 0.3])
def test_row_by_row_has_the_same_gradients_and_drops_the_same_weights(rate):
    drop = WeightDropout.of(key_of(), rate)
    by_row, at_once = (
        value_and_gradients(functools.partial(how, drop=drop)) for how in (attend_by_row, attend)
    )
    for one, other in zip(by_row, at_once, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=5e-6)


def test_row_by_row_keeps_no_scores():
    (q, k, v), _, target = inputs()
    rows = [jnp.tile(x, (20, 1, 1, 1)) for x in (q, k, v, target)]
    mask = jnp.tile(segment_mask(SEGMENTS), (20, 1, 1))

    def loss(how, q, k, v, target):
        return jnp.sum(how(q, k, v, mask) * target)

    scores = 4 * mask.size * HEADS
    needed = {}
    for how in (attend, attend_by_row):
        compiled = jax.jit(jax.grad(functools.partial(loss, how), (0, 1, 2))).lower(*rows).compile()
        needed[how] = compiled.memory_analysis().temp_size_in_bytes
    assert needed[attend_by_row] < scores / 2 < scores < needed[attend]


@pytest.mark.gpu
def test_cudnn_is_the_same():
    for one, other in zip(
        value_and_gradients(attend_cudnn, jnp.bfloat16), value_and_gradients(attend, jnp.bfloat16),
        strict=True,
    ):  # fmt: skip
        assert np.linalg.norm(one - other) < 0.02 * np.linalg.norm(other)
