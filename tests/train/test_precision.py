"""With bfloat16, products of matrices run in it; norms, softmax, pooling and the loss do not."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jina_jax.config import MeshConfig
from jina_jax.devices.mesh import make_mesh
from jina_jax.model.encoder import init_params
from jina_jax.train.step import batch_loss, make_train_step
from tests.devices.test_mesh import KEY, WHOLE, state_on
from tests.train.test_step import make_batch

HALF = dataclasses.replace(WHOLE, model=dataclasses.replace(WHOLE.model, compute_dtype="bfloat16"))


def equations(jaxpr):
    """All equations of a jaxpr and of those inside it."""
    for equation in jaxpr.eqns:
        yield equation
        for value in jax.tree.leaves(equation.params, is_leaf=lambda v: hasattr(v, "eqns")):
            if hasattr(value, "eqns") or hasattr(value, "jaxpr"):
                yield from equations(getattr(value, "jaxpr", value))


def loss_of(config, mesh):
    batch = jax.tree.map(jnp.asarray, make_batch(config=config))
    return lambda params: batch_loss(params, batch, config, mesh, KEY)[0]


@pytest.fixture(scope="module")
def mesh():
    return make_mesh(MeshConfig(data=1))


@pytest.fixture(scope="module")
def params():
    return init_params(WHOLE.model, jax.random.key(0))


def test_all_but_products_is_float32(mesh, params):
    jaxpr = jax.make_jaxpr(jax.value_and_grad(loss_of(HALF, mesh)))(params)
    dtypes = {}
    for equation in equations(jaxpr.jaxpr):
        for var in equation.invars:
            if jnp.issubdtype(var.aval.dtype, jnp.floating):
                dtypes.setdefault(equation.primitive.name, set()).add(var.aval.dtype.name)
    # Softmax and log-sums, norms and unit lengths, sums over tokens and over pairs.
    for name in ("exp", "log", "rsqrt", "reduce_max", "reduce_sum", "scatter-add"):
        assert dtypes[name] == {"float32"}, name
    assert "bfloat16" in dtypes["dot_general"]


def test_every_product_with_a_weight_is_bfloat16(mesh, params):
    jaxpr = jax.make_jaxpr(loss_of(HALF, mesh))(params)
    weights = {x.shape for x in jax.tree.leaves(params) if x.ndim == 2}
    found = [
        {var.aval.dtype.name for var in equation.invars}
        for equation in equations(jaxpr.jaxpr)
        if equation.primitive.name == "dot_general" and equation.invars[1].aval.shape in weights
    ]
    assert found == [{"bfloat16"}] * 6 * WHOLE.model.num_layers  # q, k, v, o, wi, wo


@pytest.mark.parametrize("wanted", ["highest", "high", "default"])
def test_float32_asks_for_float32_products_forward_and_backward(mesh, params, wanted):
    train = dataclasses.replace(WHOLE.train, float32_products=wanted)
    gradient = jax.grad(loss_of(dataclasses.replace(WHOLE, train=train), mesh))
    weights = {x.shape for x in jax.tree.leaves(params) if x.ndim == 2}
    found = [
        equation.params["precision"]
        for equation in equations(jax.make_jaxpr(gradient)(params).jaxpr)
        if equation.primitive.name == "dot_general"
        and weights & {var.aval.shape for var in (*equation.invars, *equation.outvars)}
    ]
    # q, k, v, o, wi, wo: forward, and backward to the hidden states and to the weights.
    assert len(found) >= 18 * WHOLE.model.num_layers
    asked = {"highest": "HIGHEST", "high": "HIGH", "default": "DEFAULT"}[wanted]
    assert {str(p).rpartition(".")[2] for pair in found for p in (pair or ("DEFAULT",))} == {asked}


def test_gradients_are_near_those_of_float32(mesh, params):
    (loss, exact), (half_loss, half) = (
        jax.jit(jax.value_and_grad(loss_of(config, mesh)))(params) for config in (WHOLE, HALF)
    )
    # 8 bits of mantissa; 0 would mean that nothing was computed in it.
    assert 1e-6 < abs(float(half_loss) - float(loss)) / float(loss) < 2e-2
    for a, b in zip(jax.tree.leaves(exact), jax.tree.leaves(half), strict=True):
        assert b.dtype == jnp.float32
        assert np.linalg.norm(a - b) < 0.1 * np.linalg.norm(a)


def test_parameters_and_second_moments_stay_float32(mesh):
    optim = dataclasses.replace(HALF.optim, moment_dtype="bfloat16")
    config = dataclasses.replace(HALF, optim=optim)
    state, metrics = make_train_step(config, mesh)(
        state_on(config, mesh), make_batch(config=config)
    )
    assert {x.dtype.name for x in jax.tree.leaves(state.params)} == {"float32"}
    assert metrics["loss"].dtype == jnp.float32
    moments = {x.dtype.name for x in jax.tree.leaves(state.opt_state) if x.ndim}
    assert moments == {"float32", "bfloat16"}
