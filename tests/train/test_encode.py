import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jina_jax.config import FeedConfig, MeshConfig, RunConfig, TrainConfig
from jina_jax.config.validation import validate
from jina_jax.devices.mesh import (
    check_divides,
    make_mesh,
    param_shardings,
    replicated,
    split_first_axis,
)
from jina_jax.errors import UserError
from jina_jax.feed.batch import RecordKind
from jina_jax.model.encoder import init_params
from jina_jax.train.encode import encode_rows
from jina_jax.train.step import (
    batch_loss,
    batch_shapes,
    batch_shardings,
    init_state,
    make_train_step,
    state_shapes,
)
from tests.marks import some_slow
from tests.train.test_step import CONFIG, make_batch

FEED = dataclasses.replace(CONFIG.feed, global_batch_size=96, rows_multiple=16)
KEY = jax.random.key(3)


def with_chunks(chunk_rows):
    return dataclasses.replace(
        CONFIG, feed=FEED, train=dataclasses.replace(CONFIG.train, grad_cache_rows=chunk_rows)
    )


def gradient_of(chunk_rows, mesh):
    """The compiled loss and gradient, on the mesh, of a batch."""
    config = with_chunks(chunk_rows)
    return jax.jit(
        jax.value_and_grad(lambda p, b: batch_loss(p, b, config, mesh, KEY)[0]),
        in_shardings=(replicated(mesh), batch_shardings(mesh)),
    )


@pytest.fixture(scope="module")
def plain():
    batch, params = make_batch(config=with_chunks(0)), init_params(CONFIG.model, jax.random.key(0))
    assert len(batch.ids_RL) % 16 == 0 and len(batch.ids_RL) >= 64
    assert batch.segments_RL.max() > 1  # several texts a row
    return batch, params, gradient_of(0, make_mesh(MeshConfig(data=1)))(params, batch)


@pytest.mark.parametrize(
    ("chunk_rows", "devices"),
    some_slow([(16, 8)], [(1, 1), (4, 2), (8, 8), (16, 1), (16, 8)]),
)
def test_gradient_is_that_of_the_whole_batch_with_dropout(plain, chunk_rows, devices):
    batch, params, (loss, gradient) = plain
    assert CONFIG.model.dropout_rate > 0
    found_loss, found = gradient_of(chunk_rows, make_mesh(MeshConfig(data=devices)))(params, batch)
    assert float(found_loss) == pytest.approx(float(loss), rel=1e-6)
    for one, many in zip(jax.tree.leaves(gradient), jax.tree.leaves(found)):
        assert np.linalg.norm(np.asarray(many) - one) <= 1e-5 * np.linalg.norm(one)


@pytest.mark.slow
def test_gradient_is_that_of_the_whole_batch_on_a_mesh_of_two_axes(plain):
    batch, params, (_, gradient) = plain
    found = gradient_of(8, make_mesh(MeshConfig(2, 4)))(params, batch)[1]
    for one, many in zip(jax.tree.leaves(gradient), jax.tree.leaves(found)):
        assert np.linalg.norm(np.asarray(many) - one) <= 1e-5 * np.linalg.norm(one)


def test_another_dropout_is_noticed(plain):
    """The comparison above would see masks that are drawn for each chunk anew."""
    batch, params, (loss, _) = plain
    mesh, config = make_mesh(MeshConfig(data=1)), with_chunks(0)
    with_another = jax.jit(lambda p, b: batch_loss(p, b, config, mesh, jax.random.key(4))[0])
    assert abs(float(with_another(params, batch)) - float(loss)) > 1e-3


@pytest.mark.slow
def test_a_step_with_chunks_is_a_step_without(plain):
    batch, params, _ = plain
    mesh = make_mesh(MeshConfig(data=8))
    after = []
    for chunk_rows in (0, 8):
        config = with_chunks(chunk_rows)
        state = jax.device_put(init_state(config, jax.tree.map(jnp.copy, params)), replicated(mesh))
        after.append(make_train_step(config, mesh)(state, batch)[1])
    for name in ("loss", "accuracy", "gradient_norm"):
        assert float(after[1][name]) == pytest.approx(float(after[0][name]), rel=1e-5), name


@pytest.mark.slow
def test_memory_is_that_of_a_chunk(plain):
    batch, params, _ = plain
    wanted = [
        gradient_of(rows, make_mesh(MeshConfig(data=1)))
        .lower(params, batch)
        .compile()
        .memory_analysis()
        for rows in (0, 16, 8)
    ]
    whole, of_16, of_8 = (m.temp_size_in_bytes for m in wanted)
    assert of_8 < of_16 < whole / 2


def test_rows_keep_their_order_and_their_device():
    mesh = make_mesh(MeshConfig(data=8))
    rows = jax.device_put(jnp.arange(48.0).reshape(48, 1), split_first_axis(mesh))
    seen = []

    def encode(factor, x, access):
        jax.debug.callback(lambda x: seen.append(np.array(x).ravel()), x, ordered=False)
        return factor * x

    def chunked(rows, encode=encode):
        return encode_rows(
            encode, jnp.float32(2), rows, shardings=replicated(mesh), mesh=mesh, chunk_rows=16
        )

    np.testing.assert_array_equal(jax.jit(chunked)(rows), 2 * rows)
    jax.effects_barrier()
    # Device d holds rows 6d to 6d + 5 and encodes two of them at a time.
    assert sorted(x.tolist() for x in seen) == [[2 * i, 2 * i + 1] for i in range(24)]
    silent = jax.jit(lambda rows: chunked(rows, lambda factor, x, access: factor * x))
    text = silent.lower(rows).compile().as_text()
    for collective in ("all-gather", "all-to-all", "collective-permute", "all-reduce"):
        assert collective not in text


HALF = dataclasses.replace(
    CONFIG, feed=FEED,
    model=dataclasses.replace(CONFIG.model, vocab_size=56, num_heads=8, compute_dtype="bfloat16"),
)  # fmt: skip


def collectives(config, mesh, params, shardings):
    """Kind, dtype and shape of what each collective of the gradient gives, as it is asked for.

    A program that is compiled for CPUs has other dtypes: they sum no bfloat16.
    """
    gradient = jax.jit(
        jax.grad(lambda p, b: batch_loss(p, b, config, mesh, KEY)[0]),
        in_shardings=(shardings, batch_shardings(mesh)),
    )
    found = re.findall(
        r"stablehlo\.(all_reduce|reduce_scatter|all_gather)\b.*?-> tensor<([^>]+)>",
        gradient.lower(params, make_batch(config=config)).as_text(), re.DOTALL,
    )  # fmt: skip
    for kind, words in found:
        *size, dtype = words.split("x")
        yield kind, dtype, tuple(map(int, size))


@pytest.mark.parametrize("chunk_rows", [0, 16])
@pytest.mark.parametrize("gradient_dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("shape", [(8, 1, 1), (2, 4, 1)])
def test_gradients_are_summed_in_one_dtype_and_matrices_gathered_in_the_other(
    shape, gradient_dtype, chunk_rows
):
    train = dataclasses.replace(
        HALF.train, grad_cache_rows=chunk_rows, gradient_dtype=gradient_dtype
    )
    config = dataclasses.replace(HALF, train=train)
    mesh = make_mesh(MeshConfig(*shape))
    params = jax.eval_shape(lambda: init_params(config.model, jax.random.key(0)))
    shardings = param_shardings(params, mesh, config.model)
    leaves = zip(jax.tree.leaves(params), jax.tree.leaves(shardings), strict=True)
    matrices = [(x.shape, s.shard_shape(x.shape)) for x, s in leaves if x.ndim == 2]
    found = list(collectives(config, mesh, params, shardings))
    wholes, parts = (set(shapes) for shapes in zip(*matrices))
    summed = {dtype for kind, dtype, size in found if "reduce" in kind and size in parts}
    assert summed == {{"float32": "f32", "bfloat16": "bf16"}[gradient_dtype]}
    gathered = {dtype for kind, dtype, size in found if kind == "all_gather" and size in wholes}
    assert gathered == ({"bf16"} if shape[1] > 1 else set())


def parts_of(text):
    """The computations of a compiled program."""
    return re.split(r"\n(?=(?:ENTRY )?%?[\w.-]+ \()", text)


@pytest.mark.slow
@pytest.mark.parametrize("chunk_rows", [8, 16])
def test_devices_of_data_sum_their_gradients_once_whatever_the_chunks(plain, chunk_rows):
    batch, params, _ = plain
    text = (
        gradient_of(chunk_rows, make_mesh(MeshConfig(data=8)))
        .lower(params, batch)
        .compile()
        .as_text()
    )
    reducing = [part for part in parts_of(text) if re.search(r" all-reduce(-start)?\(", part)]
    assert re.search(r"body=", text)
    assert [part.startswith("ENTRY") for part in reducing] == [True]


@pytest.mark.slow
@pytest.mark.parametrize("chunk_rows", [0, 16])
def test_no_device_holds_all_parameters_or_their_gradient(chunk_rows):
    model = dataclasses.replace(
        CONFIG.model, vocab_size=1024, d_model=128, d_kv=16, d_ff=512, num_layers=6, num_heads=8
    )
    train = dataclasses.replace(
        CONFIG.train, grad_cache_rows=chunk_rows, remat="full", scan_layers=True
    )
    config = dataclasses.replace(CONFIG, feed=FEED, model=model, train=train)
    mesh = make_mesh(MeshConfig(1, 8))
    shapes = batch_shapes(config, 32, RecordKind(2))
    compiled = make_train_step(config, mesh).lower(state_shapes(config), shapes).compile()
    parameters = 4 * sum(x.size for x in jax.tree.leaves(state_shapes(config).params))
    # Whole parameters and a whole gradient alone would be twice this.
    assert compiled.memory_analysis().temp_size_in_bytes < parameters


def test_numbers_that_do_not_divide_are_refused_with_those_that_do():
    def config(rows_multiple, grad_cache_rows):
        return RunConfig(
            name="x",
            feed=FeedConfig(rows_multiple=rows_multiple),
            train=TrainConfig(grad_cache_rows=grad_cache_rows),
        )

    validate(config(32, 16))
    with pytest.raises(UserError, match=r"rows_multiple=40 does not divide by .*=16; use 32 or 48"):
        validate(config(40, 16))
    with pytest.raises(UserError, match=r"rows_multiple=8 does not divide by .*=16; use 16$"):
        validate(config(8, 16))
    with pytest.raises(UserError, match="grad_cache_rows=-8 must be greater than or equal to 0"):
        validate(config(8, -8))
    check_divides(config(8, 0), make_mesh(MeshConfig(data=8)))
    with pytest.raises(UserError, match=r"rows=12 does not divide by 8 devices of .*; use 8 or 16"):
        check_divides(config(24, 12), make_mesh(MeshConfig(data=8)))
