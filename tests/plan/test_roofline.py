import dataclasses

import numpy as np
import pytest

from jina_jax.config import (
    DataConfig,
    FeedConfig,
    GuideConfig,
    LossConfig,
    SourceConfig,
    T5Config,
)
from jina_jax.devices.accelerators import Accelerator, accelerator
from jina_jax.errors import UserError
from jina_jax.feed.batch import BatchFields
from jina_jax.feed.packing import place
from jina_jax.model.flops import StepFlops, Work
from jina_jax.plan.compile import abstract_arguments, batch_shape
from jina_jax.plan.run import batch_fields, roofline
from jina_jax.plan.topology import FAMILIES, find_topology
from tests.plan.planned import CONFIG

CHIP = Accelerator("chip", "chip", 100.0, 50.0, 25.0, 10.0, 1000, 20.0, 4.0)
FLOPS = StepFlops(model=6400, text=3000, hardware=8400, loss=400)
BFLOAT16 = dataclasses.replace(CONFIG, model=T5Config(compute_dtype="bfloat16"))


def test_by_hand():
    bound = roofline(FLOPS, BFLOAT16, CHIP, devices=4, hbm_bytes=300.0, received_bytes=40.0)
    # (8400 - 400) / (4 * 100) + 400 / (4 * 10); 300 / 20; 40 / 4.
    assert list(bound.times_s.values()) == [30.0, 15.0, 10.0, 0.0]
    assert (bound.step_s, bound.bound) == (30.0, "compute")
    assert bound.mfu == pytest.approx(6400 / (30 * 400))


@pytest.mark.parametrize(
    ("hbm_bytes", "received_bytes", "bound", "step_s"),
    [(700.0, 0.0, "HBM", 35.0), (0.0, 160.0, "interconnect", 40.0)],
)
def test_the_slowest_resource_bounds(hbm_bytes, received_bytes, bound, step_s):
    found = roofline(
        FLOPS, BFLOAT16, CHIP, devices=4, hbm_bytes=hbm_bytes, received_bytes=received_bytes
    )
    assert (found.bound, found.step_s) == (bound, step_s)


def test_nothing_is_computed_while_the_interconnect_is_waited_for():
    found = roofline(
        FLOPS, BFLOAT16, CHIP, devices=4, hbm_bytes=600.0, received_bytes=40.0, shown_s=4.0
    )
    assert (found.bound, found.step_s) == ("compute", 34.0)
    assert found.times_s["compute"] == 30.0


def test_float32_has_its_own_peak():
    single = dataclasses.replace(CONFIG, model=T5Config(compute_dtype="float32"))
    bound = roofline(FLOPS, single, CHIP, devices=4, hbm_bytes=0.0, received_bytes=0.0)
    assert bound.times_s["compute"] == 8000 / 200 + 400 / 40


@pytest.mark.parametrize(("precision", "loss_s"), [("high", 4.0), ("default", 2.0)])
def test_products_of_the_loss_have_the_peak_of_their_precision(precision, loss_s):
    config = dataclasses.replace(BFLOAT16, loss=LossConfig(precision=precision))
    bound = roofline(FLOPS, config, CHIP, devices=4, hbm_bytes=0.0, received_bytes=0.0)
    assert bound.times_s["compute"] == 20 + loss_s


def test_batches_are_packed_as_the_feed_packs():
    feed = FeedConfig(
        global_batch_size=100, query_tokens=30, positive_tokens=64, row_tokens=128,
        texts_per_row=3, rows_multiple=16,
    )  # fmt: skip
    shape = batch_shape(feed, 0)
    lengths = shape.lengths * 100
    assert shape.lengths == (30, 64)
    packed = place(np.array(lengths), row_tokens=128, texts_per_row=3).num_rows
    assert packed <= shape.rows < packed + 16
    assert shape.rows % 16 == 0
    assert shape.texts == Work(9400, 100 * (30**2 + 64**2))
    assert shape.computed == Work(shape.rows * 128, shape.rows * 128**2)


def test_texts_of_a_given_length_are_cut_at_the_limits():
    feed = FeedConfig(global_batch_size=8, query_tokens=30, positive_tokens=64)
    assert batch_shape(feed, 20).lengths == (20, 20)
    assert batch_shape(feed, 40).lengths == (30, 40)
    with pytest.raises(UserError, match="--tokens -1 must not be negative"):
        batch_shape(feed, -1)


def test_hard_negatives_are_texts_like_positives():
    feed = FeedConfig(
        global_batch_size=8, query_tokens=30, positive_tokens=64, row_tokens=64, rows_multiple=1
    )
    shape = batch_shape(feed, 0, 2)
    assert (shape.lengths, shape.negatives, shape.rows) == ((30, 64, 64, 64), 2, 8 * 3 + 4)
    with pytest.raises(UserError, match="--negatives -1 must not be negative"):
        batch_shape(feed, 0, -1)


def test_a_plan_is_of_the_batches_that_the_run_will_have(sentence_folder):
    sources = (
        SourceConfig("a", paths=("a",), label_field="class"),
        SourceConfig("b", paths=("b",), negative_field="n", in_batch=False),
    )
    data = DataConfig(sources, guide=GuideConfig(str(sentence_folder)))
    config = dataclasses.replace(CONFIG, data=data)
    # A guide that no loss asks stays in the shards.
    assert batch_fields(config).guide_dims == 0
    config = dataclasses.replace(config, loss=LossConfig(mask_by="guide"))
    fields = batch_fields(config)
    assert fields == BatchFields(labels=True, own_only=True, guide_dims=24)
    cut = dataclasses.replace(data, guide=GuideConfig(str(sentence_folder), dims=8))
    assert batch_fields(dataclasses.replace(config, data=cut)).guide_dims == 8
    assert batch_fields(CONFIG) == BatchFields()
    shape = batch_shape(CONFIG.feed, 0, 1, fields)
    _, batch = abstract_arguments(config, shape)
    assert batch.guide_BTG.shape == (32, 3, 24) and batch.label_B2.shape == (32, 2)
    assert batch.score_B is None and batch.own_only.shape == ()
    scored = batch_shape(CONFIG.feed, 0, 0, is_scored=True)
    assert abstract_arguments(CONFIG, scored)[1].score_B.shape == (32,)


def test_topologies():
    found = find_topology("v5p:4x4x8")
    assert (found.chips, accelerator(found.family.device_kind).name) == (128, "TPU v5p")
    two = find_topology("2xv5p:4x4x8")
    assert (two.chips, two.slices, two.slice_name) == (256, 2, "v5p:4x4x8")
    for family in FAMILIES:
        for size in family.slices:
            known = accelerator(find_topology(f"{family.name}:{size}").family.device_kind)
            if family.usable_hbm_bytes is None:
                assert family.name == "v4"
                continue
            assert 0.95 * known.hbm_bytes < family.usable_hbm_bytes < 1.01 * known.hbm_bytes


@pytest.mark.parametrize("name", ["v5e:3x3", "v5e", "v9:2x2", "", "V5E:4x4"])
def test_an_unknown_topology_names_the_known_ones(name):
    with pytest.raises(UserError, match=r"(?s)no topology.*v5e: .*16x16.*v5p: .*4x4x4.*v6e: "):
        find_topology(name)
