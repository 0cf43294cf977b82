"""What travels between devices in a compiled step, beside gradients and embeddings."""

import dataclasses
import re

import pytest

from jina_jax.config import MeshConfig
from jina_jax.devices.mesh import make_mesh
from jina_jax.feed.batch import BatchFields, RecordKind
from jina_jax.train.step import batch_shapes, make_train_step, state_shapes
from tests.marks import some_slow
from tests.train.test_step import SMALL

PAIRS, TEXTS = 96, 3
_COLLECTIVE = re.compile(
    r"= (\S+) (all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute)(-start)?\("
)


def collectives(groups, gather):
    feed = dataclasses.replace(SMALL.feed, global_batch_size=PAIRS, rows_multiple=16, groups=groups)
    config = dataclasses.replace(
        SMALL, feed=feed, loss=dataclasses.replace(SMALL.loss, gather=gather)
    )
    shapes = batch_shapes(config, 48, RecordKind(TEXTS), BatchFields(labels=True))
    step = make_train_step(config, make_mesh(MeshConfig(data=8)))
    text = step.lower(state_shapes(config), shapes).compile().as_text()
    return [(kind, re.sub(r"\{[\d,]*\}", "", of)) for of, kind, _ in _COLLECTIVE.findall(text)]


@pytest.mark.parametrize(
    ("groups", "gather"),
    some_slow([(8, "all_gather")], [(8, "all_gather"), (8, "ring"), (16, "ring")]),
)
def test_hashes_of_texts_and_labels_travel_once_and_slots_not_at_all(groups, gather):
    found = collectives(groups, gather)
    whole_numbers = [one for one in found if one[1].startswith(("u32[", "s32[", "pred["))]
    assert sorted(one for one in whole_numbers if one[1][4:-1]) == [
        ("all-gather", f"u32[{PAIRS},2]"), ("all-gather", f"u32[{PAIRS},{TEXTS},5]"),
    ] or gather == "ring"  # fmt: skip
    # In a ring the place of a block goes with it.
    sizes = [of for _, of in whole_numbers if str(PAIRS) in of]
    assert sorted(sizes) == [f"u32[{PAIRS},2]", f"u32[{PAIRS},{TEXTS},5]"]
    # Embeddings are gathered by the loss, and not to bring them together.
    assert not any(of.startswith("f32[48,") for _, of in found)


@pytest.mark.slow
def test_slots_of_groups_that_share_devices_travel_among_these():
    found = collectives(2, "all_gather")
    assert ("all-gather", f"s32[{PAIRS // 2},{TEXTS}]") in found
    assert not any(f"s32[{PAIRS}," in of for _, of in found)
