"""A temperature that is learned: its gradient, its bounds, and its way through a checkpoint."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jina_jax.checkpoint.checkpoints import Checkpoints
from jina_jax.config import LossConfig, MeshConfig, RunConfig
from jina_jax.config.validation import validate
from jina_jax.devices.mesh import make_mesh, replicated
from jina_jax.errors import UserError
from jina_jax.model.encoder import init_params
from jina_jax.train.step import Learned, batch_loss, init_state, make_train_step
from tests.train.test_step import CONFIG, SMALL, make_batch

LEARNED = dataclasses.replace(
    CONFIG,
    loss=LossConfig(temperature=0.1, learn_temperature=True, max_temperature=0.101),
    model=dataclasses.replace(SMALL.model, dropout_rate=0.0),
    optim=dataclasses.replace(CONFIG.optim, learning_rate=2e-3, weight_decay=0.5),
)


def first_state(config, mesh):
    return jax.device_put(
        init_state(config, init_params(config.model, jax.random.key(0))), replicated(mesh)
    )


def test_adam_moves_it_against_its_gradient_and_stops_at_the_bound():
    batch, mesh = make_batch(negatives=1), make_mesh(MeshConfig(data=8))
    state, arrays = first_state(LEARNED, mesh), jax.tree.map(jnp.asarray, batch)

    @jax.jit
    def loss(t):
        return batch_loss(state.params, arrays, LEARNED, mesh, None, Learned(t))[0]

    low, high = (float(loss(jnp.float32(math.log(0.1) + d))) for d in (-0.01, 0.01))
    assert abs(high - low) > 1e-3
    sign = 1 if high > low else -1
    step, found = make_train_step(LEARNED, mesh), []
    for _ in range(8):
        state, metrics = step(state, batch)
        found.append(float(metrics["temperature"]))
    # Adam's first steps are of the learning rate: half of it, and then it, after the warm-up.
    assert found[0] == pytest.approx(0.1, rel=1e-6)
    assert math.log(found[1]) - math.log(0.1) == pytest.approx(-sign * 1e-3, rel=1e-3)
    # Of an untrained encoder a higher temperature is better.
    assert sign < 0
    assert found[-1] == pytest.approx(0.101, rel=1e-6)


def test_without_learning_there_is_none():
    mesh = make_mesh(MeshConfig(data=1))
    state = first_state(CONFIG, mesh)
    assert state.temperature is None
    assert (
        "temperature" not in jax.eval_shape(make_train_step(CONFIG, mesh), state, make_batch())[1]
    )


def test_a_checkpoint_keeps_it_and_its_moments(tmp_path):
    batch, mesh = make_batch(), make_mesh(MeshConfig(data=2))
    step, state = make_train_step(LEARNED, mesh), first_state(LEARNED, mesh)
    for _ in range(3):
        state, _ = step(state, batch)
    with Checkpoints(tmp_path, keep=1) as checkpoints:
        checkpoints.save(state, {})
    like = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state
    )
    with Checkpoints(tmp_path) as checkpoints:
        restored = checkpoints.restore(3, like)
    assert float(restored.temperature.log_temperature) != float(np.float32(math.log(0.1)))
    for one, two in zip(jax.tree.leaves(state), jax.tree.leaves(restored), strict=True):
        np.testing.assert_array_equal(one, two)


def test_a_start_beyond_the_bounds_is_refused():
    validate(RunConfig("x", loss=LossConfig(temperature=0.001)))
    with pytest.raises(UserError, match=r"loss.temperature=0.001 must lie in .*0.01..1.0"):
        validate(RunConfig("x", loss=LossConfig(temperature=0.001, learn_temperature=True)))
