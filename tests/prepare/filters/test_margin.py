"""The cross-encoder against sentence-transformers, and the margin by hand."""

import numpy as np
import pytest
import sentence_transformers
import torch

from jina_jax.config import MarginConfig, MeshConfig
from jina_jax.devices.mesh import make_mesh
from jina_jax.prepare.filters import margin as margin_module
from jina_jax.prepare.filters.margin import CrossEncoder, keep_by_margin, margins, triplet_logits
from tests.random_texts import texts

# The last are cut: the longer text gives way, to 128 tokens in all.
PAIRS = [
    *zip(texts(16, seed=1), texts(16, seed=2), strict=True),
    ("", ""),
    ("the sea " * 90, "fish"),
    ("fish", "the sea " * 90),
    ("the sea " * 60, "of fish " * 70),
]


@pytest.fixture(scope="module")
def cross_encoder(cross_encoder_folder):
    return CrossEncoder(cross_encoder_folder)


@pytest.fixture(scope="module")
def expected(cross_encoder_folder):
    model = sentence_transformers.CrossEncoder(str(cross_encoder_folder), device="cpu")
    return model.predict(PAIRS, activation_fn=torch.nn.Identity())


def test_logits_equal_sentence_transformers(cross_encoder, expected):
    got = cross_encoder.logits(PAIRS)
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-4)
    assert np.ptp(got) > 0.1  # Else the logits would say nothing.


def test_one_device_and_blocks_change_nothing(cross_encoder_folder, expected, monkeypatch):
    monkeypatch.setattr(margin_module, "_PAIRS_AT_ONCE", 9)
    one = CrossEncoder(cross_encoder_folder, batch_rows=4, mesh=make_mesh(MeshConfig(data=1)))
    np.testing.assert_allclose(one.logits(iter(PAIRS)), expected, rtol=0, atol=1e-4)


def test_triplets_are_two_pairs_each(cross_encoder):
    (query, positive), (_, negative) = PAIRS[:2]
    got = triplet_logits([(query, positive, negative), (query, negative, positive)], cross_encoder)
    first, second = cross_encoder.logits([(query, positive), (query, negative)])
    np.testing.assert_allclose(got, [[first, second], [second, first]], rtol=0, atol=1e-4)


def test_no_triplets(cross_encoder):
    assert triplet_logits([], cross_encoder).shape == (0, 2)


def test_margins_by_hand():
    # sigmoid(0) = 0.5, sigmoid(-2) = 0.1192029
    logits = np.array([[0.0, -2.0], [-2.0, 0.0], [9.0, 8.5]], np.float32)
    np.testing.assert_allclose(margins(logits, MarginConfig()), [2, -2, 0.5], rtol=0, atol=1e-6)
    np.testing.assert_allclose(
        margins(logits, MarginConfig(scale="sigmoid")), [0.3807971, -0.3807971, 0.0000800],
        rtol=0, atol=1e-6,
    )  # fmt: skip


def test_an_extreme_logit_has_a_sigmoid():
    got = margins(np.array([[1e4, -1e4]], np.float32), MarginConfig(scale="sigmoid"))
    np.testing.assert_array_equal(got, [1.0])


def test_the_threshold_itself_is_not_above_it():
    margin = np.array([0.1, 0.25, 0.26], np.float32)
    np.testing.assert_array_equal(
        keep_by_margin(margin, MarginConfig(threshold=0.25)), [False, False, True]
    )
