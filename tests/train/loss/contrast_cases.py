"""Random batches for the contrastive losses, and the comparison with the whole matrix."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jina_jax.train.loss.contrastive import PAPER, contrastive_loss
from jina_jax.train.loss.log_sums import LossSharding
from tests.train.loss.contrast_oracle import contrast

MESHES = {
    "1": ((1,), ("data",)),
    "8": ((8,), ("data",)),
    "2x4": ((2, 4), ("data", "fsdp")),
    "4x1x2": ((4, 1, 2), ("data", "fsdp", "tensor")),
    "2x2x2": ((2, 2, 2), ("data", "fsdp", "tensor")),
}


def mesh(name="1"):
    shape, axes = MESHES[name]
    devices = jax.devices()[: int(np.prod(shape))]
    return jax.make_mesh(
        shape, axes, devices=devices, axis_types=(jax.sharding.AxisType.Auto,) * len(axes)
    )


ONE = LossSharding(mesh())
NAMES = {"identity_BT": "identity", "has_negative_BN": "has_negative", "teacher_BS": "teacher"}


def unit(rng, *shape):
    x = rng.standard_normal(shape)
    return jnp.asarray(x / np.linalg.norm(x, axis=-1, keepdims=True), jnp.float32)


def near(q, rng, noise):
    """Positives that are nearer to their queries than chance."""
    p = np.asarray(q) + noise * np.asarray(unit(rng, *q.shape))
    return jnp.asarray(p / np.linalg.norm(p, axis=-1, keepdims=True), jnp.float32)


def identities(rng, size, texts):
    """Numbers of texts of which about half occur twice."""
    return jnp.asarray(rng.integers(0, size * texts, (size, texts)), jnp.int32)


def triplets(rng, size, negatives):
    """Embeddings and options that use all: masks and missing negatives."""
    q = unit(rng, size, 64)
    n = jnp.stack([near(q, rng, 3.0) for _ in range(negatives)], axis=1)
    identity = identities(rng, size, 2 + negatives)
    # Some negatives are their own query's positive, and some that of the pair before.
    identity = identity.at[:20, 2].set(identity[:20, 1])
    identity = identity.at[21:30, 2].set(identity[20:29, 1])
    # Others share their query with two pairs before, one of whose positives is their negative.
    identity = identity.at[32:36, 0].set(identity[30:34, 0])
    identity = identity.at[34:36, 2].set(identity[30:32, 1])
    return (q, near(q, rng, 3.0), n), {
        "identity_BT": identity,
        "has_negative_BN": jnp.asarray(rng.random((size, negatives)) < 0.7),
    }


@functools.partial(jax.jit, static_argnames=("sharding", "config"))
def _loss(arrays, temperature, options, sharding, config):
    """One program for all arrays of the same shapes."""
    return contrastive_loss(
        *arrays, temperature=temperature, sharding=sharding, config=config, **options
    )


@functools.partial(jax.jit, static_argnames=("sharding", "config"))
def _loss_and_gradients(arrays, temperature, options, sharding, config):
    def loss(arrays, temperature):
        found = _loss(arrays, temperature, options, sharding, config)
        return found.loss, found

    return jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(arrays, temperature)


def compute(*arrays, temperature=1.0, sharding=ONE, config=PAPER, **options):
    """The loss and its metrics, as one compiled program."""
    return _loss(arrays, jnp.float32(temperature), options, sharding, config)


def measure(arrays, temperature, sharding, *, config=PAPER, **options):
    """The loss and its metrics, and the gradients of the arrays and of the temperature."""
    (_, found), (of_arrays, of_temperature) = _loss_and_gradients(
        tuple(arrays), jnp.float32(temperature), options, sharding, config
    )
    return found, (*of_arrays, of_temperature)


def assert_equals_oracle(arrays, temperature, sharding, *, config=PAPER, tolerance=1e-6, **options):
    found, gradients = measure(arrays, temperature, sharding, config=config, **options)
    expected = contrast(
        *arrays, temperature=temperature, config=config,
        **{NAMES[k]: np.asarray(v) for k, v in options.items()},
    )  # fmt: skip
    for name, value in found._asdict().items():
        # Of a loss far below its logits of up to 1 / temperature, 1e-6 nats.
        if value is not None:
            wanted = pytest.approx(getattr(expected, name), rel=tolerance, abs=tolerance)
            assert float(value) == wanted, name
    wanted = [x for x in expected.gradients if np.size(x)]
    assert len(gradients) == len(wanted)
    for found, exact in zip(gradients[:-1], wanted[:-1]):
        assert np.linalg.norm(found - exact) <= tolerance * np.linalg.norm(exact)
    # The gradient of the temperature is a small difference of large sums.
    assert gradients[-1] == pytest.approx(wanted[-1], rel=10 * tolerance)
