"""The numbers of rows that are planned for a run, beside those that its batches need."""

import numpy as np
import pytest

from jina_jax.config import FeedConfig
from jina_jax.feed.buckets import RowCount, count_rows, plan_buckets
from jina_jax.feed.packing import bucket_rows, place
from jina_jax.shards.array_record import TokenisedRecords

# Median tokens of queries and positives, and the deviations of their logarithms.
SOURCES = [
    (8, 0.4, 75, 0.4), (11, 0.3, 110, 0.5), (24, 0.4, 120, 0.5), (12, 0.3, 40, 0.6),
    (14, 0.3, 30, 0.5), (16, 0.6, 80, 0.9), (12, 0.3, 12, 0.3), (128, 0.5, 60, 0.3),
    (16, 0.4, 10, 0.4), (18, 0.4, 18, 0.4), (35, 0.4, 12, 0.4), (6, 0.5, 25, 0.5),
]  # fmt: skip


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


@pytest.mark.parametrize("size", [64, 1024])
def test_batches_of_many_sources_fit_few_numbers_of_rows(size):
    rng = np.random.default_rng(0)
    feed = FeedConfig(global_batch_size=size, query_tokens=128, row_tokens=128)
    counts = [count_rows(records(lengths(rng, s, 2048)), feed) for s in SOURCES]
    buckets = plan_buckets(counts, [1 / len(SOURCES)] * len(SOURCES), 8)
    assert set(buckets.rows) == {2} and len(buckets.rows[2]) <= 6
    assert all(rows % 8 == 0 for rows in buckets.rows[2])
    needed, given, singly = 0, 0, set()
    for source in SOURCES:
        for _ in range(20):
            n = place(lengths(rng, source, size).ravel(), row_tokens=128, texts_per_row=16).num_rows
            rows = bucket_rows(n, 8, buckets.rows[2])
            assert rows in buckets.rows[2]
            needed, given = needed + n, given + rows
            singly.add(bucket_rows(n, 8))
    assert len(singly) > 6
    assert buckets.empty_share == pytest.approx(1 - needed / given, abs=0.02)
    assert buckets.empty_share < 0.16


def test_rows_of_a_batch_by_hand():
    # Four texts of 30 tokens a row of 128, 8 of whose positions stay empty: 100 rows of 200 pairs.
    feed = FeedConfig(global_batch_size=200, query_tokens=30, positive_tokens=30, row_tokens=128)
    count = count_rows(records(np.array([[30, 99], [99, 30]])), feed)
    assert count == RowCount(texts=2, mean=100.0, deviation=0.0)
    # No hard negative in one of two records: three texts and two.
    feed = FeedConfig(global_batch_size=4, query_tokens=8, positive_tokens=8, row_tokens=8)
    count = count_rows(records(np.array([[8, 8, 8], [8, 8, 0]])), feed)
    assert count == RowCount(texts=3, mean=10.0, deviation=2 * 4 / 8)


def test_the_fewest_programs_that_are_good_enough_by_hand():
    def rows(*counts, shares):
        return plan_buckets([RowCount(*c) for c in counts], shares, 8)

    assert rows((2, 97, 0), shares=[1.0]) == ({2: (104,)}, pytest.approx(1 - 97 / 104))
    # 4 and 1 of 208 rows are empty; then 8 and 4.
    assert rows((2, 100, 0), (2, 103, 0), shares=[0.5, 0.5]).rows == {2: (104,)}
    assert rows((2, 96, 0), (2, 100, 0), shares=[0.5, 0.5]).rows == {2: (96, 104)}
    assert rows((2, 48, 0), (2, 96, 0), shares=[0.5, 0.5]).rows == {2: (48, 96)}
    # Rare batches may be empty to the half.
    assert rows((2, 48, 0), (2, 96, 0), shares=[0.01, 0.99]).rows == {2: (96,)}
    # Sources that are not drawn need none; pairs and triplets share none.
    found = rows((2, 48, 0), (2, 96, 0), (3, 96, 0), shares=[0.5, 0.0, 0.5])
    assert found.rows == {2: (48,), 3: (96,)}
    many = [(texts, 96, 0) for texts in range(2, 10)]
    assert rows(*many, shares=[1 / 8] * 8).rows == dict.fromkeys(range(2, 10), (96,))


def test_a_batch_beyond_all_that_was_planned_still_fits():
    assert bucket_rows(97, 8, (48, 96)) == 104
    assert bucket_rows(96, 8, (48, 96)) == 96
    assert bucket_rows(3, 8, (48, 96)) == 48
