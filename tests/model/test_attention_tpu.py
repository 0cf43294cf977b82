"""The kernel for TPUs, its steps one by one, beside plain attention."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jina_jax.config import BertConfig, MPNetConfig, Qwen3Config, T5Config
from jina_jax.errors import UserError
from jina_jax.model.attention import (
    Mask,
    RelativePositionBias,
    WeightDropout,
    attend_with,
    chosen_kernel,
)
from jina_jax.model.attention_tpu import takes
from jina_jax.model.dropout import DropoutKey, is_kept, weight_seeds

ROWS = 3
KEY = DropoutKey(jax.random.key(3), 5 + jnp.arange(ROWS))


def case(length, heads, width, dtype=jnp.float32, has_bias=True):
    """Rows of several texts with padding behind, and one row of padding alone."""
    keys = jax.random.split(jax.random.key(length + width), 6)
    q, k, v, target = (jax.random.normal(key, (ROWS, length, heads, width)) for key in keys[:4])
    bias = jax.random.normal(keys[4], (heads, 2 * length - 1)) if has_bias else None
    segments = jnp.sort(jax.random.randint(keys[5], (ROWS, length), 0, 4), axis=1)
    segments = jnp.where(segments == 3, 0, segments + 1).at[-1].set(0)
    return [(x.astype(dtype)) for x in (q * width**-0.5, k, v)], bias, segments, target


def matrix(bias, length):
    index = np.arange(length)
    return bias[:, index[None, :] - index[:, None] + length - 1]


def with_those_weights_dropped(q, k, v, allowed, bias, seeds, rate=0.1):
    """Plain attention, with the dropout of the kernel."""
    scores = jnp.einsum("rqhk,rphk->rhqp", q, k) + bias[None]
    weights = jax.nn.softmax(jnp.where(allowed[:, None], scores, -1e9), axis=-1)
    head, query, key = jnp.meshgrid(*map(jnp.arange, weights.shape[1:]), indexing="ij")
    kept = jnp.stack([is_kept(seed, head, query, key, rate) for seed in seeds])
    return jnp.einsum("rhqp,rphk->rqhk", jnp.where(kept, weights / (1 - rate), 0), v)


def value_and_gradients(kernel, given, rate=0.0, **seen):
    (q, k, v), bias, segments, target = given
    length, mask = q.shape[1], Mask(segments, **seen)
    drop = WeightDropout.of(KEY, rate)

    def loss(q, k, v, bias):
        whole = bias if bias is None or kernel == "interpreted" else matrix(bias, length)
        if rate and kernel == "at_once":
            mixed = with_those_weights_dropped(q, k, v, mask.allowed(), whole, weight_seeds(KEY))
        else:
            mixed = attend_with(kernel, q, k, v, mask, whole, drop)
        return jnp.sum(mixed.astype(jnp.float32) * target), mixed

    argnums = (0, 1, 2) if bias is None else (0, 1, 2, 3)
    with jax.default_matmul_precision("highest"):
        # Else XLA leaves out some of the rounding that is asked for.
        exactly = {"xla_allow_excess_precision": False}
        run = jax.jit(jax.grad(loss, argnums, has_aux=True), compiler_options=exactly)
        gradients, mixed = run(q, k, v, bias)
    return [np.asarray(x, np.float32) for x in (mixed, *gradients)]


def assert_near(given, tolerance, **options):
    found = value_and_gradients("interpreted", given, **options)
    expected = value_and_gradients("at_once", given, **options)
    for one, other in zip(found, expected, strict=True):
        assert np.abs(one - other).max() <= tolerance * np.abs(other).max()
    return expected


@pytest.mark.parametrize(
    ("length", "heads", "width", "options"),
    [
        (64, 3, 32, {}),
        (100, 2, 64, {"rate": 0.1}),
        (256, 2, 128, {"is_causal": True}),
        # Several blocks of queries, whose keys lie in a window that ends with the row.
        (640, 1, 64, {"window": 100}),
        (1024, 2, 64, {"rate": 0.1}),
    ],
)
def test_values_and_gradients(length, heads, width, options):
    assert_near(case(length, heads, width), 1e-5, **options)


@pytest.mark.slow
@pytest.mark.parametrize("length", [64, 2048])
@pytest.mark.parametrize("width", [32, 64, 128])
def test_values_and_gradients_of_all_sizes(length, width):
    assert_near(case(length, 2, width), 1e-5)
    assert_near(case(length, 2, width, has_bias=False), 1e-5, window=65, is_causal=True)


@pytest.mark.parametrize("length", [128, 1024])
def test_bfloat16_is_as_near_to_float32_as_plain_attention_is(length):
    halves = case(length, 2, 64, jnp.bfloat16)
    exact = [x.astype(jnp.float32) for x in halves[0]], *halves[1:]
    exact = value_and_gradients("at_once", exact)
    found = value_and_gradients("interpreted", halves)
    plain = value_and_gradients("at_once", halves)
    for one, other, wanted in zip(found, plain, exact, strict=True):
        rounding = np.linalg.norm(other - wanted)
        # Plain attention multiplies gradients of scores in float32 here, and a TPU in bfloat16.
        assert 0 < np.linalg.norm(one - wanted) <= 1.5 * rounding


def test_no_buffer_is_of_all_scores():
    # The compiled program of plain attention is the negative control.
    (q, k, v), bias, segments, _ = case(384, 2, 64)

    def text(kernel, bias):
        def loss(q, k, v):
            return attend_with(kernel, q, k, v, Mask(segments), bias).sum()

        return str(jax.make_jaxpr(jax.grad(loss, (0, 1, 2)))(q, k, v))

    scores = f"[{ROWS},2,384,384]"
    assert scores in text("at_once", matrix(bias, 384))
    assert scores not in text("interpreted", bias)


def test_the_vector_of_the_bias_is_that_of_its_matrix():
    bias = RelativePositionBias(8, 20, 3, std=1.0, rngs=nnx.Rngs(0))
    np.testing.assert_array_equal(matrix(bias(50, "pallas"), 50), bias(50))


def test_the_kernel_is_chosen_by_device_and_model():
    v5e = {"device_kind": "TPU v5 lite"}

    def chosen(model, row_tokens=512, asked="auto", platform="tpu", kind="TPU v5 lite"):
        return chosen_kernel(asked, platform, model, row_tokens, device_kind=kind)[0]

    assert chosen(T5Config()) == chosen(BertConfig()) == chosen(Qwen3Config()) == "pallas"
    assert chosen(T5Config(), asked="xla") == chosen(T5Config(), platform="gpu") == "at_once"
    assert chosen(T5Config(), platform="cpu") == "by_row"
    assert chosen(T5Config(), asked="cudnn", platform="gpu") == "cudnn"
    assert chosen(BertConfig(), 8192) == "pallas"
    divided = chosen_kernel("auto", "tpu", T5Config(), 512, heads_are_divided=True, **v5e)
    assert divided[0] == "at_once" and "mesh.tensor" in divided[1]
    kernel, why = chosen_kernel("auto", "tpu", MPNetConfig(), 4096, **v5e)
    assert kernel == "at_once" and "feed.row_tokens=4096" in why.replace(",", "")
    # As the compilers of these take them: the memory of a core differs.
    assert chosen(T5Config(), 2048) == chosen(T5Config(), 1536, kind="TPU v5") == "pallas"
    assert chosen(T5Config(), 2048, kind="TPU v5") == chosen(T5Config(), 1024, kind="TPU v4")
    assert chosen(T5Config(), 2048, kind="TPU v5") == "at_once"
    assert chosen(T5Config(), kind="TPU v4") == chosen(BertConfig(), 1024, kind="TPU v4")
    assert chosen(T5Config(), kind="TPU v4") == "pallas"
    assert chosen(dataclasses.replace(T5Config(), d_kv=32), 2048) == "at_once"
    odd = dataclasses.replace(T5Config(), d_kv=80)
    with pytest.raises(UserError, match=r"train\.attention=pallas: .* of 80; .*auto"):
        chosen_kernel("pallas", "tpu", odd, 512, **v5e)


@pytest.mark.tpu_compile
@pytest.mark.parametrize("topology", ["v5e:2x2", "v5p:2x2x1", "v6e:2x2"])
@pytest.mark.parametrize(
    ("length", "heads", "width", "has_bias", "options"),
    [
        (128, 12, 64, True, {}), (512, 12, 64, True, {"rate": 0.1}), (512, 12, 32, False, {}),
        (512, 16, 128, False, {"is_causal": True}), (2048, 12, 64, True, {}),
        (8192, 12, 64, False, {"window": 64}),
    ],
)  # fmt: skip
def test_it_compiles_for_tpus(topology, length, heads, width, has_bias, options):
    from jina_jax.plan.compile import topology_devices

    device = topology_devices(topology)[0]
    here = jax.sharding.SingleDeviceSharding(device)
    described = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here),
        case(length, heads, width, jnp.bfloat16, has_bias),
    )
    options = dict(options)  # Of all three topologies.
    rate = options.pop("rate", 0.0)

    def gradients(given):
        (q, k, v), bias, segments, target = given
        drop = WeightDropout.of(DropoutKey(jax.random.key(3), jnp.arange(ROWS)), rate)

        def loss(q, k, v, bias):
            mixed = attend_with("pallas", q, k, v, Mask(segments, **options), bias, drop)
            return jnp.sum(mixed.astype(jnp.float32) * target)

        return jax.grad(loss, (0, 1, 2, 3) if has_bias else (0, 1, 2))(q, k, v, bias)

    kind = device.device_kind
    if takes(width, length, has_bias=has_bias, device_kind=kind):
        assert (length, kind) == (2048, "TPU v5")
        return
    compiled = jax.jit(gradients).lower(described).compile()
    queries = ROWS * heads * length * width * 2
    # Queries, keys, values and the gradients, and no scores.
    assert compiled.memory_analysis().temp_size_in_bytes < 8 * queries
