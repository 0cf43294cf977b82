"""Adapters in a step: their gradients, what is frozen, on every mesh, and through a checkpoint."""

import dataclasses
import itertools
import re
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jina_jax.checkpoint.checkpoints import Checkpoints
from jina_jax.config import (
    BertConfig,
    ExportConfig,
    LoraConfig,
    LossConfig,
    MeshConfig,
    ModernBertConfig,
    MPNetConfig,
    OptimConfig,
    PoolingConfig,
    Qwen3Config,
    RunConfig,
    T5Config,
    TrainConfig,
)
from jina_jax.config.validation import validate
from jina_jax.devices.mesh import check_divides, make_mesh, put
from jina_jax.errors import UserError
from jina_jax.model.encoder import embed, init_params, param_name
from jina_jax.model.lora import factors, merged, split_trained, with_adapters
from jina_jax.train.step import (
    batch_loss,
    batch_shardings,
    init_state,
    make_train_step,
    state_shapes,
    state_shardings,
)
from tests.marks import some_slow
from tests.train.test_precision import equations
from tests.train.test_step import CONFIG, make_batch

SIZES = {
    "vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 8,
    "intermediate_size": 40, "max_position_embeddings": 20,
}  # fmt: skip
RUN = RunConfig(
    "adapters",
    feed=dataclasses.replace(CONFIG.feed, rows_multiple=16),
    model=BertConfig(**SIZES),
    pooling=PoolingConfig(dense_dimensions=8),
    loss=LossConfig(learn_temperature=True, matryoshka_dims=(4,)),
    optim=OptimConfig(learning_rate=1e-2, schedule="constant", warmup_steps=0, layer_decay=0.7),
    lora=LoraConfig(3, alpha=6.0),
    train=TrainConfig(num_steps=10, initial_weights="given"),
)  # fmt: skip
CHUNKED = TrainConfig(num_steps=10, grad_cache_rows=16, scan_layers=True, remat="full")


def drawn(config, seed=5):
    """Parameters with adapters that change something."""
    params = init_params(config.model, jax.random.key(0), config.pooling)
    params = with_adapters(params, config.lora, jax.random.key(seed))
    rng = np.random.default_rng(seed)

    def one(path, x):
        return rng.normal(size=x.shape, scale=0.3) if param_name(path).endswith("b_AO") else x

    return jax.tree.map(np.float32, jax.tree_util.tree_map_with_path(one, params))


def test_gradients_are_those_of_the_merged_matrices_times_the_other_factor():
    config = dataclasses.replace(RUN, model=BertConfig(**SIZES, hidden_dropout_prob=0.2))
    params, batch, mesh = drawn(config), make_batch(config=config), make_mesh(MeshConfig(data=1))
    key = jax.random.key(1)

    def gradients(config, params):
        compute = jax.jit(jax.value_and_grad(lambda p, b: batch_loss(p, b, config, mesh, key)[0]))
        return compute(params, batch)

    whole = dataclasses.replace(config, lora=LoraConfig())
    expected_loss, of_matrices = gradients(whole, merged(params, config.lora))
    loss, found = gradients(config, params)
    assert float(loss) == pytest.approx(float(expected_loss), rel=1e-6)
    of_matrices = {
        param_name(path): np.asarray(x)
        for path, x in jax.tree_util.tree_leaves_with_path(of_matrices)
    }
    given, found = factors(params), factors(found)
    assert len(found) == 6
    for name, (of_a, of_b) in found.items():
        a_IA, b_AO = given[name]
        for got, wanted in (
            (of_a, 2.0 * of_matrices[name] @ b_AO.T), (of_b, 2.0 * a_IA.T @ of_matrices[name])
        ):  # fmt: skip
            assert np.linalg.norm(got - wanted) <= 1e-5 * np.linalg.norm(wanted), name


@pytest.mark.parametrize("train", [RUN.train, CHUNKED])
def test_no_product_of_the_step_is_a_gradient_of_a_frozen_matrix(train):
    found = {}
    for rank in (3, 0):
        config = dataclasses.replace(RUN, lora=LoraConfig(rank), train=train)
        step = make_train_step(config, make_mesh(MeshConfig(data=1)))
        program = jax.make_jaxpr(step)(state_shapes(config), make_batch(config=config))
        found[rank] = {
            equation.outvars[0].aval.shape
            for equation in equations(program.jaxpr)
            if equation.primitive.name == "dot_general"
        }
    frozen = {(16, 16), (16, 40), (40, 16)}
    assert frozen & found[0] == frozen
    assert not frozen & found[3]
    assert {(16, 3), (3, 16), (40, 3), (3, 40)} <= found[3]


def test_no_gradient_of_a_frozen_matrix_goes_from_device_to_device():
    mesh, reduced = make_mesh(MeshConfig(2, 4)), {}
    for rank in (3, 0):
        config = dataclasses.replace(RUN, lora=LoraConfig(rank))
        step = make_train_step(config, mesh)
        text = step.lower(state_shapes(config), make_batch(config=config)).as_text()
        found = re.findall(
            r"stablehlo\.(?:all_reduce|reduce_scatter)\b.*?-> tensor<([^>]+)>", text, re.DOTALL
        )
        reduced[rank] = set(found)
    # Parts of the table, and of matrices that are divided by four along either side.
    frozen = {"50x4xf32", "4x16xf32", "16x4xf32", "4x40xf32", "40x4xf32"}
    assert frozen <= reduced[0]
    assert not frozen & reduced[3]
    assert {"4x3xf32", "3x4xf32"} <= reduced[3]


def on_mesh(config, split):
    """The compiled step, a first state and a batch on a mesh."""
    mesh = make_mesh(MeshConfig(*split))
    check_divides(config, mesh)
    shardings = state_shardings(config, mesh)
    begin = jax.jit(
        lambda key: init_state(config, init_params(config.model, key, config.pooling)),
        out_shardings=shardings,
    )
    batch = put(make_batch(config=config), batch_shardings(mesh))
    return make_train_step(config, mesh), begin(jax.random.key(0)), batch


def flat(tree):
    return {
        param_name(path): np.asarray(x) for path, x in jax.tree_util.tree_leaves_with_path(tree)
    }


class Curve(NamedTuple):
    """Three steps on one device."""

    begun: dict
    losses: list
    after: dict
    """Parameters, and the rest of the state."""
    step: object
    batch: object
    saved: Path
    """Checkpoints, of the first step."""


@pytest.fixture(scope="module")
def one_device(tmp_path_factory):
    step, state, batch = on_mesh(RUN, (1, 1, 1))
    begun, losses, saved = flat(state), [], tmp_path_factory.mktemp("saved")
    for _ in range(3):
        state, metrics = step(state, batch)
        losses.append(float(metrics["loss"]))
        if len(losses) == 1:
            with Checkpoints(saved, keep=1) as checkpoints:
                checkpoints.save(state, {})
    return Curve(begun, losses, flat(state), step, batch, saved)


def of_params(state):
    return {
        name.removeprefix("params/"): x for name, x in state.items() if name.startswith("params/")
    }


def test_adapters_the_dense_layer_and_the_temperature_move_and_nothing_else(one_device):
    begun, after = of_params(one_device.begun), of_params(one_device.after)
    moved = {name for name in begun if np.any(begun[name] != after[name])}
    assert moved == {n for n in begun if "/adapter/" in n or n.startswith("dense/")}
    assert len(moved) == 2 * 6 + 2
    temperature = float(np.exp(one_device.after["temperature/log_temperature"]))
    assert temperature != pytest.approx(RUN.loss.temperature, rel=1e-4)
    assert one_device.losses[-1] < one_device.losses[0] - 0.1


CASES = list(itertools.product([(8, 1, 1), (2, 2, 2), (1, 8, 1), (1, 1, 8)], [RUN.train, CHUNKED]))


@pytest.mark.parametrize(("split", "train"), some_slow([((2, 2, 2), CHUNKED)], CASES))
def test_every_mesh_and_execution_gives_the_same_steps(one_device, split, train):
    step, state, batch = on_mesh(dataclasses.replace(RUN, train=train), split)
    found = []
    for _ in range(3):
        state, metrics = step(state, batch)
        found.append(float(metrics["loss"]))
    np.testing.assert_allclose(found, one_device.losses, atol=1e-5)
    after = of_params(one_device.after)
    for name, array in flat(state.params).items():
        np.testing.assert_allclose(array, after[name], atol=1e-5, err_msg=name)


def test_a_device_holds_its_part_of_an_adapter_as_of_its_matrix():
    shardings = state_shardings(RUN, make_mesh(MeshConfig(1, 2, 4)))
    specs = {
        param_name(path): at.spec
        for path, at in jax.tree_util.tree_leaves_with_path(shardings.params)
    }
    named = "blocks/0/attention/q/adapter/{}", "blocks/0/wo/adapter/{}"
    found = [specs[name.format(factor)] for name in named for factor in ("a_IA", "b_AO")]
    assert [*map(tuple, found)] == [
        ("fsdp", None), (None, "tensor"), ("tensor", None), (None, "fsdp"),
    ]  # fmt: skip


def test_resumption_is_exact(one_device):
    shardings = state_shardings(RUN, make_mesh(MeshConfig(1)))
    like = jax.tree.map(
        lambda x, at: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=at),
        state_shapes(RUN), shardings,
    )  # fmt: skip
    with Checkpoints(one_device.saved) as checkpoints:
        state = checkpoints.restore(1, like)
    for expected in one_device.losses[1:]:
        state, metrics = one_device.step(state, one_device.batch)
        assert float(metrics["loss"]) == expected
    found = flat(state)
    assert found.keys() == one_device.after.keys()
    for name, array in found.items():
        np.testing.assert_array_equal(array, one_device.after[name], err_msg=name)


@pytest.mark.parametrize(("optimizer", "moments"), [("adamw", 2), ("lion", 1), ("muon", 1)])
def test_optimizers_hold_moments_of_what_is_trained_alone(optimizer, moments):
    config = dataclasses.replace(RUN, optim=OptimConfig(optimizer))
    held = jax.tree.leaves(state_shapes(config).opt_state)
    factors = 3 * (4 * (16 + 16) + 2 * (16 + 40))
    dense = 16 * 8 + 8
    # Muon leaves the Dense layer to AdamW, and keeps three coefficients.
    of_dense = 2 if optimizer == "muon" else moments
    expected = moments * factors + of_dense * dense + 3 * (optimizer == "muon")
    assert sum(x.size for x in held if x.ndim) == expected


T5 = T5Config(vocab_size=50, d_model=16, d_kv=4, d_ff=40, num_layers=1, num_heads=4)
SHAPES = (
    T5, dataclasses.replace(T5, feed_forward_proj="gated-gelu"), BertConfig(**SIZES),
    MPNetConfig(**SIZES), ModernBertConfig(**SIZES | {"num_hidden_layers": 2}),
    Qwen3Config(**SIZES, num_key_value_heads=4, head_dim=4),
)  # fmt: skip


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: type(shape).__name__)
def test_merged_parameters_give_the_embeddings_of_training_in_every_family(shape):
    targets = ("k", "wo") if shape == T5 else ()
    lora = LoraConfig(4, targets=targets, rank_stabilised=True)
    config = dataclasses.replace(RUN, model=shape, lora=lora)
    params = drawn(config)
    assert {name.split("/")[-2] for name in factors(params)} == set(targets or shape.matrices)
    batch = make_batch(config=config)
    ids_RL, segments_RL = jnp.asarray(batch.ids_RL[:4]), jnp.asarray(batch.segments_RL[:4])

    def embeddings(params, lora):
        run = jax.jit(
            lambda params: embed(shape, RUN.pooling, params, ids_RL, segments_RL, 4, lora=lora)
        )
        return np.asarray(run(params))

    found = embeddings(merged(params, lora), LoraConfig())
    np.testing.assert_allclose(embeddings(params, lora), found, atol=2e-6)
    plain = jax.tree_util.tree_map_with_path(
        lambda path, x: x * 0 if param_name(path).endswith("b_AO") else x, params
    )
    assert np.abs(embeddings(plain, lora) - found).max() > 1e-2


def test_adapters_begin_without_effect_and_leave_the_rest_as_it_is_drawn():
    base = init_params(RUN.model, jax.random.key(0), RUN.pooling)
    params = with_adapters(base, RUN.lora, jax.random.key(0))
    for one, two in zip(jax.tree.leaves(merged(params, RUN.lora)), jax.tree.leaves(base)):
        np.testing.assert_array_equal(one, two)
    given = [a_IA for a_IA, _ in factors(params).values()]
    assert all(0.5 < np.abs(a_IA).max() * len(a_IA) ** 0.5 <= 1 for a_IA in given)
    assert len({a_IA.tobytes() for a_IA in given}) == len(given)
    trained, frozen = split_trained(params, RUN.lora)
    assert len(jax.tree.leaves(frozen)) == len(jax.tree.leaves(base)) - 2
    assert len(jax.tree.leaves(trained)) == 2 * len(given) + 2


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"targets": ("q",)}, "lora.targets=.* and lora.rank=0, which trains the whole model"),
        ({"alpha": 8.0}, "lora.alpha=8.0 and lora.rank=0"),
        ({"rank_stabilised": True}, "lora.rank_stabilised=True and lora.rank=0"),
        ({"rank": 4, "targets": ("q", "wg")}, "has no matrix 'wg'; it has q, k, v, o, wi, wo"),
        ({"rank": 4, "targets": ("q_proj",)}, "has no matrix 'q_proj'"),
        ({"rank": 4, "targets": ("q", "q")}, "lora.targets gives a name twice: q, q"),
        ({"rank": -1}, "lora.rank=-1 must be greater than or equal to 0"),
        ({"rank": 4, "alpha": 0.0}, "lora.alpha=0.0 must be greater than 0"),
    ],
)
def test_fields_that_contradict_each_other_are_refused(values, said):
    config = dataclasses.replace(RUN, feed=RunConfig("a").feed, model=BertConfig())
    validate(dataclasses.replace(config, lora=LoraConfig(4, targets=("q", "v"))))
    with pytest.raises(UserError, match=said):
        validate(dataclasses.replace(config, lora=LoraConfig(**values)))


def test_random_weights_are_not_frozen_and_no_adapter_is_exported_without_one():
    with pytest.raises(UserError, match=r"lora.rank=4 would freeze weights that are random"):
        validate(RunConfig("a", lora=LoraConfig(4)))
    with pytest.raises(UserError, match=r"export.adapter and lora.rank=0"):
        validate(RunConfig("a", export=ExportConfig(adapter=True)))
