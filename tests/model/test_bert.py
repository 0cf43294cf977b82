"""The BERT encoder and classifier against torch, alone and in packed rows."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from flax import nnx

from jina_jax.errors import UserError
from jina_jax.model.attention import segment_positions
from jina_jax.model.bert import (
    BertEncoder,
    classifier_from_huggingface,
    classify,
    init_classifier_params,
)
from jina_jax.model.encoder import apply, config_from_huggingface, from_huggingface, init_params
from jina_jax.model.layers import LayerNorm, graphdef
from jina_jax.model.pooling import first_token
from tests.bert_oracle import TINY_BERT, torch_bert
from tests.model.torch_oracle import numpy_tensors

LENGTH = 40
# Texts of each packed row; the rest of a row is padding.
PACKED_LENGTHS = [[40], [7, 1, 20, 9], [13, 26]]


@pytest.fixture(scope="module")
def encoder():
    model = torch_bert(transformers.BertModel, TINY_BERT)
    return model, from_huggingface(numpy_tensors(model), TINY_BERT)


@pytest.fixture(scope="module")
def classifier():
    model = torch_bert(transformers.BertForSequenceClassification, TINY_BERT, num_labels=1)
    return model, classifier_from_huggingface(numpy_tensors(model), TINY_BERT)


@pytest.fixture(scope="module")
def packed():
    """(ids, types, segments) of packed rows, and (row, start, ids, types) of each text."""
    rng = np.random.default_rng(0)
    arrays = np.zeros((3, len(PACKED_LENGTHS), LENGTH), np.int32)
    texts = []
    for row, lengths in enumerate(PACKED_LENGTHS):
        start = 0
        for segment, length in enumerate(lengths, 1):
            ids = rng.integers(1, TINY_BERT.vocab_size, length)
            types = (np.arange(length) >= length // 2).astype(int)
            arrays[:, row, start : start + length] = ids, types, np.full(length, segment)
            texts.append((row, start, ids, types))
            start += length
    return jnp.asarray(arrays), texts


def alone(model, ids, types):
    """Torch's output for one text in a batch of its own."""
    with torch.no_grad():
        return model(
            input_ids=torch.tensor(ids)[None], token_type_ids=torch.tensor(types)[None]
        )[0][0].numpy()  # fmt: skip


def with_types(config, params, ids, segments, types):
    """Hidden states where a text has tokens of both types, as those of a cross-encoder have."""
    return nnx.merge(graphdef(BertEncoder, config), params)(ids, segments, types)


def test_positions_by_hand():
    segments = jnp.array([[1, 1, 2, 2, 2, 0], [1, 2, 2, 0, 0, 0]])
    np.testing.assert_array_equal(
        segment_positions(segments), [[0, 1, 0, 1, 2, 0], [0, 0, 1, 0, 1, 2]]
    )


def test_layer_norm_by_hand():
    # (1, 3): mean 2, variance 1; epsilon 3 makes the divisor 2.
    norm = LayerNorm(2, 3.0)
    norm.scale_D[...] = jnp.array([2.0, 4.0])
    norm.bias_D[...] = jnp.array([10.0, 20.0])
    np.testing.assert_allclose(norm(jnp.array([[1.0, 3.0]])), [[9.0, 22.0]], rtol=0, atol=1e-6)


def test_layer_norm_keeps_digits_beside_a_large_mean():
    got = LayerNorm(2, 0.0)(jnp.array([[4096.0, 4096.5]]))
    np.testing.assert_allclose(got, [[-1.0, 1.0]], rtol=0, atol=1e-6)


def test_first_token_by_hand():
    hidden = jnp.arange(8.0).reshape(1, 4, 2)
    got = first_token(hidden, jnp.array([[1, 2, 2, 0]]), 2)
    np.testing.assert_array_equal(got, [[[0.0, 1.0], [2.0, 3.0]]])


def test_packed_texts_equal_torch_alone(encoder, packed):
    model, params = encoder
    (ids, types, segments), texts = packed
    hidden = np.asarray(with_types(TINY_BERT, params, ids, segments, types))
    for row, start, text, text_types in texts:
        expected = alone(model, text, text_types)
        np.testing.assert_allclose(
            hidden[row, start : start + len(text)], expected, rtol=0, atol=1e-5
        )


def test_no_types_are_type_0(encoder, packed):
    _, params = encoder
    (ids, types, segments), _ = packed
    np.testing.assert_array_equal(
        apply(TINY_BERT, params, ids, segments),
        with_types(TINY_BERT, params, ids, segments, jnp.zeros_like(types)),
    )


def test_packed_logits_equal_torch_alone(classifier, packed):
    model, params = classifier
    (ids, types, segments), texts = packed
    logits = np.asarray(classify(TINY_BERT, params, ids, segments, types, 4))
    for row, start, text, text_types in texts:
        slot = int(segments[row, start]) - 1
        expected = alone(model, text, text_types)
        np.testing.assert_allclose(logits[row, slot : slot + 1], expected, rtol=0, atol=1e-5)
    assert np.ptp(logits) > 0.1  # Else the comparison would say nothing.


def test_bfloat16_is_near(encoder, packed):
    _, params = encoder
    (ids, types, segments), _ = packed
    half = dataclasses.replace(TINY_BERT, compute_dtype="bfloat16")
    exact = np.asarray(with_types(TINY_BERT, params, ids, segments, types))[
        np.asarray(segments) > 0
    ]
    got = np.asarray(with_types(half, params, ids, segments, types))[np.asarray(segments) > 0]
    assert got.dtype == np.float32
    assert 1e-4 < np.abs(got - exact).mean() < 0.05


def test_parameter_counts_of_minilm():
    # transformers' own counts for BertModel without the pooler, and with pooler and one logit.
    config = dataclasses.replace(TINY_BERT, hidden_size=384, num_attention_heads=12)
    config = dataclasses.replace(
        config, vocab_size=30522, intermediate_size=1536, num_hidden_layers=6,
        max_position_embeddings=512,
    )  # fmt: skip

    def count(init):
        leaves = jax.tree.leaves(jax.eval_shape(lambda: init(config, jax.random.key(0))))
        return sum(leaf.size for leaf in leaves)

    assert count(init_params) == 22_565_376
    assert count(init_classifier_params) == 22_565_376 + 384 * 385 + 385


def test_a_classifier_serves_as_encoder(classifier):
    """Prefix, pooler, head and old names are understood."""
    model, params = classifier
    tensors = numpy_tensors(model)
    tensors["bert.embeddings.LayerNorm.gamma"] = tensors.pop("bert.embeddings.LayerNorm.weight")
    tensors["bert.embeddings.position_ids"] = np.arange(40)[None]
    got = from_huggingface(tensors, TINY_BERT)
    for ours, theirs in zip(jax.tree.leaves(got), jax.tree.leaves(params["encoder"]), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_every_problem_is_named(classifier):
    tensors = numpy_tensors(classifier[0])
    del tensors["bert.pooler.dense.bias"]
    tensors["classifier.weight"] = np.ones((2, 24), np.float32)
    with pytest.raises(UserError) as caught:
        classifier_from_huggingface(tensors, TINY_BERT)
    assert "missing: bert.pooler.dense.bias" in str(caught.value)
    assert "classifier.weight has shape (2, 24), expected (1, 24)" in str(caught.value)


def test_published_config_is_read():
    published = transformers.BertConfig(
        hidden_size=384, num_attention_heads=12, num_hidden_layers=6, intermediate_size=1536
    )
    config = config_from_huggingface(published.to_dict())
    assert (config.hidden_size, config.vocab_size, config.layer_norm_eps) == (384, 30522, 1e-12)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"model_type": "gpt2"}, "model_type='gpt2' in config.json is no encoder"),
        ({"hidden_act": "gelu_new"}, "hidden_act='gelu_new'"),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type='relative_key'"),
        ({"hidden_size": 25}, "does not divide"),
        ({"num_hidden_layers": "6"}, "num_hidden_layers='6'"),
    ],
)
def test_other_configs_are_refused(change, message):
    with pytest.raises(UserError, match=message):
        config_from_huggingface({"model_type": "bert", **change})
