"""The step on triplets, from a packed batch to the gradient of the parameters, and its oracle."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jina_jax.config import LossConfig, MeshConfig
from jina_jax.devices.mesh import make_mesh, replicated
from jina_jax.model.encoder import init_params
from jina_jax.train.step import batch_loss, batch_shardings, embed_texts
from tests.identities import numbers
from tests.marks import some_slow
from tests.train.loss.contrast_oracle import contrast
from tests.train.test_step import CONFIG, make_batch

LOSS = LossConfig(positive_weight=0.7, margin_weight=20.0, margin=0.1, tile_bytes=300)
MODEL = dataclasses.replace(CONFIG.model, dropout_rate=0.0)
PADDED = dataclasses.replace(
    CONFIG,
    model=MODEL,
    loss=LOSS,
    feed=dataclasses.replace(CONFIG.feed, texts_per_row=1, rows_multiple=16),
)


def relative(found, exact):
    """Distance of two pytrees over the length of the second."""
    found, exact = (
        np.concatenate([np.asarray(x, np.float64).ravel() for x in jax.tree.leaves(t)])
        for t in (found, exact)
    )
    return np.linalg.norm(found - exact) / np.linalg.norm(exact)


@pytest.fixture(scope="module", params=some_slow([3], [1, 3]))
def expected(request):
    """Negatives a record, parameters, and the oracle's values with the gradient of parameters."""
    batch = make_batch(config=PADDED, negatives=request.param)
    assert (batch.slot_BT < 0).any() and (batch.slot_BT[:, 2:] >= 0).any()
    params = init_params(MODEL, jax.random.key(0))
    mesh = make_mesh(MeshConfig(data=1))

    def embed(params):
        arrays = jax.tree.map(jnp.asarray, batch)
        return embed_texts(params, arrays, PADDED, mesh)

    z, pull = jax.jit(lambda params: jax.vjp(embed, params))(params)
    z = np.asarray(z)
    wanted = contrast(
        z[:, 0], z[:, 1], z[:, 2:], temperature=LOSS.temperature, config=LOSS,
        identity=numbers(batch), has_negative=batch.slot_BT[:, 2:] >= 0,
    )  # fmt: skip
    assert wanted.masked_share > 0.01 and wanted.margin_loss > 0
    of_q, of_p, of_n, _ = wanted.gradients
    gradient = np.concatenate([of_q[:, None], of_p[:, None], of_n], axis=1)
    return request.param, params, wanted, jax.jit(pull)(gradient.astype(np.float32))[0]


@pytest.mark.parametrize(
    ("texts_per_row", "chunk_rows", "gather", "devices"),
    some_slow(
        [(4, 8, "ring", 8)],
        (
            (*packing, *devices)
            for packing in ((1, 0), (4, 0), (4, 8))
            for devices in (("all_gather", 1), ("all_gather", 8), ("ring", 8))
        ),
    ),
)
def test_equals_the_oracle(expected, texts_per_row, chunk_rows, gather, devices):
    negatives, params, wanted, gradient = expected
    config = dataclasses.replace(
        PADDED,
        feed=dataclasses.replace(PADDED.feed, texts_per_row=texts_per_row),
        loss=dataclasses.replace(LOSS, gather=gather),
        train=dataclasses.replace(CONFIG.train, grad_cache_rows=chunk_rows),
    )
    mesh = make_mesh(MeshConfig(data=devices))
    step = jax.jit(
        jax.value_and_grad(lambda p, b: batch_loss(p, b, config, mesh, None), has_aux=True),
        in_shardings=(replicated(mesh), batch_shardings(mesh)),
    )
    batch = make_batch(config=config, negatives=negatives)
    assert (batch.segments_RL.max() > 1) == (texts_per_row > 1)
    (loss, told), found = step(params, batch)
    assert float(loss) == pytest.approx(wanted.loss, rel=1e-6)
    for name, value in told.items():
        assert float(value) == pytest.approx(getattr(wanted, name), rel=1e-6, abs=1e-6), name
    assert {"margin_loss", "negative_cosine", "masked_share"} <= told.keys()
    assert relative(found, gradient) <= 1e-6
