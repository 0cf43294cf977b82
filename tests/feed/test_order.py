"""The order of a source: every record once an epoch, in lanes, windows and blocks."""

from itertools import pairwise

import numpy as np
import pytest

from jina_jax.feed.order import Order, block_records, strata, window_records

CASES = [
    # records, groups, pairs of a group, mixed at a time
    (64, 1, 8, 1), (67, 1, 8, 64), (997, 4, 5, 100), (1000, 8, 4, 4096), (10_000, 16, 2, 1024),
    (33, 4, 8, 1),
]  # fmt: skip


def window_of(order, group, epoch, window):
    """Records of a window in the order they are dealt in."""
    runs = [np.arange(*run) for run in order.runs(group, epoch, window)]
    records = np.concatenate(runs)
    return records[order.deal(group, epoch, window, 1 + records % 7)]


def drawn(order, group, batches):
    """Records of a group of some batches, one after another."""
    windows = {}
    for ordinal in batches:
        pieces = order.pieces(group, ordinal)
        for key in {(p.epoch, p.window) for p in pieces} - windows.keys():
            windows[key] = window_of(order, group, *key)
        parts = [windows[p.epoch, p.window][p.start : p.stop] for p in pieces]
        yield np.concatenate(parts)


@pytest.mark.parametrize(("records", "groups", "pairs", "mixed"), CASES)
def test_each_lane_has_its_records_once_an_epoch_and_the_lanes_have_all(
    records, groups, pairs, mixed
):
    order = Order(records, groups, pairs, mixed, seed=3, source=1)
    of_epoch = [[] for _ in range(3)]
    for group in range(groups):
        first, end = order.lane(group)
        size = end - first
        found = list(drawn(order, group, range(-(-3 * size // pairs))))
        assert all(len(of_group) == pairs for of_group in found)
        for epoch in range(3):
            of_epoch[epoch].append(np.concatenate(found)[epoch * size : (epoch + 1) * size])
    for lanes in of_epoch:
        assert sorted(np.concatenate(lanes)) == list(range(records))
    assert not np.array_equal(np.concatenate(of_epoch[0]), np.concatenate(of_epoch[1]))


def test_whole_batches_lie_in_one_window_but_where_an_epoch_ends():
    order = Order(1003, 2, 10, 160, seed=0, source=0)
    window = window_records(2, 10, 160)
    for group in range(2):
        first, end = order.lane(group)
        for ordinal in range(400):
            pieces = order.pieces(group, ordinal)
            at_end = ordinal * 10 // (end - first) != (ordinal * 10 + 9) // (end - first)
            assert len(pieces) == 1 + at_end
            assert all(piece.stop <= window + 10 for piece in pieces)


def test_windows_are_read_in_long_runs_from_many_places():
    order = Order(1_000_000, 4, 16, 65_536, seed=1, source=0)
    runs = order.runs(2, epoch=0, window=3)
    assert sum(stop - start for start, stop in runs) == 65_536 // 4
    assert len(runs) <= 65_536 // 4 // block_records(1_000_000) + 2
    firsts = np.array([start for start, _ in runs])
    assert firsts.min() < 200_000 and firsts.max() > 800_000
    assert any(b < a for a, b in pairwise(firsts))


@pytest.mark.parametrize("change", [{"seed": 4}, {"source": 2}])
def test_the_order_is_another_for_another_seed_or_source(change):
    given = {"seed": 3, "source": 1}
    orders = (Order(5000, 2, 50, 1000, **of) for of in (given, given | change))
    one, other = (np.concatenate(list(drawn(order, 0, [7]))) for order in orders)
    assert len(np.intersect1d(one, other)) < 25


def test_groups_of_a_window_have_as_many_tokens():
    rng = np.random.default_rng(0)
    length_N = np.exp(rng.normal(4, 0.8, 16 * 64)).astype(int)
    dealt = strata(length_N, 64, rng.integers(0, 2**63, len(length_N)))
    assert sorted(dealt) == list(range(len(length_N)))
    of_groups = length_N[dealt].reshape(16, 64).sum(1)
    at_random = rng.permutation(length_N).reshape(16, 64).sum(1)
    assert of_groups.std() < at_random.std() / 4
    # Each has one of each stratum.
    rank = np.empty(len(length_N), int)
    rank[np.argsort(length_N, kind="stable")] = np.arange(len(length_N))
    strata_of = np.sort(rank[dealt].reshape(16, 64) // 16, axis=1)
    assert (strata_of == np.arange(64)).all()


def test_neighbours_of_a_source_come_into_a_batch_by_chance_alone():
    order = Order(40_000, 4, 64, 8192, seed=5, source=0)
    batches = range(100)
    lanes = [list(drawn(order, group, batches)) for group in range(4)]
    found = [np.sort(np.concatenate(of_batch)) for of_batch in zip(*lanes, strict=True)]
    near = sum(int(np.count_nonzero(np.diff(records) == 1)) for records in found)
    # Both are in the same window, nearly always, which gives a batch one record of so many.
    expected = len(batches) * 4 * 64 / (window_records(4, 64, 8192) / 64)
    assert 0.8 * expected < near < 1.2 * expected
