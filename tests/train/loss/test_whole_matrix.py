"""The loss in tiles over any mesh, and its gradients, beside those of the whole matrix."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jina_jax.config import LossConfig
from jina_jax.train.loss.log_sums import LossSharding
from tests.marks import some_slow
from tests.train.loss.contrast_cases import (
    ONE,
    assert_equals_oracle,
    measure,
    mesh,
    near,
    triplets,
    unit,
)
from tests.train.loss.contrast_oracle import contrast

BOTH_WAYS, ONE_WAY = LossConfig(), LossConfig(positive_weight=0.0)
SIZES = {
    (BOTH_WAYS, 129, 512, 2**22), (BOTH_WAYS, 129, 512, 4000), (BOTH_WAYS, 17, 64, 160),
    (BOTH_WAYS, 1000, 64, 4000), (ONE_WAY, 1000, 64, 2**22), (ONE_WAY, 129, 512, 160),
}  # fmt: skip
"""Each number of pairs and each tile at least once, with and without the reverse."""


# A tile of 4 MiB holds the matrix; one of 4,000 or 160 bytes has 31 or 6 rows, and a remainder.
@pytest.mark.parametrize(
    ("config", "pairs", "dimension", "tile_bytes"),
    some_slow(
        SIZES,
        (
            (config, *size, tile_bytes)
            for config in (BOTH_WAYS, ONE_WAY)
            for size in ((17, 64), (129, 512), (1000, 64))
            for tile_bytes in (2**22, 4000, 160)
        ),
    ),
)
def test_equals_the_whole_matrix(config, pairs, dimension, tile_bytes):
    rng = np.random.default_rng(pairs)
    arrays = unit(rng, pairs, dimension), unit(rng, pairs, dimension)
    assert_equals_oracle(arrays, 0.05, LossSharding(mesh(), tile_bytes=tile_bytes), config=config)


SHORT = {
    ("all_gather", "8", 2**22), ("all_gather", "2x2x2", 200), ("ring", "2x4", 2**22),
}  # fmt: skip
"""Each way of gathering with each size of a tile; the others take minutes to compile."""


@pytest.mark.parametrize(
    ("gather", "which", "tile_bytes"),
    some_slow(
        SHORT,
        itertools.product(("all_gather", "ring"), ("1", "8", "2x4", "2x2x2"), (2**22, 200)),
    ),
)
def test_triplets_equal_the_whole_matrix(gather, which, tile_bytes):
    arrays, options = triplets(np.random.default_rng(3), 104, 2)
    sharding = LossSharding(mesh(which), gather, tile_bytes)
    assert_equals_oracle(arrays, 0.05, sharding, **options)


def test_other_weights_of_triplets_equal_the_whole_matrix():
    arrays, options = triplets(np.random.default_rng(3), 40, 2)
    assert_equals_oracle(
        arrays,
        0.05,
        ONE,
        config=LossConfig(query_weight=0.5, positive_weight=0.0, margin_weight=3.0, margin=0.2),
        **options,
    )


@pytest.mark.parametrize(
    "left_out", [("identity_BT",), ("has_negative_BN",), ("identity_BT", "has_negative_BN")]
)
def test_triplets_without_options_equal_the_whole_matrix(left_out):
    arrays, options = triplets(np.random.default_rng(4), 40, 3)
    for name in left_out:
        del options[name]
    sharding = LossSharding(mesh("8"), "ring", 400)
    assert_equals_oracle(arrays, 0.05, sharding, config=LossConfig(margin_weight=5.0), **options)


@pytest.mark.parametrize(
    "config",
    [
        LossConfig(query_weight=1.0, positive_weight=0.0, margin_weight=0.0),
        LossConfig(query_weight=0.0, positive_weight=1.0, margin_weight=0.0),
        LossConfig(query_weight=0.0, positive_weight=0.0, margin_weight=1.0),
    ],
)
def test_each_term_alone_equals_the_whole_matrix(config):
    arrays, options = triplets(np.random.default_rng(5), 40, 1)
    expected = contrast(
        *arrays, temperature=0.05, config=config, identity=np.asarray(options["identity_BT"])
    )
    found, gradients = measure(arrays, 0.05, ONE, config=config, identity_BT=options["identity_BT"])
    assert float(found.loss) == pytest.approx(expected.loss, rel=1e-6, abs=1e-6)
    for one, exact in zip(gradients[:3], expected.gradients):
        assert np.linalg.norm(one - exact) <= 1e-6 * np.linalg.norm(exact)


@pytest.mark.parametrize("temperature", [1.0, 0.01, 0.001])
def test_any_temperature_and_any_cosine(temperature):
    # Logits of -1000 to 1000: an exponential without a maximum would be 0 or infinite.
    rng = np.random.default_rng(5)
    q = unit(rng, 40, 64)
    p = jnp.concatenate([near(q[:20], rng, 0.1), near(-q[20:], rng, 0.1)])
    assert_equals_oracle((q, p), temperature, LossSharding(mesh(), tile_bytes=400), tolerance=5e-6)


@pytest.mark.parametrize("temperature", [0.05, 0.02, 0.01])
@pytest.mark.parametrize("noise", [2.0, 1.0, 0.3])
def test_a_low_loss_keeps_its_digits(temperature, noise):
    """Down to where the positives take all but 1e-38 of the sums, beside the matrix in float32."""
    rng = np.random.default_rng(0)
    q = unit(rng, 256, 256)
    p = near(q, rng, noise)
    expected = contrast(
        q, p, temperature=np.float32(temperature), config=LossConfig(margin_weight=0.0)
    )
    found, gradients = measure((q, p), temperature, ONE, config=LossConfig(margin_weight=0.0))

    def dense(q, p):
        logits = jnp.matmul(q, p.T, precision="highest") / temperature
        shares = jax.nn.log_softmax(logits, 1) + jax.nn.log_softmax(logits, 0)
        return -jnp.diagonal(shares).mean()

    loss, dense_gradients = jax.jit(jax.value_and_grad(dense, (0, 1)))(q, p)
    floor = 2e-5 * expected.loss  # Of rounded cosines, divided by the temperature.
    assert found.loss >= 0
    assert abs(float(found.loss) - expected.loss) <= max(2 * abs(loss - expected.loss), floor)
    for got, matrix, exact in zip(gradients, dense_gradients, expected.gradients):
        size, error = np.linalg.norm(exact), np.linalg.norm(got - exact)
        assert error <= max(2 * np.linalg.norm(matrix - exact), 2e-5 * size)
    # A temperature that is learned falls while positives are nearest.
    assert float(gradients[-1]) == pytest.approx(expected.gradients[-1], rel=1e-4)


def test_vectors_need_not_be_exactly_of_unit_length():
    rng = np.random.default_rng(6)
    q = unit(rng, 40, 64)
    p = unit(rng, 40, 64) * jnp.asarray(rng.uniform(0.99, 1.01, (40, 1)), jnp.float32)
    assert_equals_oracle((q, p), 0.05, ONE)
