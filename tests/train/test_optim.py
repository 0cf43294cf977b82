import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jina_jax.config import BertConfig, OptimConfig, PoolingConfig, T5Config
from jina_jax.model.encoder import init_params, param_name
from jina_jax.train.step import learning_rate_schedule, make_optimizer


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        # Warm-up of 4 steps to 1.0, then 8 more steps; values at 0, 3, 4, 8 and 12.
        ("constant", [0.25, 1.0, 1.0, 1.0, 1.0]),
        ("linear", [0.25, 1.0, 1.0, 0.55, 0.1]),
        ("cosine", [0.25, 1.0, 1.0, 0.55, 0.1]),
        ("rsqrt", [0.25, 1.0, np.sqrt(4 / 5), np.sqrt(4 / 9), np.sqrt(4 / 13)]),
    ],
)
def test_schedules_by_hand(name, expected):
    config = OptimConfig(learning_rate=1.0, schedule=name, warmup_steps=4, final_share=0.1)
    rate = learning_rate_schedule(config, 12)
    assert [float(rate(t)) for t in (0, 3, 4, 8, 12)] == pytest.approx(expected, abs=1e-6)


def test_cosine_is_not_linear():
    config = OptimConfig(learning_rate=1.0, schedule="cosine", warmup_steps=0)
    assert float(learning_rate_schedule(config, 8)(2)) == pytest.approx(0.8535534, abs=1e-6)


def test_no_warmup_starts_at_the_peak():
    config = OptimConfig(learning_rate=0.5, schedule="constant", warmup_steps=0)
    assert float(learning_rate_schedule(config, 10)(0)) == 0.5


def test_first_step_is_clipped_and_signed():
    config = OptimConfig(
        learning_rate=0.1, schedule="constant", warmup_steps=0, weight_decay=0.5, clip_norm=1.0
    )
    params = {"kernel": jnp.ones((1, 2)), "scale": jnp.ones(2)}
    optimizer = make_optimizer(config, 10)
    grads = {"kernel": jnp.array([[300.0, -400.0]]), "scale": jnp.zeros(2)}
    updates, state = optimizer.update(grads, optimizer.init(params), params)
    new = optax.apply_updates(params, updates)
    # Adam's first step is the sign; decay takes 0.1 · 0.5 of the matrix and leaves the scale.
    assert np.allclose(new["kernel"], [[1 - 0.1 - 0.05, 1 + 0.1 - 0.05]], atol=1e-6)
    assert np.allclose(new["scale"], 1.0, atol=0)
    # Clipped to norm 1, the first moment is a tenth of (0.6, -0.8).
    assert np.allclose(optax.tree.get(state, "mu")["kernel"], [[0.06, -0.08]], atol=1e-6)


def _first_step(config):
    params = {"kernel": jnp.full((1, 2), 2.0), "scale": jnp.full(2, 2.0)}
    optimizer = make_optimizer(config, 10)
    grads = {"kernel": jnp.array([[0.3, -0.4]]), "scale": jnp.array([0.1, 0.2])}
    updates, state = optimizer.update(grads, optimizer.init(params), params)
    return optax.apply_updates(params, updates), state


def test_lion_steps_by_the_sign_and_decays_matrices_alone():
    config = OptimConfig(
        optimizer="lion", learning_rate=0.1, schedule="constant", warmup_steps=0, weight_decay=0.5,
        b1=0.9, b2=0.99, moment_dtype="bfloat16",
    )  # fmt: skip
    new, state = _first_step(config)
    assert np.allclose(new["kernel"], [[2 - 0.1 - 0.1, 2 + 0.1 - 0.1]], atol=1e-6)
    assert np.allclose(new["scale"], [1.9, 1.9], atol=1e-6)
    mu = optax.tree.get(state, "mu")["kernel"]
    assert mu.dtype == jnp.bfloat16
    assert np.allclose(mu.astype(jnp.float32), [[0.003, -0.004]], rtol=2**-8)


def test_adafactor_divides_by_the_root_mean_square_and_limits_it():
    config = OptimConfig(
        optimizer="adafactor", learning_rate=0.1, schedule="constant", warmup_steps=0,
        weight_decay=0.5, clip_norm=10.0,
    )  # fmt: skip
    new, _ = _first_step(config)
    # The first estimate of the second moment is the square itself, so the step is the sign.
    assert np.allclose(new["kernel"], [[2 - 0.1 - 0.1, 2 + 0.1 - 0.1]], atol=1e-5)
    assert np.allclose(new["scale"], [1.9, 1.9], atol=1e-5)


@pytest.mark.parametrize("decay_embeddings", [False, True])
@pytest.mark.parametrize(
    ("shape", "tables"),
    [
        (T5Config(vocab_size=8, d_model=4, d_kv=2, d_ff=4, num_layers=1, num_heads=2), 1),
        (BertConfig(8, hidden_size=4, num_hidden_layers=1, num_attention_heads=2), 3),
    ],
)
def test_what_decays_are_the_matrices_of_layers(shape, tables, decay_embeddings):
    config = OptimConfig(learning_rate=0.1, warmup_steps=0, decay_embeddings=decay_embeddings)
    params = init_params(shape, jax.random.key(0), PoolingConfig(dense_dimensions=2))
    nothing, optimizer = jax.tree.map(jnp.zeros_like, params), make_optimizer(config, 10)
    updates, _ = optimizer.update(nothing, optimizer.init(params), params)
    changes = {
        param_name(path): np.any(update)
        for path, update in jax.tree_util.tree_leaves_with_path(updates)
    }
    decayed = {name for name, is_changed in changes.items() if is_changed}
    layers = {name for name in changes if name.endswith("/kernel")}
    assert "dense/kernel" in layers and layers <= decayed
    assert len(decayed) == len(layers) + tables * decay_embeddings
    assert not any("bias" in name or "norm" in name for name in decayed)


def test_adafactor_keeps_a_row_and_a_column_of_a_large_matrix():
    config = OptimConfig(optimizer="adafactor")
    params = {"kernel": jnp.zeros((256, 512))}
    state = make_optimizer(config, 10).init(params)
    kept = sum(x.size for x in jax.tree.leaves(state) if x.ndim)
    assert kept == 256 + 512 + 1
