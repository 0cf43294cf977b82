"""What batches carry beside their texts: labels, scores, sources of own negatives, a guide."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jina_jax.config import MeshConfig
from jina_jax.devices.mesh import make_mesh, put
from jina_jax.feed.batch import BatchFields, RecordKind, pack_batch, record_kind
from jina_jax.shards.array_record import TokenisedRecords
from jina_jax.train.loss.identity import number_labels
from jina_jax.train.step import batch_shapes, batch_shardings, init_state, make_train_step
from tests.train.test_step import SMALL, init_params

ALL = BatchFields(labels=True, own_only=True, guide_dims=4)


def records(count, texts=2, **more):
    """Texts of one token; the last of a record isn't there in every third."""
    lengths = np.ones((count, texts), np.int64)
    if texts > 2:
        lengths[::3, -1] = 0
    starts = (np.cumsum(lengths) - lengths.ravel()).reshape(count, texts)
    hashes = np.arange(count * texts * 2, dtype=np.uint64).reshape(count, texts, 2)
    ids = np.arange(lengths.sum()).astype(np.uint16) % 50
    return TokenisedRecords(ids, starts, lengths, hashes, **more)


def guide_of(count, texts, dims=4):
    found = np.random.default_rng(0).integers(-127, 128, (count, texts, dims)).astype(np.int8)
    return found * (records(count, texts).lengths_NS > 0)[..., None].astype(np.int8)


def test_a_batch_has_the_fields_of_its_run():
    labels = np.array([2**63 + 5, 7, 2**63 + 5, 9], np.uint64)
    guide = guide_of(4, 3)
    batch = pack_batch(
        records(4, 3, labels_N=labels, guide_NSG=guide), SMALL.feed, fields=ALL, in_batch=False
    )
    assert batch.label_B2.dtype == np.uint32
    assert batch.label_B2.tolist() == [[5, 2**31], [7, 0], [5, 2**31], [9, 0]]
    # Numbers from 0 on, whatever the labels are.
    mesh = make_mesh(MeshConfig(1))
    assert number_labels(jnp.asarray(batch.label_B2), mesh).tolist() == [0, 1, 0, 2]
    assert batch.own_only.shape == () and batch.own_only.dtype == bool and batch.own_only
    assert batch.guide_BTG is guide and batch.score_B is None


def test_a_source_without_labels_has_none_in_a_run_with_some():
    batch = pack_batch(records(3), SMALL.feed, fields=BatchFields(labels=True, own_only=True))
    assert number_labels(jnp.asarray(batch.label_B2), make_mesh(MeshConfig(1))).tolist() == [
        -1,
        -1,
        -1,
    ]
    assert not batch.own_only
    plain = pack_batch(records(3, labels_N=np.arange(3, dtype=np.uint64)), SMALL.feed)
    assert plain[6:] == (None, None, None, None)


def test_scored_pairs_are_a_kind_of_their_own():
    scored = records(3, golds_N=np.array([0.5, 5, -1], np.float32))
    assert pack_batch(scored, SMALL.feed).score_B.tolist() == [0.5, 5, -1]
    assert record_kind(scored) == RecordKind(2, is_scored=True) != record_kind(records(3))


@pytest.mark.parametrize(("texts", "scored"), [(3, False), (2, True)])
def test_shapes_that_are_compiled_for_are_those_of_the_batches(texts, scored):
    size = SMALL.feed.global_batch_size
    more = {"golds_N": np.zeros(size, np.float32)} if scored else {}
    given = records(
        size, texts, labels_N=np.zeros(size, np.uint64), guide_NSG=guide_of(size, texts), **more
    )
    for fields in (BatchFields(), ALL):
        batch = pack_batch(given, SMALL.feed, fields=fields)
        told = batch_shapes(SMALL, len(batch.ids_RL), record_kind(given), fields)
        as_told = [None if x is None else (x.shape, x.dtype) for x in told]
        assert as_told == [None if x is None else (x.shape, x.dtype) for x in batch]


def test_a_guide_is_divided_by_records_over_all_devices():
    mesh = make_mesh(MeshConfig(2, 2, 2))
    size = SMALL.feed.global_batch_size
    guide = guide_of(size, 3)
    batch = pack_batch(
        records(size, 3, labels_N=np.zeros(size, np.uint64), guide_NSG=guide),
        SMALL.feed, fields=ALL,
    )  # fmt: skip
    on_mesh = put(batch, batch_shardings(mesh))
    assert {s.data.shape for s in on_mesh.guide_BTG.addressable_shards} == {(size // 8, 3, 4)}
    np.testing.assert_array_equal(on_mesh.guide_BTG, guide)
    assert {s.data.shape for s in on_mesh.label_B2.addressable_shards} == {(size // 8, 2)}
    assert on_mesh.own_only.shape == () and on_mesh.score_B is None and on_mesh.pooled_RL is None


@pytest.mark.slow
def test_a_step_takes_batches_with_and_without_them():
    mesh = make_mesh(MeshConfig(2))
    step = make_train_step(SMALL, mesh)
    size, losses = SMALL.feed.global_batch_size, []
    for fields in (BatchFields(), ALL):
        state = init_state(SMALL, init_params(SMALL.model, jax.random.key(0)))
        given = records(
            size, labels_N=np.arange(size, dtype=np.uint64), guide_NSG=guide_of(size, 2)
        )
        batch = put(pack_batch(given, SMALL.feed, fields=fields), batch_shardings(mesh))
        losses.append(float(step(state, batch)[1]["loss"]))
    assert losses[0] == losses[1]
