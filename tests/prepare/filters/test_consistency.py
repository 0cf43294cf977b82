"""Ranks against a NumPy loop, with ties, duplicates, several blocks and several devices."""

import jax
import numpy as np
import pytest

from jina_jax.config import ConsistencyConfig, MeshConfig
from jina_jax.devices.mesh import make_mesh
from jina_jax.prepare.filters.consistency import Ranker, Sample, _counter, keep_by_rank

SMALL = ConsistencyConfig(query_block=16, sample_block=128)


def words(numbers):
    """Text hashes that differ where the numbers do, in the second word alone."""
    numbers = np.asarray(numbers, np.uint64)
    return np.stack([np.full_like(numbers, 7), numbers], axis=1)


def unit(z):
    return (z / np.linalg.norm(z, axis=1, keepdims=True)).astype(np.float32)


def brute_force(q, p, text_of_pair, z, text_of_sample, tolerance=1e-6):
    ranks = []
    for query, passage, text in zip(q.astype(float), p.astype(float), text_of_pair, strict=True):
        own = query @ passage
        others = z.astype(float)[np.asarray(text_of_sample) != text]
        ranks.append(int((others @ query > own + tolerance).sum()))
    return ranks


@pytest.fixture(scope="module")
def pairs():
    """300 pairs over 120 texts, of which 40 have the embedding of another text."""
    rng = np.random.default_rng(0)
    z_of_text = unit(rng.standard_normal((120, 8)))
    z_of_text[80:] = z_of_text[:40]
    text = rng.integers(0, 120, 300)
    p = z_of_text[text]
    q = unit(p + 0.35 * rng.standard_normal(p.shape))
    return q, p, text


def ranks(pairs, sampled, config=SMALL, devices=8):
    q, p, text = pairs
    sample = Sample(p[sampled], words(text[sampled]))
    return Ranker(sample, config, make_mesh(MeshConfig(data=devices))).ranks(q, p, words(text))


@pytest.mark.parametrize("devices", [1, 8])
@pytest.mark.parametrize("size", [1, 127, 300])
def test_equals_brute_force(pairs, size, devices):
    q, p, text = pairs
    expected = brute_force(q, p, text, p[:size], text[:size])
    np.testing.assert_array_equal(ranks(pairs, np.arange(size), devices=devices), expected)
    if size == 300:
        assert 0.2 < (np.array(expected) < 2).mean() < 0.8  # Both decisions occur.


def test_block_sizes_change_nothing(pairs):
    other = ConsistencyConfig(query_block=300, sample_block=256)
    everything = np.arange(300)
    np.testing.assert_array_equal(
        ranks(pairs, everything, other, devices=1), ranks(pairs, everything)
    )


def test_by_hand():
    # The query's cosines: own 0.6, the samples 0.8, 0.6 (a tie), 1.0 and 0.0.
    q, p = np.array([[1, 0]], np.float32), np.array([[0.6, 0.8]], np.float32)
    z = np.array([[0.8, 0.6], [0.6, -0.8], [1, 0], [0, 1]], np.float32)
    ranker = Ranker(Sample(z, words([1, 2, 3, 4])), SMALL, make_mesh())
    np.testing.assert_array_equal(ranker.ranks(q, p, words([0])), [2])
    # Own text is left out wherever it is, by its hash and not by its score.
    np.testing.assert_array_equal(ranker.ranks(q, p, words([3])), [1])


def test_padding_is_never_above():
    # A padded row of zeros would score 0, above the pair's own -1.
    q, p = np.array([[1, 0]], np.float32), np.array([[-1, 0]], np.float32)
    ranker = Ranker(Sample(p, words([5])), SMALL, make_mesh())
    np.testing.assert_array_equal(ranker.ranks(q, p, words([0])), [0])


def test_an_embedding_equal_but_for_rounding_is_not_above():
    rng = np.random.default_rng(0)
    q = p = unit(rng.standard_normal((1, 384)))
    copies = (p * np.float32(1 + 2**-22)).repeat(3, axis=0)
    sample = Sample(copies, words([1, 2, 3]))
    got = Ranker(sample, SMALL, make_mesh()).ranks(q, p, words([0]))
    np.testing.assert_array_equal(got, [0])
    exact = ConsistencyConfig(tie_tolerance=0.0)
    np.testing.assert_array_equal(Ranker(sample, exact, make_mesh()).ranks(q, p, words([0])), [3])


def test_hashes_that_share_a_word_are_different_texts():
    q, p = np.array([[1, 0]], np.float32), np.array([[0, 1]], np.float32)
    for own in ([7, 9], [6, 8], [0, 7]):
        sample = Sample(q, np.array([[7, 8]], np.uint64))
        ranker = Ranker(sample, SMALL, make_mesh())
        np.testing.assert_array_equal(ranker.ranks(q, p, np.array([own], np.uint64)), [1])


def test_empty_sample_and_no_pairs():
    nothing, no_hash = np.zeros((0, 2), np.float32), np.zeros((0, 2), np.uint64)
    q = np.array([[1, 0]], np.float32)
    np.testing.assert_array_equal(
        Ranker(Sample(nothing, no_hash), SMALL, make_mesh()).ranks(q, q, words([1])), [0]
    )
    assert (
        len(Ranker(Sample(q, words([1])), SMALL, make_mesh()).ranks(nothing, nothing, no_hash)) == 0
    )


def test_temporaries_do_not_grow_with_the_sample():
    mesh, rows = make_mesh(), 64

    def temporary_bytes(sampled, block):
        shapes = [(rows, 8), (rows, 8), (rows,), (sampled, 8), (sampled,), ()]
        kinds = [np.float32, np.float32, np.int32, np.float32, np.int32, np.float32]
        like = [jax.ShapeDtypeStruct(s, k) for s, k in zip(shapes, kinds, strict=True)]
        return _counter(mesh, block).lower(*like).compile().memory_analysis().temp_size_in_bytes

    small = temporary_bytes(8 * 128 * 2, 128)
    assert temporary_bytes(8 * 128 * 512, 128) == small
    assert small < 4 * rows * 128 * 4
    assert temporary_bytes(8 * 1024, 1024) > 2 * small  # The measure sees a larger block.


def test_fewer_than_top_k_above_stay():
    rank = np.array([0, 1, 2, 3], np.int32)
    np.testing.assert_array_equal(
        keep_by_rank(rank, ConsistencyConfig(top_k=2)), [True, True, False, False]
    )
