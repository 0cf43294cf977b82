"""Losses that sentence-transformers has too, beside it: values and gradients, on one batch."""

import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jina_jax.config import LossConfig
from jina_jax.train.loss.distillation import embedding_distance
from jina_jax.train.loss.scored import scored_loss
from jina_jax.train.loss.spread import second_moment_above_chance, squared_mean
from tests.train.loss.contrast_cases import ONE, measure, near, unit

torch = pytest.importorskip("torch")
losses = pytest.importorskip("sentence_transformers.sentence_transformer.losses")

TEMPERATURE = 0.05
SIZE = 24


def arrays(negatives, seed=0):
    rng = np.random.default_rng(seed)
    q = unit(rng, SIZE, 32)
    hard = [near(q, rng, 2.0) for _ in range(negatives)]
    return q, near(q, rng, 2.0), *((jnp.stack(hard, axis=1),) if hard else ())


def columns(arrays):
    """As sentence-transformers has them: one tensor for each text of a record."""
    q, p, *n = (torch.tensor(np.asarray(x, np.float64), requires_grad=True) for x in arrays)
    return [q, p, *n], [q, p, *(n[0].unbind(1) if n else ())]


def tangent(gradient, x):
    """Its part along the sphere: some of theirs are of vectors of any length."""
    gradient, x = (np.asarray(a, np.float64) for a in (gradient, x))
    return gradient - np.sum(gradient * x, axis=-1, keepdims=True) * x


def assert_near(found, wanted):
    assert np.linalg.norm(found - wanted) <= 1e-5 * np.linalg.norm(wanted)


def assert_equal(arrays, config, theirs, scale=1.0, **options):
    """Compares loss and gradients with those of `theirs`, a function of columns, times `scale`."""
    leaves, texts = columns(arrays)
    loss = theirs(texts) * scale
    gradients = torch.autograd.grad(loss, leaves)
    found, ours = measure(arrays, TEMPERATURE, ONE, config=config, **options)
    assert float(found.loss) == pytest.approx(float(loss.detach()), rel=1e-5)
    for x, one, other in zip(arrays, ours[: len(leaves)], gradients, strict=True):
        assert_near(tangent(one, x), tangent(other, x))
    return found


ALL = ("query_to_doc", "query_to_query", "doc_to_query", "doc_to_doc")
GTE = {"query_query_weight": 1.0, "positive_positive_weight": 1.0, "partition": "joint"}
HARD = {"hardness_mode": "hard_negatives", "hardness_strength": 5.0}


@pytest.mark.parametrize("negatives", [0, 2])
@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ({"positive_weight": 0.0}, {}),
        (GTE, {"directions": ALL}),
        (
            {"query_weight": 0.5, "positive_weight": 0.5},
            {"directions": ("query_to_doc", "doc_to_query"), "partition_mode": "per_direction"},
        ),
        (
            {"positive_weight": 0.0, "in_batch_hardness": 9.0},
            {"hardness_mode": "in_batch_negatives", "hardness_strength": 9.0},
        ),
        ({"positive_weight": 0.0, "hard_negative_hardness": 5.0}, HARD),
        (
            GTE | {"in_batch_hardness": 3.0, "hard_negative_hardness": 3.0},
            {"directions": ALL, "hardness_mode": "all_negatives", "hardness_strength": 3.0},
        ),
    ],
)
def test_multiple_negatives_ranking(ours, theirs, negatives):
    loss = losses.MultipleNegativesRankingLoss(None, scale=1 / TEMPERATURE, **theirs)
    assert_equal(
        arrays(negatives), LossConfig(**ours, margin_weight=0.0),
        lambda texts: loss.compute_loss_from_embeddings(texts, None),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("negatives", "strategy"), [(0, "absolute"), (0, "relative"), (1, "absolute")]
)
def test_gist_embed(monkeypatch, negatives, strategy):
    batch = arrays(negatives)
    guide = jnp.stack([*batch[:2], *(x[:, 0] for x in batch[2:])], axis=1)
    guide = guide + 0.5 * unit(np.random.default_rng(1), *guide.shape)
    guide /= jnp.linalg.norm(guide, axis=-1, keepdims=True)
    margin = {"absolute": 0.02, "relative": 0.1}[strategy]
    loss = losses.GISTEmbedLoss.__new__(losses.GISTEmbedLoss)
    torch.nn.Module.__init__(loss)
    loss.guide = [torch.tensor(np.asarray(x, np.float64)) for x in jnp.unstack(guide, axis=1)]
    loss.must_retokenize, loss.gather_across_devices = False, False
    loss.temperature, loss.margin_strategy, loss.margin = TEMPERATURE, strategy, margin
    # Of positives among each other it has no hard negatives.
    loss.contrast_anchors, loss.contrast_positives = True, not negatives
    loss.similarity_fct = torch.nn.CosineSimilarity(dim=-1)
    loss.cross_entropy_loss = torch.nn.CrossEntropyLoss()
    module = importlib.import_module(type(loss).__module__)
    monkeypatch.setattr(module, "embed_columns", lambda model, _: model)

    def theirs(texts):
        loss.model = texts
        return loss([{} for _ in texts], None)

    config = LossConfig(
        positive_weight=0.0, query_query_weight=1.0, partition="joint", margin_weight=0.0,
        positive_positive_weight=float(not negatives), mask_by="guide", mask_margin=-margin,
        mask_margin_kind=strategy,
    )  # fmt: skip
    found = assert_equal(batch, config, theirs, guide_BTG=guide)
    assert float(found.margin_masked_share) > 0.01


def test_margins_and_divergence_of_a_teacher():
    batch = arrays(3)
    teacher = np.random.default_rng(2).normal(0.5, 0.3, (SIZE, 4)).astype(np.float32)
    options = {"teacher_BS": jnp.asarray(teacher)}
    alone = {"query_weight": 0.0, "positive_weight": 0.0, "margin_weight": 0.0}
    labels = torch.tensor(teacher.astype(np.float64))
    mse = losses.MarginMSELoss(None)
    assert_equal(
        batch, LossConfig(**alone, distill_weight=1.0),
        lambda texts: mse.compute_loss_from_embeddings(texts, labels), **options,
    )  # fmt: skip
    kl = losses.DistillKLDivLoss(None, temperature=0.2)
    assert_equal(
        batch, LossConfig(**alone, distill_weight=1.0, distill="kl", distill_temperature=0.2),
        # It multiplies with the squared temperature.
        lambda texts: kl.compute_loss_from_embeddings(texts, labels), 1 / 0.2**2, **options,
    )  # fmt: skip


def assert_same(function, arrays, theirs, leaves):
    """Compares a function of arrays and its gradients with a tensor and those of its leaves."""
    places = tuple(range(len(arrays)))
    value, gradients = jax.jit(jax.value_and_grad(function, places))(*arrays)
    assert float(value) == pytest.approx(float(theirs.detach()), rel=1e-5)
    for one, other in zip(gradients, torch.autograd.grad(theirs, leaves), strict=True):
        yield np.asarray(one), other.numpy()


def test_global_orthogonal_regularization():
    batch = arrays(0)
    loss = losses.GlobalOrthogonalRegularizationLoss(None, mean_weight=3.0, aggregation="sum")
    leaves, texts = columns(batch)
    theirs = sum(loss.compute_loss_from_embeddings(texts).values())

    def ours(*both):
        return sum(3 * squared_mean(x) + second_moment_above_chance(x) for x in both)

    for x, (one, other) in zip(batch, assert_same(ours, batch, theirs, leaves), strict=True):
        assert_near(tangent(one, x), tangent(other, x))


@pytest.mark.parametrize("dimensions", [32, 33])
@pytest.mark.parametrize("name", ["CoSENTLoss", "AnglELoss"])
def test_scored_pairs(name, dimensions):
    rng = np.random.default_rng(3)
    x = unit(rng, SIZE, dimensions)
    batch = x, near(x, rng, 2.0)
    # Many have the same score.
    score = rng.integers(0, 6, SIZE).astype(np.float32)
    is_angle = float(name == "AnglELoss")
    config = LossConfig(cosent_weight=1 - is_angle, angle_weight=is_angle)
    leaves, texts = columns(batch)
    theirs = getattr(losses, name)(None).compute_loss_from_embeddings(
        texts, torch.tensor(score, dtype=torch.float64)
    )

    def ours(x, y):
        return scored_loss(x, y, jnp.asarray(score), sharding=ONE, config=config).loss

    for z, (one, other) in zip(batch, assert_same(ours, batch, theirs, leaves), strict=True):
        assert_near(tangent(one, z), tangent(other, z))


def test_embeddings_of_a_teacher():
    rng = np.random.default_rng(4)
    z, teacher = unit(rng, SIZE, 2, 32), unit(rng, SIZE, 2, 20)
    projection = jnp.asarray(rng.standard_normal((32, 20)) / 6, jnp.float32)
    loss = losses.EmbedDistillLoss(None, distance_metric="cosine")
    leaves = [torch.tensor(np.asarray(x, np.float64), requires_grad=True) for x in (z, projection)]
    wanted = [torch.tensor(np.asarray(teacher, np.float64)[:, i]) for i in range(2)]
    theirs = loss.compute_loss_from_embeddings(list((leaves[0] @ leaves[1]).unbind(1)), wanted)

    def ours(z, projection):
        return embedding_distance(z, teacher, projection, jnp.ones((SIZE, 2), bool))

    for one, other in assert_same(ours, (z, projection), theirs, leaves):
        assert_near(one, other)
