import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jina_jax.config import LossConfig, MeshConfig, RunConfig, T5Config
from jina_jax.config.validation import validate
from jina_jax.devices.mesh import make_mesh
from jina_jax.errors import UserError
from jina_jax.model.encoder import init_params
from jina_jax.model.pooling import first_dimensions
from jina_jax.train.step import batch_loss, embed_texts
from tests.identities import numbers
from tests.marks import some_slow
from tests.train.loss.contrast_oracle import contrast
from tests.train.test_step import SMALL, make_batch


def test_by_hand():
    z = jnp.array([[[0.6, 0.0, 0.8], [0.0, 0.0, 0.0]]], jnp.float32)
    np.testing.assert_allclose(first_dimensions(z, 2), [[[1, 0], [0, 0]]], atol=1e-6)
    weight = jnp.array([2.0, 3.0])
    gradient = jax.grad(lambda z: jnp.sum(first_dimensions(z, 2) * weight[None, None]))(z)
    # Along the vector none, across it 1 / length; finite and 1e6 · its direction at zero.
    np.testing.assert_allclose(gradient[0, 0], [0, 5, 0], atol=1e-5)
    assert np.isfinite(gradient).all()


@pytest.mark.parametrize(("weights", "negatives"), some_slow([((), 2)], [((), 2), ((0.5, 2.0), 0)]))
def test_losses_of_the_first_dimensions_add_up(weights, negatives):
    loss = LossConfig(matryoshka_dims=(4, 8), matryoshka_weights=weights, tile_bytes=300)
    config = dataclasses.replace(SMALL, loss=loss)
    batch, mesh = (
        jax.tree.map(jnp.asarray, make_batch(negatives=negatives)),
        make_mesh(MeshConfig(data=8)),
    )
    params = init_params(config.model, jax.random.key(0))
    step = jax.jit(
        jax.value_and_grad(lambda p: batch_loss(p, batch, config, mesh, None), has_aux=True)
    )
    (found, told), gradient = step(params)
    one = make_mesh(MeshConfig(data=1))
    z = jax.jit(lambda p: embed_texts(p, batch, config, one))(params)
    z, total = np.asarray(z, np.float64), 0.0
    for dims, weight in zip((4, 8, 16), (*(weights or (1.0, 1.0)), 1.0)):
        cut = z[..., :dims] / np.maximum(np.linalg.norm(z[..., :dims], axis=-1), 1e-9)[..., None]
        expected = contrast(
            cut[:, 0], cut[:, 1], cut[:, 2:], temperature=0.05, config=LossConfig(),
            identity=numbers(batch), has_negative=batch.slot_BT[:, 2:] >= 0,
        )  # fmt: skip
        total += weight * expected.loss
        if dims < 16:
            assert float(told[f"loss_at_{dims}"]) == pytest.approx(expected.loss, rel=1e-6)
            assert float(told[f"accuracy_at_{dims}"]) == pytest.approx(expected.accuracy, abs=1e-6)
        else:
            assert float(told["query_loss"]) == pytest.approx(expected.query_loss, rel=1e-6)
    assert float(found) == pytest.approx(total, rel=1e-6)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(gradient))


def test_sizes_that_make_no_sense_are_refused():
    def check(*dims, weights=()):
        loss = LossConfig(matryoshka_dims=dims, matryoshka_weights=weights)
        validate(RunConfig("x", loss=loss, model=T5Config(d_model=64)))

    check(16, 32, weights=(1.0, 2.0))
    with pytest.raises(UserError, match=r"matryoshka_dims: 64 must lie in 1..63"):
        check(64)
    with pytest.raises(UserError, match="names a number twice"):
        check(16, 16)
    with pytest.raises(UserError, match="must be as many as"):
        check(16, 32, weights=(1.0,))
    with pytest.raises(UserError, match="must all be above 0"):
        check(16, weights=(0.0,))
