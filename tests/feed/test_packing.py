import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jina_jax.feed.packing import bucket_rows, fill, place, place_within


def _filled(texts, placement, row_tokens):
    lengths = np.array([len(t) for t in texts], int)
    flat = np.concatenate([*texts, np.zeros(0, int)])
    return fill(
        flat.astype(np.uint16), np.cumsum(lengths) - lengths, lengths, placement,
        row_tokens=row_tokens,
    )  # fmt: skip


def test_hand_worked_rows():
    # Longest first: 6 opens row 0, 5 row 1, 3 fits row 1 best (3 free, not 2), 2 fits row 0.
    p = place(np.array([2, 5, 6, 3]), row_tokens=8, texts_per_row=4)
    assert p.num_rows == 2
    assert p.row_N.tolist() == [0, 1, 0, 1]
    assert p.slot_N.tolist() == [1, 0, 0, 1]
    assert p.start_N.tolist() == [6, 0, 0, 5]


def test_fill_hand_worked():
    texts = [np.array([7, 1]), np.array([8, 9, 1])]
    p = place(np.array([2, 3]), row_tokens=6, texts_per_row=2)
    ids, segments = _filled(texts, p, 6)
    assert ids.tolist() == [[8, 9, 1, 7, 1, 0]]
    assert segments.tolist() == [[1, 1, 1, 2, 2, 0]]


@given(st.lists(st.integers(1, 32), max_size=80), st.integers(1, 6))
def test_every_token_is_placed_once_and_in_order(lengths, texts_per_row):
    texts = [100 * i + np.arange(1, n + 1) for i, n in enumerate(lengths)]
    p = place(np.array(lengths, int), row_tokens=32, texts_per_row=texts_per_row)
    ids, segments = _filled(texts, p, 32)
    assert (segments > 0).sum() == sum(lengths)
    assert segments.max(initial=0) <= texts_per_row
    for text, row, slot in zip(texts, p.row_N, p.slot_N):
        assert np.array_equal(ids[row][segments[row] == slot + 1], text)


def test_packs_real_lengths_tightly():
    lengths = np.clip(np.random.default_rng(0).lognormal(3, 0.8, 2000), 2, 128).astype(int)
    p = place(lengths, row_tokens=128, texts_per_row=16)
    assert lengths.sum() / (p.num_rows * 128) > 0.97


def test_one_text_per_row_pads_each():
    assert place(np.array([1, 2, 3]), row_tokens=8, texts_per_row=1).num_rows == 3


@pytest.mark.parametrize(
    ("rows", "multiple", "bucket"),
    [
        (1, 8, 8),
        (8, 8, 8),
        (9, 8, 16),
        (64, 8, 64),
        (65, 8, 72),
        (1000, 8, 1024),
        (1025, 8, 1152),
        (19, 1, 20),
    ],
)
def test_bucket_rows(rows, multiple, bucket):
    assert bucket_rows(rows, multiple) == bucket


@given(st.integers(1, 100_000), st.sampled_from([1, 8, 24]))
def test_buckets_add_an_eighth_at_most(rows, multiple):
    bucket = bucket_rows(rows, multiple)
    assert bucket % multiple == 0
    assert rows <= bucket < rows + max(multiple, rows / 8 + 1)


@given(st.lists(st.integers(1, 32), min_size=1, max_size=60), st.integers(1, 6), st.integers(0, 4))
def test_texts_are_cut_to_the_longest_limit_that_fits(lengths, texts_per_row, spare):
    options = {"row_tokens": 32, "texts_per_row": texts_per_row}
    lengths = np.array(lengths)
    rows = -(-len(lengths) // texts_per_row) + spare
    kept, placement = place_within(lengths, rows, **options)
    assert placement.num_rows <= rows
    if place(lengths, **options).num_rows <= rows:
        assert np.array_equal(kept, lengths)
    else:
        assert np.array_equal(kept, np.minimum(lengths, kept.max())) and kept.max() < lengths.max()
        assert place(np.minimum(lengths, kept.max() + 1), **options).num_rows > rows
    assert place_within(lengths, 0, **options)[1].num_rows == place(lengths, **options).num_rows
