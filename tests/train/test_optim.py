import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import pytest

from jina_jax.config import BertConfig, MeshConfig, OptimConfig, PoolingConfig, RunConfig, T5Config
from jina_jax.config.validation import validate
from jina_jax.devices.mesh import make_mesh, param_shardings, put, replicated
from jina_jax.errors import UserError
from jina_jax.model.encoder import init_params, param_name
from jina_jax.train.optimizer import beside_parameters, learning_rate_schedule, make_optimizer
from tests.marks import some_slow


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


SHAPE = BertConfig(
    vocab_size=24, hidden_size=16, num_hidden_layers=2, num_attention_heads=4, intermediate_size=32,
    max_position_embeddings=8,
)  # fmt: skip
POOLING = PoolingConfig(dense_dimensions=8)
MESHES = [(1, 1, 1), (8, 1, 1), (2, 2, 2), (1, 8, 1), (1, 2, 4)]


def flat_arrays(tree):
    return {param_name(path): x for path, x in jax.tree_util.tree_leaves_with_path(tree)}


def flat(tree):
    return {name: np.asarray(x) for name, x in flat_arrays(tree).items()}


def draw(seed):
    """Parameters, or gradients of them."""
    shapes = jax.eval_shape(lambda key: init_params(SHAPE, key, POOLING), jax.random.key(0))
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), shapes)


def after_steps(optimizer, on=lambda params, state: (params, state)):
    """Parameters after three steps with gradients that are drawn."""
    params = draw(0)
    params, state = on(params, optimizer.init(params))

    @jax.jit
    def step(params, state, gradients):
        updates, state = optimizer.update(gradients, state, params)
        return optax.apply_updates(params, updates), state

    for seed in (1, 2, 3):
        params, state = step(params, state, draw(seed))
    return flat(params)


def on_mesh(*split):
    mesh = make_mesh(MeshConfig(*split))

    def on(params, state):
        shardings = param_shardings(params, mesh, SHAPE)
        beside = beside_parameters(state, params, shardings, replicated(mesh))
        return put(params, shardings), put(state, beside)

    return on


MUON = OptimConfig(
    "muon", learning_rate=0.02, adam_learning_rate=0.003, muon_momentum=0.8, weight_decay=0.1,
    schedule="constant", warmup_steps=0, clip_norm=1e6, b2=0.95,
)  # fmt: skip


@pytest.mark.parametrize(
    ("scale", "rms", "adam_rate"), [("rms", 0.2, 0.003), ("width", None, None)]
)
def test_muon_is_optaxs_for_the_matrices_of_layers_and_adamw_for_the_rest(scale, rms, adam_rate):
    config = dataclasses.replace(MUON, muon_scale=scale, adam_learning_rate=adam_rate)
    found = after_steps(make_optimizer(config, 10))
    rate = adam_rate or 0.02
    optimizers = {
        "matrix of a layer": optax.contrib.muon(
            0.02, beta=0.8, weight_decay=0.1, consistent_rms=rms
        ),
        "other matrix": optax.adamw(rate, b2=0.95, weight_decay=0.1),
        "rest": optax.adamw(rate, b2=0.95, weight_decay=0.0),
    }

    def label(path, _):
        name = param_name(path)
        if name == "dense/kernel":
            return "other matrix"
        return "matrix of a layer" if name.endswith("kernel") else "rest"

    expected = after_steps(
        optax.partition(optimizers, lambda p: jax.tree_util.tree_map_with_path(label, p))
    )
    start = flat(draw(0))
    for name, array in found.items():
        np.testing.assert_allclose(array, expected[name], atol=1e-5, err_msg=name)
        assert np.abs(array - start[name]).max() > 1e-3, name
    assert sum(name.endswith("kernel") for name in found) == 2 * 6 + 1


@pytest.mark.parametrize(("data", "fsdp", "tensor"), some_slow([(2, 2, 2)], MESHES[1:]))
def test_muon_is_the_same_on_every_mesh(data, fsdp, tensor):
    config = dataclasses.replace(MUON, layer_decay=0.5)
    expected = after_steps(make_optimizer(config, 10), on_mesh(*MESHES[0]))
    found = after_steps(make_optimizer(config, 10), on_mesh(data, fsdp, tensor))
    for name, array in found.items():
        np.testing.assert_allclose(array, expected[name], atol=1e-5, err_msg=name)


def test_muons_momentum_is_divided_as_its_matrix_is():
    optimizer, params = make_optimizer(MUON, 10), draw(0)
    _, state = on_mesh(1, 2, 4)(params, optimizer.init(params))
    named = flat_arrays(state)
    of_muon = {name: x for name, x in named.items() if "/muon/" in name and x.ndim == 2}
    assert len(of_muon) == 2 * 6
    for name, momentum in of_muon.items():
        assert momentum.size == 8 * momentum.addressable_shards[0].data.size, name


@pytest.mark.parametrize(("data", "fsdp", "tensor"), some_slow([(1, 1, 1), (2, 2, 2)], MESHES))
def test_the_learning_rate_falls_by_layer(data, fsdp, tensor):
    config = dataclasses.replace(
        MUON, optimizer="adamw", muon_momentum=0.95, adam_learning_rate=None, layer_decay=0.5
    )
    found = after_steps(make_optimizer(config, 10), on_mesh(data, fsdp, tensor))
    rates = {"blocks/0": 0.01, "blocks/1": 0.02, "dense": 0.02}

    def label(path, _):
        return (
            "/".join(param_name(path).split("/")[:2]).removesuffix("/kernel").removesuffix("/bias")
        )

    def mask(params):
        return jax.tree_util.tree_map_with_path(
            lambda path, _: param_name(path).endswith("kernel"), params
        )

    def optimizer(name):
        rate = rates.get(name, 0.005)
        return optax.adamw(rate, b2=0.95, weight_decay=0.1, mask=mask)

    def labels(params):
        return jax.tree_util.tree_map_with_path(label, params)

    every = set(jax.tree.leaves(labels(draw(0))))
    assert every >= set(rates) and len(every) > 6
    expected = after_steps(optax.partition({name: optimizer(name) for name in every}, labels))
    for name, array in found.items():
        np.testing.assert_allclose(array, expected[name], atol=1e-5, err_msg=name)


def test_a_temperature_steps_by_adamw_at_its_rate():
    optimizer, value = make_optimizer(MUON, 10), jnp.float32(1.0)
    update, _ = optimizer.update(jnp.float32(0.3), optimizer.init(value), value)
    assert float(update) == pytest.approx(-0.003, rel=1e-5)


@pytest.mark.parametrize(
    ("field", "value"),
    [("muon_momentum", 0.9), ("muon_scale", "width"), ("adam_learning_rate", 1e-4)],
)
def test_fields_of_muon_are_refused_of_other_optimizers(field, value):
    validate(RunConfig("a", optim=OptimConfig("muon", **{field: value}, moment_dtype="bfloat16")))
    with pytest.raises(UserError, match=f"optim.{field}={value} is of optim.optimizer=muon"):
        validate(RunConfig("a", optim=OptimConfig("lion", **{field: value})))


def test_shares_of_a_rate_that_are_none_are_refused():
    with pytest.raises(UserError, match=r"optim.layer_decay=0.0 must be greater than 0"):
        validate(RunConfig("a", optim=OptimConfig(layer_decay=0.0)))
    with pytest.raises(UserError, match=r"optim.layer_decay=1.5 must be less than or equal to 1"):
        validate(RunConfig("a", optim=OptimConfig(layer_decay=1.5)))
