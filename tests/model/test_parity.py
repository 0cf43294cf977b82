"""Equality with torch's `T5EncoderModel`, level by level, on the same random weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers.models.t5.modeling_t5 as torch_t5
from flax import nnx

from jina_jax.config import T5Config
from jina_jax.model.attention import Mask, relative_position_buckets
from jina_jax.model.encoder import apply, from_huggingface, to_huggingface
from jina_jax.model.layers import RMSNorm
from jina_jax.model.pooling import pool, unit
from jina_jax.model.t5 import T5Encoder
from tests.model.torch_oracle import numpy_tensors, torch_encoder

LENGTH = 40
# Texts of each packed row; the rest of a row is padding.
PACKED_LENGTHS = [[40], [7, 1, 20, 9], [13, 26]]


def random_texts(lengths, vocab_size, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.integers(2, vocab_size, n) for n in lengths]


def pack(rows):
    """Rows of texts → (ids_RL, segments_RL)."""
    ids = np.zeros((len(rows), LENGTH), np.int32)
    segments = np.zeros_like(ids)
    for r, texts in enumerate(rows):
        start = 0
        for s, text in enumerate(texts, 1):
            ids[r, start : start + len(text)] = text
            segments[r, start : start + len(text)] = s
            start += len(text)
    return jnp.asarray(ids), jnp.asarray(segments)


def packed_rows(vocab_size):
    return [random_texts(lengths, vocab_size, seed) for seed, lengths in enumerate(PACKED_LENGTHS)]


def torch_alone(model, text):
    """Hidden states of one text in a batch of its own."""
    return model(input_ids=torch.tensor(text)[None]).last_hidden_state[0]


def torch_pooled(model, texts):
    pooled = torch.stack([torch_alone(model, text).mean(0) for text in texts])
    return torch.nn.functional.normalize(pooled, dim=-1)


def ours(config, params):
    """The encoder as a module, to reach its parts."""
    module = T5Encoder(config, rngs=nnx.Rngs(0))
    nnx.update(module, params)
    return module


@pytest.fixture
def states():
    rng = np.random.default_rng(1)
    return rng.standard_normal((2, LENGTH, 24)).astype(np.float32)


def test_norm(encoder, states):
    model, config, params = encoder
    states = states * 1e-3  # Small enough for epsilon to matter.
    expected = model.encoder.block[1].layer[0].layer_norm(torch.tensor(states))
    got = ours(config, params).blocks[1].attention_norm(jnp.asarray(states.reshape(-1, 24)))
    np.testing.assert_allclose(got, expected.detach().numpy().reshape(-1, 24), rtol=0, atol=1e-6)


def test_norm_by_hand():
    # mean square of (3, 4) is 12.5; 3 / sqrt(12.5) = 0.8485281, 4 / sqrt(12.5) = 1.1313708
    got = RMSNorm(2, 0.0)(jnp.array([[3.0, 4.0]]))
    np.testing.assert_allclose(got, [[0.8485281, 1.1313708]], rtol=0, atol=1e-6)


@pytest.mark.parametrize("buckets, distance", [(32, 128), (16, 20), (8, 20), (32, 100)])
def test_relative_position_buckets(buckets, distance):
    positions = torch.arange(600)
    expected = torch_t5.T5Attention._relative_position_bucket(
        positions[None, :] - positions[:, None], True, buckets, distance
    )
    got = relative_position_buckets(600, buckets, distance)
    np.testing.assert_array_equal(got, expected.numpy())


def test_position_bias(encoder):
    model, config, params = encoder
    attention = model.encoder.block[0].layer[0].SelfAttention
    expected = attention.compute_bias(LENGTH, LENGTH)[0].detach().numpy()
    np.testing.assert_array_equal(ours(config, params).position_bias(LENGTH), expected)


def test_attention(encoder, states):
    model, config, params = encoder
    module, segments = ours(config, params), jnp.ones((2, LENGTH), jnp.int32)
    bias = module.position_bias(LENGTH)
    torch_bias = torch.tensor(np.array(bias))[None]
    theirs = model.encoder.block[2].layer[0].SelfAttention
    expected = theirs(torch.tensor(states), position_bias=torch_bias)[0].detach().numpy()
    flat = jnp.asarray(states.reshape(-1, 24))
    got = module.blocks[2].attention(flat, bias, Mask(segments))
    np.testing.assert_allclose(got, expected.reshape(-1, 24), rtol=0, atol=1e-5)


def test_block(encoder, states):
    model, config, params = encoder
    module, segments = ours(config, params), jnp.ones((2, LENGTH), jnp.int32)
    bias = module.position_bias(LENGTH)
    torch_bias = torch.tensor(np.array(bias))[None]
    block = model.encoder.block[1]
    expected = block(torch.tensor(states), position_bias=torch_bias)[0].detach().numpy()
    flat = jnp.asarray(states.reshape(-1, 24))
    got = module.blocks[1](flat, bias, Mask(segments))
    np.testing.assert_allclose(got, expected.reshape(-1, 24), rtol=0, atol=1e-5)


def test_hidden_states_of_padded_rows(encoder):
    model, config, params = encoder
    ids, segments = pack([[t] for t in random_texts([40, 3, 25], config.vocab_size)])
    expected = model(
        input_ids=torch.tensor(np.array(ids)), attention_mask=torch.tensor(np.array(segments))
    ).last_hidden_state
    got = apply(config, params, ids, segments)
    is_token = np.array(segments) > 0
    np.testing.assert_allclose(
        np.array(got)[is_token], expected.detach().numpy()[is_token], rtol=0, atol=1e-5
    )


def test_hidden_states_of_packed_rows(encoder):
    """Each text of a packed row is encoded as it is alone."""
    model, config, params = encoder
    rows = packed_rows(config.vocab_size)
    ids, segments = pack(rows)
    got = np.array(apply(config, params, ids, segments))
    for r, texts in enumerate(rows):
        for s, text in enumerate(texts, 1):
            expected = torch_alone(model, text).detach().numpy()
            mine = got[r][np.array(segments)[r] == s]
            np.testing.assert_allclose(mine, expected, rtol=0, atol=1e-5)


def test_pooled_embeddings_of_packed_rows(encoder):
    model, config, params = encoder
    rows = packed_rows(config.vocab_size)
    ids, segments = pack(rows)
    got = np.array(unit(pool(apply(config, params, ids, segments), segments, 5)))
    for r, texts in enumerate(rows):
        expected = torch_pooled(model, texts).detach().numpy()
        np.testing.assert_allclose(got[r, : len(texts)], expected, rtol=0, atol=1e-6)


def test_loss_and_gradients(encoder):
    """InfoNCE of packed rows against autograd over each text alone, for every weight."""
    model, config, params = encoder
    queries = random_texts([5, 9, 3, 12], config.vocab_size, seed=5)
    passages = random_texts([20, 30, 11, 25], config.vocab_size, seed=6)
    ids, segments = pack([queries, passages[:1] + passages[2:3], passages[1:2], passages[3:]])

    def loss(params):
        z_RSD = unit(pool(apply(config, params, ids, segments), segments, 4))
        q_BD = z_RSD[0]
        p_BD = jnp.stack([z_RSD[1, 0], z_RSD[2, 0], z_RSD[1, 1], z_RSD[3, 0]])
        logits_BB = q_BD @ p_BD.T / 0.05
        return -jnp.mean(jnp.diagonal(jax.nn.log_softmax(logits_BB)))

    value, gradients = jax.jit(jax.value_and_grad(loss))(params)
    model.zero_grad()
    logits = torch_pooled(model, queries) @ torch_pooled(model, passages).T / 0.05
    expected = torch.nn.functional.cross_entropy(logits, torch.arange(4))
    expected.backward()

    assert abs(float(value) - expected.item()) <= 2e-6 * max(1.0, expected.item())
    torch_gradients = {name: p.grad.numpy() for name, p in model.named_parameters()}
    for name, gradient in to_huggingface(gradients, config).items():
        wanted = torch_gradients[name]
        assert np.linalg.norm(gradient - wanted) <= 1e-3 * np.linalg.norm(wanted), name


def test_hidden_states_at_the_shape_of_t5_small():
    config = T5Config()
    model = torch_encoder(config)
    params = from_huggingface(numpy_tensors(model), config)
    texts = random_texts([24, 16], config.vocab_size)
    ids, segments = pack([texts])
    got = np.array(jax.jit(apply, static_argnums=0)(config, params, ids, segments))[0]
    expected = np.concatenate([torch_alone(model, t).detach().numpy() for t in texts])
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-5)
