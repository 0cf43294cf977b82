"""Loss, gradients and updates do not depend on how devices are divided over the mesh."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jina_jax.checkpoint.state import TrainState
from jina_jax.config import MeshConfig
from jina_jax.devices.mesh import AXES, check_divides, make_mesh, param_shardings, put, replicated
from jina_jax.errors import UserError
from jina_jax.model import t5
from jina_jax.model.encoder import init_params
from jina_jax.train.step import (
    batch_loss,
    batch_shardings,
    init_state,
    make_train_step,
    state_shapes,
    state_shardings,
)
from tests.marks import some_slow
from tests.train.test_step import CONFIG, make_batch

MODEL = dataclasses.replace(CONFIG.model, vocab_size=56, num_heads=8)
FEED = dataclasses.replace(CONFIG.feed, rows_multiple=16)
WHOLE = dataclasses.replace(CONFIG, model=MODEL, feed=FEED)
KEY = jax.random.key(3)
SPLITS = [(d, f, 8 // d // f) for d in (1, 2, 4, 8) for f in (1, 2, 4, 8) if 8 % (d * f) == 0]


def with_train(**values):
    return dataclasses.replace(WHOLE, train=dataclasses.replace(WHOLE.train, **values))


def value_and_grad(config, mesh_config):
    mesh = make_mesh(mesh_config)
    check_divides(config, mesh)
    params = init_params(config.model, jax.random.key(0))
    shardings = param_shardings(params, mesh, config.model)
    compute = jax.jit(
        jax.value_and_grad(lambda p, b: batch_loss(p, b, config, mesh, KEY)[0]),
        in_shardings=(shardings, batch_shardings(mesh)), out_shardings=replicated(mesh),
    )  # fmt: skip
    batch = put(make_batch(config=config), batch_shardings(mesh))
    loss, gradient = compute(put(params, shardings), batch)
    return float(loss), jax.device_get(gradient)


@pytest.fixture(scope="module")
def one_device():
    assert WHOLE.model.dropout_rate > 0
    return value_and_grad(WHOLE, MeshConfig(data=1))


def assert_equal(found, expected):
    assert found[0] == pytest.approx(expected[0], rel=5e-7)  # 4 units in the last place
    for a, b in zip(jax.tree.leaves(found[1]), jax.tree.leaves(expected[1]), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-6)


@pytest.mark.parametrize(
    ("data", "fsdp", "tensor"),
    some_slow([(2, 2, 2)], SPLITS),
)
def test_every_split_of_eight_devices_gives_one_devices_gradient(one_device, data, fsdp, tensor):
    assert_equal(value_and_grad(WHOLE, MeshConfig(data, fsdp, tensor)), one_device)


def test_all_splits_are_tried():
    assert len(SPLITS) == 10 and {np.prod(s) for s in SPLITS} == {8}


@pytest.mark.parametrize(
    ("scan_layers", "remat"),
    some_slow(
        [],  # That of chunks and rings has scanned layers.
        [(False, "dots"), (False, "full"), (True, "none"), (True, "dots"), (True, "full")],
    ),
)
def test_scanned_and_recomputed_layers_give_the_same_gradient(one_device, scan_layers, remat):
    config = with_train(scan_layers=scan_layers, remat=remat)
    assert_equal(value_and_grad(config, MeshConfig(2, 2, 2)), one_device)


@pytest.mark.parametrize(
    ("split", "gather"),
    some_slow(
        [((1, 4, 2), "ring")],
        [((2, 2, 2), "all_gather"), ((1, 8, 1), "ring"), ((1, 4, 2), "ring")],
    ),
)
def test_chunks_and_rings_compose_with_every_axis(one_device, split, gather):
    config = with_train(grad_cache_rows=16, scan_layers=True)
    config = dataclasses.replace(config, loss=dataclasses.replace(config.loss, gather=gather))
    assert_equal(value_and_grad(config, MeshConfig(*split)), one_device)


def test_another_mask_would_be_noticed(one_device):
    """Dropout is in the comparisons above: without it the loss is another."""
    model = dataclasses.replace(MODEL, dropout_rate=0.0)
    loss, _ = value_and_grad(dataclasses.replace(WHOLE, model=model), MeshConfig(data=1))
    assert abs(loss - one_device[0]) > 1e-3


def state_on(config, mesh):
    shardings = state_shardings(config, mesh)
    draw = jax.jit(
        lambda key: init_state(config, init_params(config.model, key)), out_shardings=shardings
    )
    return draw(jax.random.key(0))


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["adamw", "adafactor", "lion", "muon"])
def test_optimizers_step_alike_on_every_mesh(optimizer):
    optim = dataclasses.replace(CONFIG.optim, optimizer=optimizer, weight_decay=0.1)
    config, losses = dataclasses.replace(WHOLE, optim=optim), []
    for split in ((1, 1, 1), (2, 2, 2)):
        mesh = make_mesh(MeshConfig(*split))
        state, step = state_on(config, mesh), make_train_step(config, mesh)
        batch, curve = put(make_batch(config=config), batch_shardings(mesh)), []
        for _ in range(4):
            state, metrics = step(state, batch)
            curve.append(float(metrics["loss"]))
        losses.append(curve)
    assert losses[0][-1] < losses[0][0] - 0.01
    np.testing.assert_allclose(losses[1], losses[0], atol=1e-5)


def test_each_device_holds_its_part_of_parameters_and_moments():
    mesh = make_mesh(MeshConfig(data=1, fsdp=4, tensor=2))
    state = state_on(WHOLE, mesh)
    flat = {
        jax.tree_util.keystr(path, simple=True, separator="/"): x
        for path, x in jax.tree_util.tree_leaves_with_path(state)
    }
    parts = {name: x.addressable_shards[0].data.shape for name, x in flat.items()}
    of = {
        "embedding_VD": (28, 4), "attention/q/kernel": (4, 16), "attention/o/kernel": (16, 4),
        "feed_forward/wi/kernel": (4, 16), "feed_forward/wo/kernel": (16, 4),
        "position_bias/table": (32, 4), "final_norm/scale_D": (16,),
    }  # fmt: skip
    for name, shape in of.items():
        named = [part for path, part in parts.items() if path.endswith(f"{name}/value")]
        assert len(named) >= 3 and set(named) == {shape}, name  # parameter and two moments
    whole = sum(x.size for x in flat.values())
    assert sum(np.prod(p) for p in parts.values()) < whole / 6


def test_every_rule_names_a_parameter():
    specs = set()
    for kind in ("relu", "gated-gelu"):
        model = dataclasses.replace(MODEL, feed_forward_proj=kind)
        params = jax.eval_shape(lambda m=model: init_params(m, jax.random.key(0)))
        shardings = param_shardings(
            params, make_mesh(MeshConfig(data=2, fsdp=2, tensor=2)), WHOLE.model
        )
        for x, sharding in zip(jax.tree.leaves(params), jax.tree.leaves(shardings), strict=True):
            if x.ndim > 1:
                assert "tensor" in sharding.spec, (x.shape, sharding)
            specs.add(sharding.spec)
    assert specs >= set(t5.FAMILY.shardings.values())


def test_moments_can_be_bfloat16():
    optim = dataclasses.replace(CONFIG.optim, moment_dtype="bfloat16")
    state = state_shapes(dataclasses.replace(WHOLE, optim=optim))
    dtypes = [x.dtype for x in jax.tree.leaves(state.opt_state) if x.ndim]
    assert dtypes.count(jnp.bfloat16) == dtypes.count(jnp.float32) == len(dtypes) / 2
    assert isinstance(state, TrainState)


def test_sizes_that_do_not_fit_the_devices_are_refused_with_those_that_do():
    with pytest.raises(UserError, match=r"does not divide 8 devices; .* one of 1, 2, 4, 8"):
        make_mesh(MeshConfig(fsdp=3))
    with pytest.raises(UserError, match="needs 16 devices, and there are 8"):
        make_mesh(MeshConfig(data=4, fsdp=4))
    assert make_mesh(MeshConfig(tensor=2)).shape == dict(zip(AXES, (4, 1, 2)))
    assert make_mesh(MeshConfig(data=3)).size == 3
    model = dataclasses.replace(MODEL, num_heads=6)
    with pytest.raises(UserError, match=r"num_heads=6 does not divide by 4 .* use 4 or 8"):
        check_divides(dataclasses.replace(WHOLE, model=model), make_mesh(MeshConfig(tensor=4)))
    with pytest.raises(
        UserError, match=r"rows_multiple=12 does not divide by 8 .*data · mesh.fsdp"
    ):
        feed = dataclasses.replace(FEED, rows_multiple=12)
        check_divides(dataclasses.replace(WHOLE, feed=feed), make_mesh(MeshConfig(fsdp=2)))
