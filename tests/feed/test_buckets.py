"""The numbers of rows that are planned for a run, beside those that its batches need."""

import dataclasses
import math

import numpy as np
import pytest

from jina_jax.config import FeedConfig
from jina_jax.feed.batch import RecordKind
from jina_jax.feed.buckets import RowCount, count_rows, plan_buckets
from jina_jax.feed.order import strata, window_records
from jina_jax.feed.packing import place
from jina_jax.shards.array_record import TokenisedRecords

# Median tokens of queries and positives, and the deviations of their logarithms.
SOURCES = [
    (8, 0.4, 75, 0.4), (11, 0.3, 110, 0.5), (24, 0.4, 120, 0.5), (12, 0.3, 40, 0.6),
    (14, 0.3, 30, 0.5), (16, 0.6, 80, 0.9), (12, 0.3, 12, 0.3), (128, 0.5, 60, 0.3),
    (16, 0.4, 10, 0.4), (18, 0.4, 18, 0.4), (35, 0.4, 12, 0.4), (6, 0.5, 25, 0.5),
]  # fmt: skip


PAIRS, TRIPLETS, SCORED = RecordKind(2), RecordKind(3), RecordKind(2, is_scored=True)


def lengths(rng, source, records):
    query, of_query, positive, of_positive = source
    columns = (
        rng.lognormal(np.log(m), d, records)
        for m, d in ((query, of_query), (positive, of_positive))
    )
    return np.clip(np.stack(list(columns), axis=1), 3, 128).astype(np.int64)


def records(lengths_NS):
    nothing = np.zeros(0)
    return TokenisedRecords(nothing, nothing, lengths_NS, nothing)


@pytest.mark.parametrize(("size", "groups"), [(64, 1), (1024, 1), (1024, 16)])
def test_batches_of_many_sources_fit_few_numbers_of_rows(size, groups):
    rng = np.random.default_rng(0)
    feed = FeedConfig(size, query_tokens=128, row_tokens=128, groups=groups)
    counts = [count_rows(records(lengths(rng, s, 2048)), feed) for s in SOURCES]
    multiple = math.lcm(8, groups)
    buckets = plan_buckets(counts, [1 / len(SOURCES)] * len(SOURCES), multiple)
    assert set(buckets.rows) == {PAIRS} and len(buckets.rows[PAIRS]) <= 6
    assert all(rows % multiple == 0 for rows in buckets.rows[PAIRS])
    real, given, too_many = 0, 0, 0
    for source, rows in zip(SOURCES, buckets.rows_S, strict=True):
        assert rows in buckets.rows[PAIRS]
        # A window of as many batches as the order holds at least, dealt as it deals.
        pairs = size // groups
        window = lengths(rng, source, window_records(groups, pairs, 1))
        dealt = strata(window.sum(1), pairs, rng.integers(0, 2**63, len(window)))
        for group in window[dealt].reshape(-1, pairs, 2):
            needed = place(group.ravel(), row_tokens=128, texts_per_row=16).num_rows
            real, given = real + needed, given + rows // groups
            too_many += needed > rows // groups
    assert buckets.empty_share == pytest.approx(1 - real / given, abs=0.03)
    assert buckets.empty_share < 0.16
    assert too_many < 0.08 * 16 * len(SOURCES)


def test_rows_of_a_batch_by_hand():
    # Four texts of 30 tokens a row of 128, 8 of whose positions stay empty: 100 rows of 200 pairs.
    feed = FeedConfig(global_batch_size=200, query_tokens=30, positive_tokens=30, row_tokens=128)
    of_two = records(np.array([[30, 99], [99, 30]]))
    assert count_rows(of_two, feed) == RowCount(PAIRS, mean=100.0, most=100)
    # In two groups of 100 pairs, of 50 rows each; in eight of 25, of 12.5 each.
    for groups, rows in ((2, 100), (8, 104)):
        of_groups = dataclasses.replace(feed, groups=groups)
        assert count_rows(of_two, of_groups) == RowCount(PAIRS, mean=float(rows), most=rows)
    # No hard negative in one of two records: three texts and two, and room for three of all.
    feed = FeedConfig(
        global_batch_size=4, query_tokens=8, positive_tokens=8, row_tokens=8, texts_per_row=1
    )
    found = count_rows(records(np.array([[8, 8, 8], [8, 8, 0]])), feed)
    assert found.kind == TRIPLETS and 9.5 < found.mean < 10.5 and found.most == 12


def test_the_fewest_programs_that_are_good_enough_by_hand():
    def rows(*counts, shares):
        return plan_buckets([RowCount(*c) for c in counts], shares, 8)

    short, long = (PAIRS, 48.0, 48), (PAIRS, 96.0, 96)
    found = rows((PAIRS, 95.0, 97), shares=[1.0])
    assert found == ((104,), (PAIRS,), pytest.approx(1 - 95 / 104))
    # 4 and 1 of 208 rows are empty; then 8 and 4.
    counts = (PAIRS, 100.0, 100), (PAIRS, 103.0, 103)
    assert rows(*counts, shares=[0.5, 0.5]).rows == {PAIRS: (104,)}
    counts = (PAIRS, 96.0, 96), (PAIRS, 100.0, 100)
    found = rows(*counts, shares=[0.5, 0.5])
    assert found.rows == {PAIRS: (96, 104)} and found.rows_S == (96, 104)
    assert rows(long, short, shares=[0.5, 0.5]).rows_S == (96, 48)
    # Rare batches may be empty to the half.
    assert rows(short, long, shares=[0.01, 0.99]).rows_S == (96, 96)
    # Sources that are not drawn need none; pairs, triplets and scored pairs share none.
    others = (TRIPLETS, 96.0, 96), (SCORED, 40.0, 40)
    found = rows(short, long, *others, shares=[0.4, 0.0, 0.4, 0.2])
    assert found.rows == {PAIRS: (48,), SCORED: (40,), TRIPLETS: (96,)}
    assert found.rows_S == (48, 0, 96, 40)
    many = [(RecordKind(texts), 96.0, 96) for texts in range(2, 10)]
    expected = {RecordKind(texts): (96,) for texts in range(2, 10)}
    assert rows(*many, shares=[1 / 8] * 8).rows == expected
