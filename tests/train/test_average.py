"""The average of the parameters: what it is, where it lies, and that a run is used with it."""

import dataclasses
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jina_jax import api
from jina_jax.checkpoint.checkpoints import Checkpoints, load_checkpoint
from jina_jax.checkpoint.state import TrainState
from jina_jax.cli.tables import inspect
from jina_jax.config import EvaluateConfig, MeshConfig
from jina_jax.config.validation import validate
from jina_jax.devices.mesh import make_mesh, put
from jina_jax.errors import UserError
from jina_jax.inference.model import load
from jina_jax.model.encoder import init_params
from jina_jax.plan.compile import abstract_arguments, batch_shape
from jina_jax.train.average import update_average
from jina_jax.train.evaluation import StepEvaluation
from jina_jax.train.step import (
    batch_shardings,
    init_state,
    make_train_step,
    state_shapes,
    state_shardings,
)
from tests.faults.tiny_step import CONFIG, make_batch
from tests.marks import some_slow
from tests.prepared import tiny_config
from tests.trainer import curve, finish, start, stop_at

DECAY = 0.25
"""Reached at the third step: the warm-up has 1 / 10, 2 / 11, 3 / 12, 4 / 13."""


def averaged(config, decay, **train):
    return dataclasses.replace(
        config, train=dataclasses.replace(config.train, ema_decay=decay, **train)
    )


def test_by_hand():
    average, params = {"w": jnp.float32([1.0, 0.0])}, {"w": jnp.float32([0.0, 1.0])}
    for step, weight in ((0, 0.1), (1, 2 / 11), (8, 0.5), (89, 10 / 11), (10**6, 0.999)):
        found = update_average(average, params, decay=0.999, step=jnp.int32(step))["w"]
        np.testing.assert_allclose(found, [weight, 1 - weight], atol=2e-7)


def test_what_training_began_with_is_forgotten_after_ten_steps():
    average = {"w": jnp.float32(1.0)}
    for step in range(10):
        average = update_average(
            average, {"w": jnp.float32(0.0)}, decay=0.9999, step=jnp.int32(step)
        )
    assert float(average["w"]) == pytest.approx(1.0825e-5, rel=1e-3)  # 1 / (19 choose 10)


@pytest.mark.parametrize(
    ("split", "scan_layers"),
    some_slow(
        [((2, 2, 2), True)],
        [((1, 1, 1), False), ((8, 1, 1), False), ((1, 8, 1), True), ((2, 2, 2), True)],
    ),
)
def test_it_is_that_of_numpy_over_the_parameters_of_each_step(split, scan_layers):
    config, mesh = averaged(CONFIG, DECAY, scan_layers=scan_layers), make_mesh(MeshConfig(*split))
    shardings = state_shardings(config, mesh)
    state = put(init_state(config, init_params(config.model, jax.random.key(0))), shardings)
    step, expected = make_train_step(config, mesh), jax.tree.map(to_float64, state.params)
    for number in range(6):
        batch, is_bad = make_batch(number), number == 2
        if is_bad:
            batch.teacher_BS[3, 0] = np.inf
        state, metrics = step(state, put(batch, batch_shardings(mesh)))
        assert bool(metrics["skipped"]) == is_bad
        if not is_bad:
            d = min(DECAY, (1 + number) / (10 + number))
            expected = jax.tree.map(
                lambda e, p, d=d: d * e + (1 - d) * to_float64(p), expected, state.params
            )
        for one, other in zip(*map(jax.tree.leaves, (state.average, expected)), strict=True):
            np.testing.assert_allclose(one, other, rtol=0, atol=1e-6)
            assert one.dtype == np.float32
    # It lies where the parameters do, and is neither they nor what training began with.
    for mine, theirs in zip(*map(jax.tree.leaves, (state.average, state.params)), strict=True):
        assert mine.sharding == theirs.sharding
    apart = [np.abs(a - b).max() for a, b in
             zip(*map(jax.tree.leaves, (state.average, state.params)), strict=True)]  # fmt: skip
    assert max(apart) > 1e-3


def to_float64(x):
    return np.asarray(x, np.float64)


def test_no_decay_keeps_no_average():
    state = state_shapes(CONFIG)
    assert state.average is None and state.model_params is state.params


def test_it_may_be_of_the_part_of_the_parameters_that_is_trained(tmp_path):
    params = {"frozen": jnp.float32([1, 2]), "trained": {"w": jnp.float32([3])}}
    average = {"trained": {"w": jnp.float32([4])}}
    state = TrainState(jnp.int32(7), params, (jnp.float32(0.5),), average=average)
    model = {"frozen": [1, 2], "trained": {"w": [4]}}
    assert jax.tree.map(lambda x: x.tolist(), state.model_params) == model
    with Checkpoints(tmp_path, keep=1) as checkpoints:
        checkpoints.save(state, {})
    at = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=at), state)
    found = Checkpoints(tmp_path).restore(7, like)
    assert bytes_of(found) == bytes_of(state)
    assert jax.tree.structure(found) == jax.tree.structure(state)
    kept = Checkpoints(tmp_path).restore_params(7, like.params)
    assert jax.tree.map(lambda x: x.tolist(), kept) == model


def test_plan_counts_it():
    shape = batch_shape(CONFIG.feed, 0)
    plain, with_average = (
        sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(abstract_arguments(config, shape)))
        for config in (CONFIG, averaged(CONFIG, 0.999))
    )
    params = state_shapes(CONFIG).params
    assert with_average - plain == 4 * sum(x.size for x in jax.tree.leaves(params))


@pytest.mark.parametrize("decay", [1.0, -0.1])
def test_a_decay_out_of_bounds_is_refused(decay):
    with pytest.raises(UserError, match=r"train\.ema_decay"):
        validate(averaged(CONFIG, decay))


def of_run(folder, run, steps):
    config = tiny_config(str(folder))
    return dataclasses.replace(
        averaged(config, 0.5, num_steps=steps, checkpoint_every_steps=3),
        workdir=str(folder / run),
        optim=dataclasses.replace(config.optim, schedule="constant", warmup_steps=2),
    )


def bytes_of(tree):
    return [np.asarray(x).tobytes() for x in jax.tree.leaves(tree)]


@pytest.mark.slow
def test_a_run_goes_on_with_it_and_is_used_with_it(folder, capfd):
    at_once = api.train(of_run(folder, "averaged", 6))
    assert "the model is the average of the parameters at decay 0.5" in capfd.readouterr().err
    api.train(of_run(folder, "averaged_twice", 3))
    resumed = api.train(of_run(folder, "averaged_twice", 6))
    assert bytes_of(resumed) == bytes_of(at_once)
    assert bytes_of(at_once.average) != bytes_of(at_once.params)
    run = folder / "averaged"
    trained = load_checkpoint(run)
    assert (trained.step, trained.ema_decay) == (6, 0.5)
    assert bytes_of(trained.params) == bytes_of(at_once.average)
    config = dataclasses.replace(of_run(folder, "averaged", 6), workdir=str(run))
    # Exported, it is compared with what was read; the card and `inspect` say what it is.
    exported, texts = api.export(config), ["log to a file", "number seven"]
    np.testing.assert_allclose(load(exported).encode(texts), load(run).encode(texts), atol=1e-6)
    assert "moving average of those of the steps, at decay 0.5" in (
        exported / "README.md"
    ).read_text(encoding="utf-8")
    assert "average of the parameters at decay 0.5" in inspect(run, 1)
    with pytest.raises(UserError, match=r"train\.ema_decay: 0\.5 → 0\.25"):
        api.train(averaged(config, 0.25))
    # What is evaluated during training is the average, and so is the best step that is kept.
    options = EvaluateConfig(every_steps=6, keep_best="retrieval/average/ndcg@10")
    evaluation = StepEvaluation(dataclasses.replace(config, evaluate=options), make_mesh(), 0)
    evaluation.run(at_once, 6, None)
    np.testing.assert_allclose(
        evaluation._embedder.encode(texts), load(exported).encode(texts), atol=1e-6
    )
    assert (run / "best" / "6").is_dir()
    assert bytes_of(load_checkpoint(run).params) == bytes_of(at_once.average)


@pytest.mark.slow
def test_a_killed_run_ends_with_the_same_average(folder):
    flags = ("--train.ema-decay=0.9",)
    finish(start(folder, "average_whole", *flags))
    for step in (9, 23):
        stop_at(folder, "average_killed", step, signal.SIGKILL, *flags)
    finish(start(folder, "average_killed", *flags))
    assert curve(folder, "average_killed") == curve(folder, "average_whole")
    one, other = (load_checkpoint(folder / run) for run in ("average_whole", "average_killed"))
    assert one.step == other.step == 40
    assert bytes_of(one.params) == bytes_of(other.params)
