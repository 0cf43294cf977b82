import dataclasses
import itertools

import numpy as np
import pytest

from jina_jax.config import FeedConfig
from jina_jax.errors import UserError
from jina_jax.feed.batch import pack_batch
from jina_jax.feed.mixture import interleave
from jina_jax.feed.pipeline import Feed, batches
from jina_jax.shards.array_record import ShardWriter, TokenisedRecords, encode_record
from jina_jax.shards.shard_set import ShardSet
from tests.identities import numbers
from tests.marks import some_slow

FEED = FeedConfig(
    global_batch_size=8, query_tokens=6, positive_tokens=10, row_tokens=16, texts_per_row=4
)
SIZES = {"long": 50, "short": 30}


def text(source, record, position):
    """A text whose ids tell where it is from: source, record, position, then end-of-sequence."""
    return [100 + source, 200 + record, 300 + position] + [7] * (record % 9) + [1]


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shards")
    found = {}
    for s, (name, size) in enumerate(SIZES.items()):
        with ShardWriter(folder / name) as writer:
            for r in range(size):
                hashes = [bytes([s, r, p] + [0] * 13) for p in (0, 1)]
                writer.write(encode_record(hashes, [text(s, r, 0), text(s, r, 1)]))
        found[name] = ShardSet([folder / name])
    return found


@pytest.fixture(scope="module")
def triplets(tmp_path_factory):
    """Records of a query, a positive and up to two hard negatives; every third has one."""
    path = tmp_path_factory.mktemp("triplets") / "shard"
    with ShardWriter(path) as writer:
        for r in range(40):
            texts = [text(2, r, position) for position in range(4)]
            if r % 3 == 0:
                texts[3] = []
            hashes = [bytes([2, r, p if texts[p] else 0] + [0] * 13) for p in range(4)]
            writer.write(encode_record(hashes, texts))
    return ShardSet([path])


def mix(weights, num_steps, **limits):
    return interleave([(0, np.array(weights))], num_steps, **limits)


def drawn(sources, mixture, config=FEED, seed=3, groups=None, **options):
    feed = Feed(sources, mixture, config, seed, **options)
    return lambda start=0: list(batches(feed, start=start, groups=groups))


def run(sources, start=0, num_steps=24, seed=3, weights=(2.0, 1.0), **changes):
    config = dataclasses.replace(FEED, **changes)
    return drawn(sources, mix(weights, num_steps), config, seed)(start)


def assert_equal(one, other):
    assert [b.step for b in one] == [b.step for b in other]
    for a, b in zip(one, other):
        assert a.source == b.source
        assert np.array_equal(a.record_B, b.record_B)
        for x, y in zip(a.arrays, b.arrays):
            np.testing.assert_array_equal(x, y)


def test_resuming_is_starting_later(sources):
    assert_equal(run(sources)[9:], run(sources, start=9))


@pytest.mark.parametrize("workers", some_slow([0], [0, 2]))
def test_resuming_a_changing_mixture_anywhere_gives_the_same(sources, workers):
    stages = [(0, np.array([3.0, 1.0])), (16, np.array([1.0, 4.0]))]
    # 30 records last for 7 batches of 8 in two epochs.
    mixture = interleave(stages, 30, limit_N=np.array([np.inf, 7]), linear=True)
    config = dataclasses.replace(FEED, workers=workers)
    of_run = drawn(sources, mixture, config)
    whole = of_run()
    rows = np.concatenate([b.record_B for b in whole if b.source == 1])
    assert len(whole) == 30 and len(rows) == 56
    assert np.bincount(rows, minlength=30).max() == 2
    for start in (1, 15, 22) if workers else range(30):
        assert_equal(whole[start:], of_run(start))


def test_a_longer_run_begins_with_the_same_batches(sources):
    assert_equal(run(sources), run(sources, num_steps=60)[:24])


def test_worker_processes_give_the_same_batches(sources):
    assert_equal(run(sources), run(sources, workers=2))


def test_the_seed_changes_the_order(sources):
    one, other = run(sources), run(sources, seed=4)
    assert any(not np.array_equal(a.record_B, b.record_B) for a, b in zip(one, other))


def test_each_epoch_has_every_row_once(sources):
    found = run(sources, num_steps=75)
    for source, size in enumerate(SIZES.values()):
        rows = np.concatenate([b.record_B for b in found if b.source == source])
        for epoch in range(len(rows) // size):
            assert sorted(rows[epoch * size : (epoch + 1) * size]) == list(range(size))
        assert not np.array_equal(rows[:size], rows[size : 2 * size])


def test_batches_hold_the_texts_of_their_records(sources):
    for batch in run(sources):
        a = batch.arrays
        for i, record in enumerate(batch.record_B):
            for position, limit in enumerate((6, 10)):
                row, slot = divmod(int(a.slot_BT[i, position]), FEED.texts_per_row)
                whole = text(batch.source, record, position)
                kept = whole if len(whole) <= limit else [*whole[: limit - 1], 1]
                assert a.ids_RL[row][a.segments_RL[row] == slot + 1].tolist() == kept


def test_batches_of_triplets_hold_their_negatives(triplets):
    found = drawn({"t": triplets}, mix([1.0], 5))()
    for batch in found:
        a, identity_BT = batch.arrays, numbers(batch.arrays)
        assert a.slot_BT.shape == (8, 4)
        kept_tokens = 0
        for i, record in enumerate(batch.record_B):
            has = [True, True, True, record % 3 != 0]
            assert (a.slot_BT[i] >= 0).tolist() == (identity_BT[i] >= 0).tolist() == has
            assert len(set(identity_BT[i].tolist())) == 4
            for position in range(2, 4):
                if not has[position]:
                    continue
                row, slot = divmod(int(a.slot_BT[i, position]), FEED.texts_per_row)
                whole = text(2, record, position)
                kept = whole if len(whole) <= 10 else [*whole[:9], 1]
                assert a.ids_RL[row][a.segments_RL[row] == slot + 1].tolist() == kept
            kept_tokens += sum(
                min(len(text(2, record, p)), 10 if p else 6) for p in range(4) if has[p]
            )
        assert (a.segments_RL > 0).sum() == kept_tokens
    assert any((b.arrays.slot_BT < 0).any() for b in found)


def test_a_run_mixes_pairs_and_triplets_but_no_batch_does(sources, triplets):
    mixed = {"pairs": sources["long"], "triplets": triplets}
    mixture = mix([2.0, 1.0], 12)
    found = drawn(mixed, mixture)()
    assert [b.arrays.slot_BT.shape[1] for b in found] == [[2, 4][b.source] for b in found]
    assert sum(b.source for b in found) == 4
    assert_equal(found[5:], drawn(mixed, mixture)(5))


def test_mix_is_within_one_percent_of_the_weights(sources):
    found = run(sources, num_steps=1000, weights=(0.7, 0.3))
    assert abs(np.mean([b.source == 0 for b in found]) - 0.7) < 0.01


def test_equal_texts_have_equal_identity(sources):
    records = sources["long"].read([4, 5, 4])
    identity = numbers(pack_batch(records, FEED))
    assert np.array_equal(identity[0], identity[2])
    assert len(set(identity.ravel().tolist())) == 4


def test_texts_that_the_model_sees_alike_have_equal_identity():
    def records(*texts, hashes):
        lengths = np.array([[len(t) for t in texts]]).reshape(-1, 2)
        ends = np.cumsum(lengths).reshape(lengths.shape)
        numbers = np.array(hashes, np.uint64).repeat(2).reshape(-1, 2, 2)
        return TokenisedRecords(np.concatenate(texts), ends - lengths, lengths, numbers)

    config = dataclasses.replace(FEED, query_tokens=6, positive_tokens=4)
    long, longer = [5, 6, 7, 8, 1], [5, 6, 7, 9, 9, 1]  # Both are cut to 5 6 7 1.
    other, reordered = [5, 7, 6, 1], [8, 5, 6, 1]
    found = numbers(pack_batch(
        records(
            [2, 1], long, [3, 1], longer, [4, 1], other, reordered, [5, 6, 7, 1], hashes=range(8)
        ),
        config,
    ))  # fmt: skip
    assert found[0, 1] == found[1, 1] == found[3, 1]
    assert len(set(found.ravel().tolist())) == 6
    # By the text, too: as a query it is not cut. So the three are one.
    given = records(long, [2, 1], [3, 1], long, hashes=[7, 1, 2, 7])
    found = numbers(pack_batch(given, config))
    assert found[0, 0] == found[1, 1]
    given = records(long, [2, 1], [3, 1], long, [4, 1], longer, hashes=[7, 1, 2, 7, 3, 9])
    found = numbers(pack_batch(given, config))
    assert found[0, 0] == found[1, 1] == found[2, 1]


@pytest.mark.parametrize(
    ("hosts", "workers"), some_slow([(4, 0), (2, 2)], itertools.product((2, 4), (0, 2)))
)
def test_a_host_makes_its_groups_alone_and_those_of_all_are_the_batch(sources, hosts, workers):
    config = dataclasses.replace(FEED, groups=4, workers=workers)
    mixture, rows = mix((2.0, 1.0), 20), (12, 12)
    whole = drawn(sources, mixture, config, rows=rows)()
    shares = np.split(np.arange(4), hosts)
    parts = [drawn(sources, mixture, config, groups=own.tolist(), rows=rows)(2) for own in shares]
    for batch, *of_hosts in zip(whole[2:], *parts, strict=True):
        assert {part.parts for part in of_hosts} == {hosts} and batch.parts == 1
        assert np.array_equal(batch.record_B, np.concatenate([p.record_B for p in of_hosts]))
        for whole_array, *arrays in zip(batch.arrays, *(p.arrays for p in of_hosts), strict=True):
            if whole_array is not None:
                np.testing.assert_array_equal(whole_array, np.concatenate(arrays))


def test_texts_of_a_group_lie_in_its_own_rows(sources):
    groups, rows = 4, 16
    for batch in drawn(sources, mix((1.0, 1.0), 12), dataclasses.replace(FEED, groups=groups),
                       rows=(rows, rows))():  # fmt: skip
        a = batch.arrays
        assert len(a.ids_RL) == rows and a.slot_BT.max() < rows // groups * FEED.texts_per_row
        for i, record in enumerate(batch.record_B):
            for position, limit in enumerate((6, 10)):
                row, slot = divmod(int(a.slot_BT[i, position]), FEED.texts_per_row)
                row += i // 2 * (rows // groups)
                whole = text(batch.source, record, position)
                kept = whole if len(whole) <= limit else [*whole[: limit - 1], 1]
                assert a.ids_RL[row][a.segments_RL[row] == slot + 1].tolist() == kept


def test_where_rows_are_too_few_the_longest_texts_are_cut(sources):
    config = dataclasses.replace(FEED, groups=2)
    roomy, tight = (
        drawn(sources, mix((1.0, 1.0), 10), config, rows=(rows, rows))() for rows in (12, 6)
    )
    cut = 0
    for whole, batch in zip(roomy, tight, strict=True):
        assert np.array_equal(whole.record_B, batch.record_B) and whole.cut_tokens == 0
        assert len(batch.arrays.ids_RL) == 6
        for group in np.split(np.arange(8), 2):
            before, after = (lengths_of(b.arrays, group) for b in (whole, batch))
            limit = after.max() if (after < before).any() else before.max()
            assert np.array_equal(after, np.minimum(before, limit))
        cut += batch.cut_tokens
        before, after = (np.count_nonzero(b.arrays.segments_RL) for b in (whole, batch))
        assert batch.cut_tokens == before - after
        # What is cut still ends in its end-of-sequence.
        a = batch.arrays
        is_last = a.segments_RL != np.pad(a.segments_RL, ((0, 0), (0, 1)))[:, 1:]
        assert (a.ids_RL[is_last & (a.segments_RL > 0)] == 1).all()
    assert cut > 0


def lengths_of(arrays, records):
    """Tokens of the texts of some records of one group."""
    rows = np.split(arrays.segments_RL, 2)[records[0] // 4]
    row, slot = np.divmod(arrays.slot_BT[records], FEED.texts_per_row)
    return (rows[row] == slot[..., None] + 1).sum(-1)


def test_a_source_smaller_than_a_batch_is_refused(sources):
    with pytest.raises(UserError, match="'short' has 30 training records, fewer than"):
        run(sources, global_batch_size=40)
