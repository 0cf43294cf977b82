import dataclasses

import jax
import numpy as np
import pytest
import transformers

from jina_jax.config import T5Config
from jina_jax.errors import UserError
from jina_jax.model.encoder import (
    config_from_huggingface,
    config_to_huggingface,
    from_huggingface,
    init_params,
    parameter_count,
    to_huggingface,
)
from tests.model.torch_oracle import TINY

BASE = T5Config(d_model=768, d_ff=3072, num_layers=12, num_heads=12)


@pytest.fixture(scope="module")
def tensors():
    return to_huggingface(init_params(TINY, jax.random.key(0)), TINY)


@pytest.mark.parametrize(
    "config, count",
    [(T5Config(), 35_330_816), (BASE, 109_628_544)],
    ids=["small", "base"],
)
def test_published_parameter_counts(config, count):
    assert parameter_count(config) == count
    described = jax.eval_shape(lambda key: init_params(config, key), jax.random.key(0))
    zeros = jax.tree.map(lambda leaf: np.broadcast_to(np.float32(0), leaf.shape), described)
    assert sum(tensor.size for tensor in to_huggingface(zeros, config).values()) == count


def test_parameter_count_of_the_gated_form():
    config = dataclasses.replace(TINY, feed_forward_proj="gated-gelu")
    leaves = jax.tree.leaves(init_params(config, jax.random.key(0)))
    assert parameter_count(config) == sum(leaf.size for leaf in leaves)


@pytest.mark.parametrize("feed_forward", ["relu", "gated-gelu"])
def test_names_and_shapes_are_those_of_transformers(feed_forward):
    config = dataclasses.replace(TINY, feed_forward_proj=feed_forward)
    model = transformers.T5EncoderModel(transformers.T5Config(**config_to_huggingface(config)))
    expected = {name: tuple(p.shape) for name, p in model.named_parameters()}
    tensors = to_huggingface(init_params(config, jax.random.key(0)), config)
    assert {name: tensor.shape for name, tensor in tensors.items()} == expected
    assert all(t.flags.c_contiguous and t.dtype == np.float32 for t in tensors.values())


def test_round_trip_is_exact(tensors):
    again = to_huggingface(from_huggingface(tensors, TINY), TINY)
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(again[name], tensor)


def test_other_name_of_the_embedding_and_decoder(tensors):
    renamed = dict(tensors)
    renamed["encoder.embed_tokens.weight"] = renamed.pop("shared.weight")
    renamed["decoder.final_layer_norm.weight"] = np.ones(3, np.float32)
    renamed["lm_head.weight"] = np.ones(3, np.float32)
    again = to_huggingface(from_huggingface(renamed, TINY), TINY)
    np.testing.assert_array_equal(again["shared.weight"], tensors["shared.weight"])


def test_two_different_embeddings_are_refused(tensors):
    both = {**tensors, "encoder.embed_tokens.weight": tensors["shared.weight"] + 1}
    with pytest.raises(UserError, match=r"encoder.embed_tokens.weight differ"):
        from_huggingface(both, TINY)


def test_every_problem_is_named(tensors):
    broken = dict(tensors)
    del broken["encoder.final_layer_norm.weight"]
    broken["encoder.block.9.layer.0.layer_norm.weight"] = np.ones(24, np.float32)
    name = "encoder.block.0.layer.1.DenseReluDense.wi.weight"
    broken[name] = np.ones((24, 48), np.float32)
    with pytest.raises(UserError) as caught:
        from_huggingface(broken, TINY)
    message = str(caught.value)
    assert "missing: encoder.final_layer_norm.weight" in message
    assert "unexpected: encoder.block.9.layer.0.layer_norm.weight" in message
    assert f"{name} has shape (24, 48), expected (48, 24)" in message


def test_config_round_trip_and_defaults():
    assert config_from_huggingface(config_to_huggingface(TINY)) == TINY
    assert config_from_huggingface({"model_type": "t5", "dropout_rate": 0}) == T5Config(
        dropout_rate=0.0
    )


def test_published_config_is_read():
    published = transformers.T5Config(d_model=768, d_ff=2048, feed_forward_proj="gated-gelu")
    assert config_from_huggingface(published.to_dict()) == T5Config(
        d_model=768, d_ff=2048, feed_forward_proj="gated-gelu"
    )


@pytest.mark.parametrize(
    "change, message",
    [
        ({"model_type": "gpt2"}, "model_type='gpt2' in config.json is no encoder"),
        ({"feed_forward_proj": "gated-silu"}, "feed_forward_proj='gated-silu'"),
        ({"num_layers": "6"}, "num_layers='6'"),
        ({"num_heads": True}, "num_heads=True"),
    ],
)
def test_other_configs_are_refused(change, message):
    with pytest.raises(UserError, match=message):
        config_from_huggingface({**config_to_huggingface(TINY), **change})
