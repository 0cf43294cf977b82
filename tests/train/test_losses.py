import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jina_jax.train.losses import in_batch_accuracy, info_nce, pair_loss, shares_text


def unit(rng, *shape):
    x = rng.standard_normal(shape)
    return jnp.asarray(x / np.linalg.norm(x, axis=-1, keepdims=True), jnp.float32)


def numpy_pair_loss(q, p, temperature, identity=None):
    """The paper's formula, term by term, in float64."""
    q, p = np.asarray(q, np.float64), np.asarray(p, np.float64)
    total = 0.0
    for a, b in ((q, p), (p, q)):
        for i in range(len(a)):
            denominator = 0.0
            for j in range(len(b)):
                shared = identity is not None and set(identity[i]) & set(identity[j])
                if i == j or not shared:
                    denominator += np.exp(a[i] @ b[j] / temperature)
            total -= np.log(np.exp(a[i] @ b[i] / temperature) / denominator) / len(a)
    return total


def test_two_orthogonal_pairs_by_hand():
    q = jnp.eye(2, dtype=jnp.float32)
    assert info_nce(q, q, temperature=1.0) == pytest.approx(np.log(1 + np.exp(-1)), abs=1e-6)
    assert pair_loss(q, q, temperature=1.0) == pytest.approx(2 * 0.31326169, abs=1e-6)


@pytest.mark.parametrize("temperature", [0.05, 1.0])
def test_equals_numpy(temperature):
    rng = np.random.default_rng(0)
    q, p = unit(rng, 17, 8), unit(rng, 17, 8)
    loss = jax.jit(lambda q, p: pair_loss(q, p, temperature=temperature))(q, p)
    assert loss == pytest.approx(numpy_pair_loss(q, p, temperature), rel=1e-6)


def test_both_directions_count():
    # q→p alone would not see that two queries are one point.
    q = jnp.array([[1.0, 0.0], [1.0, 0.0]], jnp.float32)
    p = jnp.eye(2, dtype=jnp.float32)
    forward, backward = info_nce(q, p, temperature=1.0), info_nce(p, q, temperature=1.0)
    assert backward == pytest.approx(np.log(2), abs=1e-6)
    assert pair_loss(q, p, temperature=1.0) == pytest.approx(float(forward + backward), abs=1e-6)


def test_texts_of_the_same_hash_are_no_negatives():
    rng = np.random.default_rng(1)
    q, p = unit(rng, 6, 4), unit(rng, 6, 4)
    # Pairs 0 and 3 share a positive, 1 and 2 a query, and query 5 is the text of positive 4.
    identity = np.array([[0, 6], [1, 7], [1, 8], [3, 6], [4, 9], [9, 11]], np.int32)
    loss = pair_loss(q, p, temperature=0.05, identity_BT=jnp.asarray(identity))
    assert loss == pytest.approx(numpy_pair_loss(q, p, 0.05, identity), rel=1e-6)
    assert abs(float(loss) - numpy_pair_loss(q, p, 0.05)) > 1e-3
    expected = np.eye(6, dtype=bool)
    for i, j in ((0, 3), (1, 2), (4, 5)):
        expected[i, j] = expected[j, i] = True
    assert np.array_equal(shares_text(jnp.asarray(identity)), expected)


def test_masked_negatives_get_no_gradient():
    rng = np.random.default_rng(2)
    q, p = unit(rng, 2, 4), unit(rng, 2, 4)
    identity = jnp.array([[0, 1], [0, 1]], jnp.int32)
    gradient = jax.grad(lambda q: pair_loss(q, p, temperature=0.05, identity_BT=identity))(q)
    assert np.abs(gradient).max() < 1e-5


def test_hard_negatives_may_follow_the_positives():
    rng = np.random.default_rng(3)
    q, keys = unit(rng, 3, 4), unit(rng, 7, 4)
    logits = np.asarray(q, np.float64) @ np.asarray(keys, np.float64).T / 0.1
    expected = np.mean(np.log(np.exp(logits).sum(1)) - np.diag(logits[:, :3]))
    assert info_nce(q, keys, temperature=0.1) == pytest.approx(expected, rel=1e-6)
    with pytest.raises(ValueError, match="2 keys for 3 queries"):
        info_nce(q, keys[:2], temperature=0.1)


def test_accuracy_by_hand():
    q = jnp.eye(3, dtype=jnp.float32)
    p = q[jnp.array([0, 2, 1])]
    assert in_batch_accuracy(q, p) == pytest.approx(1 / 3, abs=1e-6)
    assert in_batch_accuracy(q, q) == 1.0
