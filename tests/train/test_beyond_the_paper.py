"""The step with scored pairs, a teacher's embeddings and quantised ones."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jina_jax.checkpoint.checkpoints import Checkpoints
from jina_jax.config import DataConfig, GuideConfig, LossConfig, MeshConfig
from jina_jax.devices.mesh import make_mesh, put
from jina_jax.model.encoder import init_params
from jina_jax.train.loss.contrastive import contrastive_loss
from jina_jax.train.loss.log_sums import LossSharding
from jina_jax.train.loss.quantised import straight_through
from jina_jax.train.loss.scored import scored_loss
from jina_jax.train.step import (
    batch_loss,
    embed_texts,
    init_state,
    make_train_step,
    state_shapes,
    state_shardings,
)
from tests.identities import numbers
from tests.train.test_step import CONFIG, make_batch

ONE = LossSharding(make_mesh(MeshConfig(data=1)))


def without_dropout(**loss):
    model = dataclasses.replace(CONFIG.model, dropout_rate=0.0)
    return dataclasses.replace(CONFIG, model=model, loss=LossConfig(**loss))


def arrays_of(batch):
    return jax.tree.map(jnp.asarray, batch)


def test_scored_pairs_have_losses_of_their_own_and_matryoshka():
    config = without_dropout(angle_weight=0.5, matryoshka_dims=(4,), mask_by="model")
    rng = np.random.default_rng(0)
    batch = make_batch(config=config, negatives=0)
    batch = batch._replace(score_B=rng.uniform(0, 5, len(batch.slot_BT)).astype(np.float32))
    params, mesh = init_params(config.model, jax.random.key(0)), make_mesh(MeshConfig(data=8))
    loss, metrics = jax.jit(lambda p, b: batch_loss(p, b, config, mesh, None))(
        params, arrays_of(batch)
    )
    z = jax.jit(lambda p, b: embed_texts(p, b, config, ONE.mesh))(params, arrays_of(batch))
    cut = z[..., :4] / jnp.linalg.norm(z[..., :4], axis=-1, keepdims=True)
    whole, short = (
        scored_loss(x[:, 0], x[:, 1], jnp.asarray(batch.score_B), sharding=ONE, config=config.loss)
        for x in (z, cut)
    )
    assert float(loss) == pytest.approx(float(whole.loss + short.loss), rel=1e-5)
    wanted = {"loss", "cosent_loss", "angle_loss", "positive_cosine", "loss_at_4"}
    assert metrics.keys() == wanted


@pytest.mark.slow
def test_the_loss_of_quantised_embeddings_is_added():
    config = without_dropout(quantized=("int8", "binary"), quantized_weight=0.5)
    batch = make_batch(config=config, negatives=1)
    params, mesh = init_params(config.model, jax.random.key(0)), ONE.mesh
    loss, metrics = jax.jit(lambda p, b: batch_loss(p, b, config, mesh, None))(
        params, arrays_of(batch)
    )
    z = jax.jit(lambda p, b: embed_texts(p, b, config, ONE.mesh))(params, arrays_of(batch))

    def of(z):
        return contrastive_loss(
            z[:, 0], z[:, 1], z[:, 2:], temperature=0.05, sharding=ONE,
            identity_BT=jnp.asarray(numbers(batch)),
            has_negative_BN=jnp.asarray(batch.slot_BT[:, 2:] >= 0),
        ).loss  # fmt: skip

    int8, binary = (of(straight_through(z, precision)) for precision in ("int8", "binary"))
    assert float(metrics["loss_int8"]) == pytest.approx(float(int8), rel=1e-5)
    assert float(metrics["loss_binary"]) == pytest.approx(float(binary), rel=1e-5)
    assert float(loss) == pytest.approx(float(of(z) + 0.5 * (int8 + binary)), rel=1e-5)


@pytest.mark.slow
def test_a_projection_is_learned_sharded_and_kept(tmp_path):
    config = dataclasses.replace(
        without_dropout(distill_embeddings_weight=5.0, query_weight=0.1, positive_weight=0.0),
        data=DataConfig(guide=GuideConfig("some/model", dims=6)),
    )
    batch = make_batch(config=config, negatives=0)
    guide = np.random.default_rng(0).integers(-127, 127, (len(batch.slot_BT), 2, 6))
    batch = batch._replace(guide_BTG=guide.astype(np.int8))
    params = init_params(config.model, jax.random.key(0))
    z = jax.jit(lambda p, b: embed_texts(p, b, config, ONE.mesh))(params, arrays_of(batch))
    projection = init_state(config, params).projection.projection_DG
    projected = np.asarray(z, np.float64) @ np.asarray(projection, np.float64)
    lengths = np.linalg.norm(projected, axis=-1) * np.linalg.norm(guide, axis=-1)
    cosine = (projected * guide).sum(-1) / lengths
    found = {}
    for shape in ((1, 1, 1), (2, 2, 2)):
        mesh = make_mesh(MeshConfig(*shape))
        state = init_state(config, init_params(config.model, jax.random.key(0)))
        state = put(state, state_shardings(config, mesh))
        start = np.asarray(state.projection.projection_DG)
        step, losses = make_train_step(config, mesh), []
        for _ in range(6):
            state, metrics = step(state, batch)
            losses.append(float(metrics["distill_embeddings_loss"]))
        assert losses[0] == pytest.approx(1 - cosine.mean(), rel=1e-5)
        assert losses[-1] < losses[0]
        assert not np.allclose(state.projection.projection_DG, start)
        found[shape] = losses
    np.testing.assert_allclose(*found.values(), rtol=1e-4)
    with Checkpoints(tmp_path, keep=1) as checkpoints:
        checkpoints.save(state, {})
    like = jax.tree.map(
        lambda x, at: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=at),
        state_shapes(config), state_shardings(config, mesh),
    )  # fmt: skip
    with Checkpoints(tmp_path) as checkpoints:
        restored = checkpoints.restore(int(state.step), like)
    jax.tree.map(np.testing.assert_array_equal, restored, state)
