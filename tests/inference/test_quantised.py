import subprocess
import sys

import numpy as np
import pytest
from sentence_transformers.util.quantization import quantize_embeddings

from jina_jax.errors import UserError
from jina_jax.inference import embedder as module
from jina_jax.inference.embedder import Embedder
from jina_jax.inference.quantised import quantize, ranges_of, restore, rounded
from tests.random_texts import texts

QUANTISED = ["int8", "uint8", "binary", "ubinary"]


def vectors(count, dimensions=60, seed=0):
    """Unit vectors, with a dimension that has one value alone."""
    z_ND = np.random.default_rng(seed).normal(size=(count, dimensions)).astype(np.float32)
    z_ND[:, 3] = 0.0
    return z_ND / np.linalg.norm(z_ND, axis=1, keepdims=True)


@pytest.mark.parametrize("precision", QUANTISED)
def test_the_bytes_are_those_of_sentence_transformers(precision):
    z_ND = vectors(200)
    for given in (None, ranges_of(vectors(150, seed=1))):  # beyond which some values lie
        expected = quantize_embeddings(z_ND, precision, ranges=given)
        found = quantize(z_ND, precision, given)
        assert found.dtype == expected.dtype
        np.testing.assert_array_equal(found, expected)
    assert (found.min(), found.max()) == ((-128, 127) if found.dtype == np.int8 else (0, 255))
    np.testing.assert_array_equal(
        ranges_of(z_ND), np.vstack([np.min(z_ND, axis=0), np.max(z_ND, axis=0)])
    )


def test_restored_values_lie_in_the_middle_of_their_part():
    z_ND = vectors(100)
    ranges_2D = ranges_of(z_ND)
    half_D = (ranges_2D[1] - ranges_2D[0]) / 255 / 2
    for precision in ("int8", "uint8"):
        found = restore(quantize(z_ND, precision, ranges_2D), precision, 60, ranges_2D)
        assert (np.abs(found - z_ND) <= 1.01 * half_D + 1e-7).all()
        assert abs((found - z_ND).mean()) < 0.05 * half_D.mean()  # to neither side
        np.testing.assert_array_equal(found[:, 3], z_ND[:, 3])
    for precision in ("binary", "ubinary"):
        found = restore(quantize(z_ND, precision), precision, 60)
        np.testing.assert_array_equal(found, np.where(z_ND > 0, 1, -1))


def test_one_embedding_is_no_range():
    with pytest.raises(UserError, match="int8 of one embedding alone has no range"):
        quantize(vectors(1), "int8")
    assert quantize(vectors(1), "int8", ranges_of(vectors(9))).shape == (1, 60)


def test_a_word_that_is_no_precision_is_refused_with_those_that_are():
    code = (  # Without the checks of types that tests have.
        "import numpy as np; from jina_jax.inference.quantised import quantize; "
        "quantize(np.ones((2, 3), np.float32), 'int4')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "UserError: no precision 'int4'; there are float32, float16, int8, uint8" in done.stderr


def test_what_lies_outside_the_ranges_counts_to_the_outermost_part():
    first, second = vectors(64), 2 * vectors(8, seed=1)
    ranges = ranges_of(first)
    one, other = (rounded(z, "int8", ranges, normalize=False) for z in (first, second))
    assert 1e-5 < np.abs(one - first).max() < 5e-3
    assert other.max() <= first.max() + 5e-3 < second.max()


def test_the_first_block_gives_the_ranges_of_all(exported, monkeypatch):
    monkeypatch.setattr(module, "TEXTS_AT_ONCE", 16)
    embedder, some = Embedder.load(exported), texts(40, seed=3)
    z_ND = embedder.encode(some)
    expected = rounded(z_ND, "int8", ranges_of(z_ND[:16]), normalize=True)
    found = embedder.at("int8").encode(some)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    other = rounded(z_ND, "int8", ranges_of(z_ND), normalize=True)
    assert np.abs(found - other).max() > 1e-3


def test_an_embedder_gives_what_an_index_would_hold(exported):
    embedder, some = Embedder.load(exported), texts(40, seed=3)
    z_ND = embedder.encode(some)
    binary = embedder.at("binary").encode(some)
    np.testing.assert_allclose(binary, np.where(z_ND > 0, 1, -1) / np.sqrt(32), atol=1e-6)
    found = embedder.at("int8").encode(some)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-6)
    assert 1e-5 < np.abs(found - z_ND).max() < 0.01
    np.testing.assert_array_equal(embedder.encode(some), z_ND)
    names = {embedder.at(p).identity() for p in ("float32", "int8", "binary")}
    assert len(names) == 3 and embedder.identity() in names
