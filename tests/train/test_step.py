import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jina_jax.config import FeedConfig, MeshConfig, OptimConfig, RunConfig, T5Config, TrainConfig
from jina_jax.devices.mesh import check_divides, make_mesh, replicated
from jina_jax.errors import UserError
from jina_jax.feed.batch import pack_batch
from jina_jax.model.encoder import init_params
from jina_jax.shards.array_record import TokenisedRecords
from jina_jax.train.step import batch_loss, init_state, make_train_step
from tests.marks import some_slow

CONFIG = RunConfig(
    name="tiny",
    feed=FeedConfig(
        global_batch_size=24, query_tokens=8, positive_tokens=16, row_tokens=16, texts_per_row=4
    ),
    model=T5Config(
        vocab_size=50, d_model=16, d_kv=4, d_ff=32, num_layers=2, num_heads=4, dropout_rate=0.1
    ),
    optim=OptimConfig(learning_rate=1e-2, schedule="constant", warmup_steps=2),
    train=TrainConfig(num_steps=10),
)
# Where layers are not the subject.
SMALL = dataclasses.replace(CONFIG, model=dataclasses.replace(CONFIG.model, num_layers=1))


def make_batch(seed=0, config=CONFIG, negatives=0):
    """A batch of pairs, or of triplets of which about a third lack some of their negatives."""
    rng = np.random.default_rng(seed)
    size, texts = config.feed.global_batch_size, 2 + negatives
    lengths = rng.integers(2, 14, (size, texts))
    lengths[:, 2:] *= rng.random((size, negatives)) < 0.7
    ids = rng.integers(2, 50, lengths.sum()).astype(np.uint16)
    ends = np.cumsum(lengths)
    ids[ends - 1] = 1
    hashes = rng.integers(0, size, (size, texts, 2)).astype(np.uint64)  # some texts are the same
    hashes[:, :, 1] //= 8
    starts = (ends - lengths.reshape(-1)).reshape(size, texts)
    records = TokenisedRecords(ids, starts, lengths, hashes)
    return pack_batch(records, config.feed)


def params_on(mesh):
    return jax.device_put(init_params(CONFIG.model, jax.random.key(0)), replicated(mesh))


@pytest.mark.parametrize("devices", some_slow([8], [2, 4, 8]))
def test_loss_and_gradients_do_not_depend_on_the_devices(devices):
    batch, key = make_batch(), jax.random.key(3)
    results = []
    for count in (1, devices):
        mesh = make_mesh(MeshConfig(data=count))
        value_and_grad = jax.jit(
            jax.value_and_grad(lambda p, b, m=mesh: batch_loss(p, b, CONFIG, m, key)[0])
        )
        results.append(value_and_grad(params_on(mesh), batch))
    (loss_1, grads_1), (loss_n, grads_n) = results
    assert float(loss_n) == pytest.approx(float(loss_1), rel=1e-6)
    for one, many in zip(jax.tree.leaves(grads_1), jax.tree.leaves(grads_n)):
        np.testing.assert_allclose(many, one, atol=2e-6)


def test_packing_does_not_change_the_loss():
    padded = FeedConfig(
        global_batch_size=24, query_tokens=8, positive_tokens=16, row_tokens=16, texts_per_row=1
    )
    mesh, losses = make_mesh(MeshConfig(data=1)), []
    for feed in (CONFIG.feed, padded):
        config = RunConfig(name="tiny", feed=feed, model=CONFIG.model)
        batch = make_batch(config=config)
        compute = jax.jit(lambda p, b, config=config: batch_loss(p, b, config, mesh, None))
        loss, metrics = compute(params_on(mesh), batch)
        losses.append((float(loss), float(metrics["accuracy"]), len(batch.ids_RL)))
    assert losses[0][:2] == pytest.approx(losses[1][:2], abs=1e-5)
    assert losses[0][2] < losses[1][2] == 48


def test_steps_learn_a_batch_and_repeat_exactly():
    batch, curves = make_batch(), []
    for _ in range(2):
        mesh = make_mesh(MeshConfig(data=2))
        state = jax.device_put(
            init_state(SMALL, init_params(SMALL.model, jax.random.key(0))), replicated(mesh)
        )
        step, curve = make_train_step(SMALL, mesh), []
        for _ in range(10):
            state, metrics = step(state, batch)
            curve.append(float(metrics["loss"]))
        curves.append(curve)
        assert int(state.step) == 10
    assert curves[0] == curves[1]
    assert curves[0][-1] < curves[0][0] - 0.1


def test_the_learning_rate_goes_by_the_step_after_skipped_ones_too():
    optim = OptimConfig("lion", learning_rate=0.1, schedule="linear", warmup_steps=0)
    config = dataclasses.replace(SMALL, optim=dataclasses.replace(optim, weight_decay=0.0))
    mesh, batch = make_mesh(MeshConfig(data=1)), make_batch()
    step, applied, reported = make_train_step(config, mesh), [], []
    state = init_state(config, init_params(config.model, jax.random.key(0)))
    for number in range(8):
        before = jax.tree.map(jnp.copy, state)
        if number in (1, 2, 3):
            state = state._replace(params=jax.tree.map(lambda x: x * jnp.nan, state.params))
        state, metrics = step(jax.device_put(state, replicated(mesh)), batch)
        if metrics["skipped"]:
            state = state._replace(params=before.params)
            continue
        # Lion's updates are the signs, times the rate.
        moved = jax.tree.map(lambda a, b: jnp.abs(a - b).max(), state.params, before.params)
        applied.append(max(map(float, jax.tree.leaves(moved))))
        reported.append(float(metrics["learning_rate"]))
    assert reported == pytest.approx([0.1, 0.06, 0.05, 0.04, 0.03])
    assert applied == pytest.approx(reported, rel=1e-4)


def test_batches_that_do_not_divide_are_refused_with_the_sizes_that_do():
    config = RunConfig("tiny", feed=FeedConfig(global_batch_size=100))
    with pytest.raises(UserError, match="size=100 does not divide by 8 devices; use 96 or 104"):
        check_divides(config, make_mesh(MeshConfig(data=8)))
    with pytest.raises(UserError, match="needs 9 devices, and there are 8"):
        make_mesh(MeshConfig(data=9))
