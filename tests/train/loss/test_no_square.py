"""No compiled program of a loss, or of a train step, holds pairs × pairs."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jina_jax.config import DataConfig, GuideConfig, LossConfig, MeshConfig
from jina_jax.devices.mesh import make_mesh, replicated, split_first_axis
from jina_jax.model.encoder import init_params
from jina_jax.train.loss.contrastive import contrastive_loss
from jina_jax.train.loss.log_sums import LossSharding
from jina_jax.train.step import init_state, make_train_step
from tests.train.test_step import CONFIG, make_batch

DEVICES = 8
# 712 and 89 = 712 / 8 are the size of nothing else; a tile of 1,600 bytes has 20 rows.
PAIRS = 712
TILE_BYTES = 1600


def squares(hlo: str, pairs: int, devices: int, negatives: int = 0) -> set[str]:
    """Shapes of an HLO text, of buffers and collectives alike, that hold pairs × pairs.

    That is: the pairs, or the hard negatives, of all devices or of one on two axes, or the product
    of two on one axis.
    """
    counts = (pairs, pairs * max(negatives, 1))
    sizes = {count // part for count in counts for part in (1, devices)}
    products = {a * b for a in sizes for b in sizes}
    found = set()
    for shape in set(re.findall(r"\b(?:pred|[a-z]+\d+)\[([\d,]+)\]", hlo)):
        axes = [int(n) for n in shape.split(",")]
        if sum(n in sizes for n in axes) >= 2 or products.intersection(axes):
            found.add(shape)
    return found


def compiled_loss(function):
    arrays = [jax.ShapeDtypeStruct((PAIRS, 48), jnp.float32)] * 2
    identity = jax.ShapeDtypeStruct((PAIRS, 2), jnp.int32)
    mesh = make_mesh(MeshConfig(data=DEVICES))
    rows = split_first_axis(mesh)
    compiled = jax.jit(
        jax.value_and_grad(function, argnums=(0, 1)),
        in_shardings=(rows, rows, rows), out_shardings=(replicated(mesh), (rows, rows)),
    ).lower(*arrays, identity)  # fmt: skip
    return compiled.compile().as_text()


def whole_matrix(q, p, identity):
    logits = 20 * q @ p.T
    shared = (identity[:, None, :, None] == identity[None, :, None, :]).any((2, 3))
    logits = jnp.where(shared & ~jnp.eye(len(q), dtype=bool), -jnp.inf, logits)
    return jnp.mean(jax.nn.logsumexp(logits, 1) + jax.nn.logsumexp(logits, 0) - 40 * (q * p).sum(1))


@pytest.mark.parametrize("gather", ["all_gather", "ring"])
def test_the_loss_holds_no_square(gather):
    sharding = LossSharding(make_mesh(MeshConfig(data=DEVICES)), gather, TILE_BYTES)

    def loss(q, p, identity):
        return contrastive_loss(
            q, p, temperature=0.05, sharding=sharding, identity_BT=identity
        ).loss

    text = compiled_loss(loss)
    assert not squares(text, PAIRS, DEVICES)
    assert "while" in text
    if gather == "ring":
        # Never the keys of all devices either.
        assert "collective-permute" in text
        assert not re.search(r" f32\S+ all-gather", text)
        assert f"[{PAIRS},48]" not in text


def test_the_whole_matrix_is_caught():
    found = squares(compiled_loss(whole_matrix), PAIRS, DEVICES)
    assert {f"{PAIRS},{PAIRS // DEVICES}", f"{PAIRS // DEVICES},{PAIRS}"} & found


def test_one_tile_of_all_keys_is_caught():
    # Too large a tile is the matrix of one device.
    sharding = LossSharding(make_mesh(MeshConfig(data=DEVICES)), "all_gather", 2**30)
    text = compiled_loss(
        lambda q, p, _: contrastive_loss(q, p, temperature=0.05, sharding=sharding).loss
    )
    assert f"{PAIRS // DEVICES},{PAIRS}" in squares(text, PAIRS, DEVICES)


@pytest.mark.parametrize("tile_bytes", [TILE_BYTES, 2**30])
def test_one_tile_of_all_hard_negatives_is_caught(tile_bytes):
    sharding = LossSharding(make_mesh(MeshConfig(data=DEVICES)), "all_gather", tile_bytes)

    def loss(q, p, _):
        negatives = jnp.stack([q, p, q + p], axis=1)
        return contrastive_loss(q, p, negatives, temperature=0.05, sharding=sharding).loss

    found = squares(compiled_loss(loss), PAIRS, DEVICES, negatives=3)
    assert (f"{PAIRS // DEVICES},{PAIRS * 3}" in found) == (tile_bytes > TILE_BYTES)
    assert bool(found) == (tile_bytes > TILE_BYTES)


EVERY_PIECE = LossConfig(
    query_query_weight=1.0, positive_positive_weight=1.0, partition="joint", mask_by="guide",
    in_batch_hardness=9.0, hard_negative_hardness=5.0, distill_weight=1.0, distill="kl",
    spread_weight=1.0, spread_mean_weight=1.0,
)  # fmt: skip


def compiled_pieces(sharding, config, negatives=1):
    """The loss with all that it may be given, and its gradients."""
    mesh, texts, dimension = sharding.mesh, 2 + negatives, 48
    shapes = {
        "z": ((PAIRS, texts, dimension), jnp.float32),
        "identity_BT": ((PAIRS, texts), jnp.int32),
        "has_negative_BN": ((PAIRS, negatives), jnp.bool_),
        "teacher_BS": ((PAIRS, texts - 1), jnp.float32),
        "label_B": ((PAIRS,), jnp.int32),
        "guide_BTG": ((PAIRS, texts, 40), jnp.float32),
    }
    rows = split_first_axis(mesh)
    arrays = {
        name: jax.ShapeDtypeStruct(shape, dtype, sharding=rows)
        for name, (shape, dtype) in shapes.items()
    }

    def loss(z, options):
        q, p, n = z[:, 0], z[:, 1], z[:, 2:]
        return contrastive_loss(
            q, p, n, temperature=0.05, sharding=sharding, config=config, **options
        ).loss

    z = arrays.pop("z")
    return jax.jit(jax.value_and_grad(loss)).lower(z, arrays).compile().as_text()


@pytest.mark.slow
@pytest.mark.parametrize("gather", ["all_gather", "ring"])
def test_no_piece_holds_a_square(gather):
    mesh = make_mesh(MeshConfig(data=DEVICES))
    text = compiled_pieces(LossSharding(mesh, gather, TILE_BYTES), EVERY_PIECE)
    assert not squares(text, PAIRS, DEVICES, 1)


def test_tiles_that_are_the_matrix_are_caught_among_queries_too():
    config = LossConfig(0.0, 0.0, query_query_weight=1.0, margin_weight=0.0)
    mesh = make_mesh(MeshConfig(data=DEVICES))
    text = compiled_pieces(LossSharding(mesh, "all_gather", 2**30), config)
    assert f"{PAIRS // DEVICES},{PAIRS}" in squares(text, PAIRS, DEVICES, 1)


@pytest.mark.slow
def test_the_train_step_of_every_piece_holds_no_square():
    config = dataclasses.replace(
        CONFIG,
        feed=dataclasses.replace(CONFIG.feed, global_batch_size=PAIRS),
        data=DataConfig(guide=GuideConfig("guide", dims=40)),
        loss=dataclasses.replace(
            EVERY_PIECE, tile_bytes=TILE_BYTES, quantized=("int8", "binary"),
            matryoshka_dims=(4,), distill_embeddings_weight=1.0,
        ),
    )  # fmt: skip
    mesh = make_mesh(MeshConfig(data=DEVICES))
    state = jax.eval_shape(lambda: init_state(config, init_params(config.model, jax.random.key(0))))
    packed = make_batch(config=config, negatives=1)
    packed = packed._replace(
        label_B2=np.zeros((PAIRS, 2), np.uint32), own_only=np.zeros((), bool),
        guide_BTG=np.zeros((PAIRS, 3, 40), np.int8),
    )  # fmt: skip
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), packed)
    text = make_train_step(config, mesh).lower(state, shapes).compile().as_text()
    assert not squares(text, PAIRS, DEVICES, 1)


@pytest.mark.slow
@pytest.mark.parametrize("gather", ["all_gather", "ring"])
@pytest.mark.parametrize("negatives", [0, 1, 3])
def test_the_train_step_holds_no_square(gather, negatives):
    config = dataclasses.replace(
        CONFIG,
        feed=dataclasses.replace(CONFIG.feed, global_batch_size=PAIRS),
        loss=LossConfig(gather=gather, tile_bytes=TILE_BYTES),
    )
    mesh = make_mesh(MeshConfig(data=DEVICES))
    state = jax.eval_shape(lambda: init_state(config, init_params(config.model, jax.random.key(0))))
    packed = make_batch(config=config, negatives=negatives)
    batch = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), packed)
    text = make_train_step(config, mesh).lower(state, batch).compile().as_text()
    assert f"[{PAIRS // DEVICES}," in text
    assert not squares(text, PAIRS, DEVICES, negatives)
    slots = len(batch.ids_RL) * config.feed.texts_per_row
    # Slots without a text don't travel, and in a ring no device holds the texts of all.
    assert f"[{slots},{config.model.d_model}]" not in text
    assert (f"[{PAIRS},{config.model.d_model}]" in text) == (gather == "all_gather")
