import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jina_jax.config import LoraConfig, T5Config
from jina_jax.model.encoder import apply, init_params
from jina_jax.model.flops import Work, encoder_flops, similarity_flops, step_flops
from jina_jax.model.lora import joined, split_trained, with_adapters

SMALL = T5Config(vocab_size=64, d_model=128, d_kv=32, d_ff=512, num_layers=3, num_heads=4)
SMALL = dataclasses.replace(SMALL, dropout_rate=0.0)


def xla_flops(function, *args):
    """XLA's count of a compiled function; right where nothing is scanned."""
    return jax.jit(function).lower(*args).compile().cost_analysis()["flops"]


def test_one_layer_by_hand():
    config = T5Config(d_model=4, d_kv=3, d_ff=5, num_layers=1, num_heads=2)
    # One row of 2 tokens. q, k, v, o: 4 products [2,4]x[4,6] of 2*2*4*6 = 96; wi and wo: 2*2*4*5
    # = 80 each; scores and mix: 2 heads * 2 products [2,3]x[3,2] of 24.
    assert encoder_flops(config, Work.of_rows(1, 2)) == 4 * 96 + 2 * 80 + 2 * 2 * 24
    gated = dataclasses.replace(config, feed_forward_proj="gated-gelu")
    assert encoder_flops(gated, Work.of_rows(1, 2)) == 4 * 96 + 3 * 80 + 2 * 2 * 24


def test_small_by_hand():
    small = T5Config(d_model=512, d_kv=64, d_ff=2048, num_layers=6, num_heads=8)
    assert encoder_flops(small, Work(1, 128)) == 37_748_736 + 1_572_864


@pytest.mark.parametrize("projection", ["relu", "gated-gelu"])
@pytest.mark.parametrize(("rows", "length"), [(16, 64), (4, 256)])
def test_forward_is_within_five_percent_of_xlas_count(projection, rows, length):
    config = dataclasses.replace(SMALL, feed_forward_proj=projection)
    params = init_params(config, jax.random.key(0))
    ids, segments = (jnp.ones((rows, length), jnp.int32) for _ in range(2))
    counted = xla_flops(lambda p, i, s: apply(config, p, i, s), params, ids, segments)
    # XLA also counts norms, softmax and activations, which are less than 5% here.
    assert 1.0 <= counted / encoder_flops(config, Work.of_rows(rows, length)) < 1.05


def test_training_is_three_forwards_within_five_percent_of_xlas_count():
    params = init_params(SMALL, jax.random.key(0))
    ids, segments = (jnp.ones((16, 64), jnp.int32) for _ in range(2))

    def mean(p):
        return jnp.mean(apply(SMALL, p, ids, segments) ** 2)

    work = Work.of_rows(16, 64)
    flops = step_flops(SMALL, rows=work, texts=work, queries=0, keys=0, encoded_again=0)
    assert 1.0 <= xla_flops(jax.grad(mean), params) / flops.model < 1.05


def test_training_adapters_has_no_gradient_of_a_frozen_matrix():
    lora = LoraConfig(8)
    params = with_adapters(init_params(SMALL, jax.random.key(0)), lora, jax.random.key(1))
    trained, frozen = split_trained(params, lora)
    ids, segments = (jnp.ones((16, 64), jnp.int32) for _ in range(2))

    def mean(trained):
        return jnp.mean(apply(SMALL, joined(trained, frozen), ids, segments, lora=lora) ** 2)

    work = Work.of_rows(16, 64)
    options = {"rows": work, "texts": work, "queries": 0, "keys": 0}
    flops = step_flops(SMALL, **options, encoded_again=1, lora=lora)
    # Nothing is trained below the first layer: no gradient goes through its q, k and v.
    below = 16 * 64 * 2 * 3 * (128 * 128 + 8 * 128)
    assert 0.95 < xla_flops(jax.grad(mean), trained) / (flops.model - below) < 1.05
    whole = step_flops(SMALL, **options, encoded_again=1)
    per_token = 3 * (4 * 128 * 128 + 2 * 128 * 512)
    adapters = 3 * 8 * (4 * (128 + 128) + 2 * (128 + 512))
    assert whole.model - flops.model == 16 * 64 * 2 * (per_token - 3 * adapters)
    assert flops.text == flops.model
    forward = encoder_flops(SMALL, work) + 16 * 64 * 2 * adapters
    assert flops.hardware - flops.model == forward


def test_similarity_is_xlas_count():
    q, k = jnp.ones((48, 128)), jnp.ones((96, 128))
    assert xla_flops(lambda a, b: a @ b.T, q, k) == similarity_flops(48, 96, 128)


def test_padding_and_other_texts_of_the_row_are_no_text():
    # Two rows of 8 tokens; texts of 3, 4 and 5 tokens.
    texts = Work(12, 3**2 + 4**2 + 5**2)
    flops = step_flops(
        SMALL, rows=Work.of_rows(2, 8), texts=texts, queries=3, keys=3, encoded_again=0
    )
    inner, d, f, layers = 128, 128, 512, 3
    loss = 3 * 2 * 3 * 3 * d

    def by_loops(lengths):
        products = itertools.chain(*[
            [(n, d, inner)] * 4 + [(n, d, f), (n, f, d), (n, inner, n), (n, n, inner)]
            for n in lengths
        ])  # fmt: skip
        return 3 * layers * sum(2 * int(np.prod(p)) for p in products)

    assert flops.loss == loss
    assert flops.text == by_loops([3, 4, 5]) + loss
    assert flops.model == flops.hardware == by_loops([8, 8]) + loss


def test_what_is_encoded_again_is_hardware_work_alone():
    work = Work.of_rows(4, 16)
    once, twice, thrice = (
        step_flops(SMALL, rows=work, texts=work, queries=8, keys=8, encoded_again=n)
        for n in range(3)
    )
    assert once.model == twice.model == thrice.model == once.hardware
    assert twice.hardware - once.model == encoder_flops(SMALL, work)
    assert thrice.hardware - once.model == 2 * encoder_flops(SMALL, work)


def test_scores_that_are_computed_again_are_one_product_of_attention():
    work = Work.of_rows(4, 64)
    options = {"rows": work, "texts": work, "queries": 8, "keys": 8, "encoded_again": 0}
    once, again = (step_flops(SMALL, **options, scored_again=n) for n in (False, True))
    assert again.model == once.model
    heads = SMALL.num_heads * SMALL.d_kv
    assert again.hardware - once.hardware == 2 * heads * work.attended * SMALL.num_layers
