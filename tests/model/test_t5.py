import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jina_jax.model.dropout import DropoutKey, Site, dropout
from jina_jax.model.encoder import apply, init_params, to_huggingface
from tests.model.torch_oracle import TINY

IDS = jnp.asarray(np.random.default_rng(0).integers(2, 101, (3, 16)))
SEGMENTS = jnp.asarray([[1] * 16, [1] * 5 + [2] * 9 + [0] * 2, [1] * 3 + [0] * 13])


def key_of(seed, rows=(0, 1, 2)):
    return DropoutKey(jax.random.key(seed), jnp.asarray(rows))


@pytest.fixture(scope="module")
def params():
    return init_params(TINY, jax.random.key(0))


def test_initial_weights_have_t5s_deviations():
    # Wide enough for each deviation to be known to 5 %.
    config = dataclasses.replace(
        TINY, vocab_size=500, d_model=64, d_kv=32, d_ff=160, feed_forward_proj="gated-gelu"
    )
    tensors = to_huggingface(init_params(config, jax.random.key(3)), config)
    block = "encoder.block.1.layer."
    expected = {
        "shared.weight": 1.0,
        block + "0.SelfAttention.q.weight": (64 * 32) ** -0.5,
        block + "0.SelfAttention.k.weight": 64**-0.5,
        block + "0.SelfAttention.v.weight": 64**-0.5,
        block + "0.SelfAttention.o.weight": 128**-0.5,
        block + "1.DenseReluDense.wi_0.weight": 64**-0.5,
        block + "1.DenseReluDense.wi_1.weight": 64**-0.5,
        block + "1.DenseReluDense.wo.weight": 160**-0.5,
    }
    for name, deviation in expected.items():
        assert tensors[name].std() == pytest.approx(deviation, rel=0.05), name
    assert (tensors["encoder.final_layer_norm.weight"] == 1).all()
    # 64 numbers: the deviation is known to 30 %.
    bias = tensors["encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"]
    assert bias.std() == pytest.approx(64**-0.5, rel=0.3)


def test_initial_weights_differ_between_layers_and_repeat_with_the_key(params):
    tensors = to_huggingface(params, TINY)
    name = "encoder.block.{}.layer.0.SelfAttention.q.weight"
    assert not np.array_equal(tensors[name.format(0)], tensors[name.format(1)])
    again = to_huggingface(jax.jit(init_params, static_argnums=0)(TINY, jax.random.key(0)), TINY)
    for name, tensor in tensors.items():
        np.testing.assert_allclose(again[name], tensor, rtol=1e-6)


def test_shapes_without_memory(params):
    described = jax.eval_shape(lambda key: init_params(TINY, key), jax.random.key(0))
    assert jax.tree.structure(described) == jax.tree.structure(params)


def test_padding_does_not_reach_texts(params):
    hidden = apply(TINY, params, IDS, SEGMENTS)
    other = apply(TINY, params, jnp.where(SEGMENTS == 0, 7, IDS), SEGMENTS)
    assert jnp.isfinite(hidden).all()
    is_token = np.array(SEGMENTS) > 0
    np.testing.assert_array_equal(np.array(hidden)[is_token], np.array(other)[is_token])


def test_bfloat16_stays_close_and_returns_float32(params):
    config = dataclasses.replace(TINY, compute_dtype="bfloat16")
    hidden = apply(config, params, IDS, SEGMENTS)
    assert hidden.dtype == jnp.float32
    error = float(jnp.abs(hidden - apply(TINY, params, IDS, SEGMENTS)).max())
    # bfloat16 keeps 8 bits; 0 would mean that nothing was computed in it.
    assert 0 < error < 0.15


def test_same_dropout_key_repeats_and_another_does_not(params):
    def run(key):
        return np.array(jax.jit(apply, static_argnums=0)(TINY, params, IDS, SEGMENTS, key))

    first = run(key_of(1))
    np.testing.assert_array_equal(first, run(key_of(1)))
    assert not np.array_equal(first, run(key_of(2)))


def test_no_key_means_no_dropout(params):
    without = apply(dataclasses.replace(TINY, dropout_rate=0.0), params, IDS, SEGMENTS)
    np.testing.assert_array_equal(apply(TINY, params, IDS, SEGMENTS), without)


def test_layers_draw_different_masks(monkeypatch, params):
    """Every site of every layer must fold its own number into the key."""
    used = []
    fold_in = jax.random.fold_in

    def spy(key, number):
        folded = fold_in(key, number)
        if isinstance(number, Site):
            used.append(tuple(np.array(jax.random.key_data(folded)).tolist()))
        return folded

    monkeypatch.setattr(jax.random, "fold_in", spy)
    apply(TINY, params, IDS, SEGMENTS, key_of(1))
    assert len(used) == len(set(used)) == 2 + 4 * TINY.num_layers


@pytest.mark.parametrize("rate", [0.1, 0.5])
def test_dropout_rate_and_scale(rate):
    x = jnp.full((200, 501), 2.0)
    dropped = np.array(dropout(x, key_of(0, range(50)), Site.ACTIVATION, rate))
    share = (dropped == 0).mean()
    # Five deviations of a binomial over 100,200 draws.
    assert abs(share - rate) < 5 * (rate * (1 - rate) / x.size) ** 0.5
    np.testing.assert_allclose(dropped[dropped != 0], 2.0 / (1 - rate), rtol=1e-4)
    # The two halves of a random word must not drop together.
    left, right = dropped[:, :250] == 0, dropped[:, 251:] == 0
    assert abs((left & right).mean() - rate**2) < 0.01
    # Nor two rows, of four lines each, or two lines of a row.
    for first, second in ((dropped[:100], dropped[100:]), (dropped[::2], dropped[1::2])):
        assert abs(((first == 0) & (second == 0)).mean() - rate**2) < 0.01


def test_a_row_drops_the_same_in_any_company(params):
    whole = apply(TINY, params, IDS, SEGMENTS, key_of(1))
    order = np.array([2, 0])
    part = apply(TINY, params, IDS[order], SEGMENTS[order], key_of(1, order))
    np.testing.assert_allclose(part, whole[order], atol=1e-5)
    other = apply(TINY, params, IDS[order], SEGMENTS[order], key_of(1, (0, 1)))
    assert np.abs(other - whole[order]).max() > 0.1


def test_dropout_gradient_is_its_mask():
    x, key = jnp.ones((4, 10)), key_of(0, range(4))
    dropped = dropout(x, key, Site.ACTIVATION, 0.5)
    gradient = jax.grad(lambda x: dropout(x, key, Site.ACTIVATION, 0.5).sum())(x)
    np.testing.assert_array_equal(gradient, dropped)
