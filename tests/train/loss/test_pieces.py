"""Each loss and mask beyond the paper's, alone and together, beside whole matrices in float64."""

import itertools

import jax.numpy as jnp
import numpy as np
import pytest

from jina_jax.config import LossConfig
from jina_jax.train.loss.log_sums import LossSharding
from tests.marks import some_slow
from tests.train.loss.contrast_cases import measure, mesh, near, triplets, unit
from tests.train.loss.dense_reference import reference

FOUR = {"query_query_weight": 0.7, "positive_positive_weight": 1.3, "positive_weight": 0.6}
PIECES = {
    "directions": LossConfig(**FOUR),
    "joint": LossConfig(**FOUR, partition="joint"),
    "gte": LossConfig(
        query_query_weight=1.0, positive_positive_weight=1.0, partition="joint", margin_weight=0.0
    ),
    "absolute": LossConfig(**FOUR, mask_by="model", mask_margin=-0.02),
    "relative": LossConfig(**FOUR, mask_by="model", mask_margin_kind="relative"),
    "guide": LossConfig(**FOUR, partition="joint", mask_by="guide", mask_margin=0.0),
    "guide_relative": LossConfig(mask_by="guide", mask_margin_kind="relative", mask_margin=-0.3),
    "in_batch_hardness": LossConfig(in_batch_hardness=9.0),
    "hard_negative_hardness": LossConfig(hard_negative_hardness=5.0),
    "kl": LossConfig(distill_weight=2.0, distill="kl", distill_temperature=0.3),
    "spread": LossConfig(spread_weight=20.0, spread_mean_weight=30.0),
    "all": LossConfig(
        **FOUR, partition="joint", mask_by="guide", mask_margin=0.05, in_batch_hardness=3.0,
        hard_negative_hardness=5.0, distill_weight=2.0, distill="kl", spread_weight=20.0,
        margin=0.2,
    ),
}  # fmt: skip


def batch(seed, size, negatives):
    """A batch with everything: known matches, missing negatives, labels, a guide and a teacher."""
    rng = np.random.default_rng(seed)
    arrays, options = triplets(rng, size, negatives)
    texts = 2 + negatives
    guide = np.array(unit(rng, size, texts, 24))
    # The guide finds a pair alike, and some others too.
    guide[:, 1:] = guide[:, 1:] + 0.8 * guide[:, :1]
    guide /= np.linalg.norm(guide, axis=-1, keepdims=True)
    teacher = rng.standard_normal((size, texts - 1)).astype(np.float32)
    teacher[3, 0] = teacher[5, 1] = np.nan
    return arrays, options | {
        "label_B": jnp.asarray(rng.integers(-1, 6, size), jnp.int32),
        "guide_BTG": jnp.asarray(guide, jnp.float32),
        "teacher_BS": jnp.asarray(teacher),
    }


def pairs(seed, size):
    arrays, options = batch(seed, size, 1)
    cut = {"identity_BT": 2, "guide_BTG": 2, "teacher_BS": 1}
    del options["has_negative_BN"]
    return arrays[:2], {
        name: value[:, : cut[name]] if name in cut else value for name, value in options.items()
    }


def assert_equals_reference(arrays, options, config, sharding, temperature=0.05, tolerance=1e-5):
    found, gradients = measure(arrays, temperature, sharding, config=config, **options)
    expected, wanted = reference(arrays, np.float32(temperature), config, options)
    values = {name: float(v) for name, v in found._asdict().items() if v is not None}
    assert values.keys() == expected.keys()
    for name, value in values.items():
        assert value == pytest.approx(expected[name], rel=tolerance, abs=tolerance), name
    for got, exact in zip(gradients[:-1], wanted[:-1], strict=True):
        assert np.linalg.norm(got - exact) <= tolerance * np.linalg.norm(exact)
    # A small difference of large sums.
    assert gradients[-1] == pytest.approx(wanted[-1], rel=10 * tolerance)
    return expected


CASES = [
    *itertools.product(PIECES, ["1"], ["all_gather"]),
    *itertools.product(["all", "relative"], ("8", "2x4", "2x2x2", "4x1x2"), ("all_gather", "ring")),
]
SHORT = {
    ("all", "8", "ring"), ("relative", "2x2x2", "all_gather"), ("kl", "1", "all_gather"),
}  # fmt: skip
"""Each piece once, by itself or among all; the others take minutes to compile."""


@pytest.mark.parametrize(
    ("name", "which", "gather"),
    some_slow(SHORT, CASES),
)
def test_triplets_equal_the_reference(name, which, gather):
    arrays, options = batch(3, 48, 2)
    config = PIECES[name]
    if config.distill_weight == 0:
        del options["teacher_BS"]
    # A tile has 7 rows, and one of rows and themselves 3: the last ones are shorter.
    sharding = LossSharding(mesh(which), gather, 200)
    expected = assert_equals_reference(arrays, options, config, sharding)
    if config.mask_by != "none":
        assert 0.005 < expected["margin_masked_share"] < 0.9
    assert expected["label_masked_share"] > 0.01 < expected["masked_share"]


@pytest.mark.parametrize("name", some_slow(["joint"], ["joint", "relative", "guide", "all"]))
def test_pairs_equal_the_reference(name):
    arrays, options = pairs(4, 41)
    if PIECES[name].distill_weight == 0:
        del options["teacher_BS"]
    sharding = LossSharding(mesh(), tile_bytes=400)
    assert_equals_reference(arrays, options, PIECES[name], sharding)


@pytest.mark.parametrize("size", some_slow([2, 3], [2, 3, 8, 16]))
def test_rows_and_themselves_of_any_number(size):
    # Of an even number, records exactly half of the batch apart find each other once.
    rng = np.random.default_rng(size)
    q = unit(rng, size, 8)
    arrays = q, near(q, rng, 1.0)
    for which in ("1", "8") if size % 8 == 0 else ("1",):
        for tile_bytes in (4, 100):
            sharding = LossSharding(mesh(which), tile_bytes=tile_bytes)
            assert_equals_reference(arrays, {}, PIECES["gte"], sharding)


def test_a_relative_limit_of_cosines_below_zero():
    # Positives at a cosine of -0.5; other pairs at -0.6 and -0.45. 95% of -0.5 would be -0.475,
    # above the positive; the limit has to be -0.525, below it.
    q = jnp.array([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0]], jnp.float32)
    cosines = np.array([-0.5, -0.6, -0.51])
    p = jnp.asarray(np.stack([cosines, np.sqrt(1 - cosines**2)], 1), jnp.float32)
    config = LossConfig(positive_weight=0.0, mask_by="model", mask_margin_kind="relative")
    found = measure((q, p), 1.0, LossSharding(mesh()), config=config)[0]
    # Record 0 keeps p1 alone (-0.6 < -0.525 <= -0.51); record 1's limit is -0.63, and masks both;
    # record 2's is -0.5355, and keeps p1.
    assert found.margin_masked_share == pytest.approx(4 / 6)
    expected = np.mean([np.log1p(np.exp(-0.1)), 0.0, np.log1p(np.exp(-0.09))])
    assert found.loss == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    ("which", "name"), some_slow([("1", "all")], itertools.product("18", ("directions", "all")))
)
def test_own_negatives_only(which, name):
    arrays, options = batch(5, 40, 2)
    config = PIECES[name]
    if config.distill_weight == 0:
        del options["teacher_BS"]
    options["own_only"] = jnp.array(True)
    sharding = LossSharding(mesh(which), "ring", 400)
    assert_equals_reference(arrays, options, config, sharding)
    options["own_only"] = jnp.array(False)
    assert_equals_reference(arrays, options, config, sharding)


def test_a_guide_that_is_not_there_is_an_error():
    arrays, options = pairs(4, 40)
    del options["guide_BTG"], options["teacher_BS"]
    with pytest.raises(ValueError, match="mask_by='guide' wants the embeddings of a guide"):
        measure(arrays, 0.05, LossSharding(mesh()), config=PIECES["guide"], **options)
