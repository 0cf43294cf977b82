import jax
import jax.numpy as jnp
import pytest

from jina_jax.config import RunConfig, TrainConfig
from jina_jax.config.validation import validate
from jina_jax.errors import UserError
from jina_jax.train.metrics.profile import Profiler


def traces(folder):
    return sorted(folder.rglob("*.xplane.pb"))


def run(folder, steps, *, first_step, num_steps):
    """What is written before each step where a run was started 10 steps before `first_step`."""
    train = TrainConfig(profile_steps=num_steps)
    profiler = Profiler(RunConfig("x", workdir=str(folder), train=train), first_step - 10)
    double = jax.jit(lambda x: 2 * x)
    x, written = jnp.ones(4), []
    with profiler:
        for step in range(*steps):
            profiler.before(step, x)
            x = double(x)
            written.append(len(traces(folder)))
    return written


def test_the_steps_asked_for_are_traced(tmp_path):
    # Written once step 3, the first after them, is about to start.
    assert run(tmp_path, (0, 6), first_step=1, num_steps=2) == [0, 0, 0, 1, 1, 1]
    assert len(traces(tmp_path / "profile")) == 1


def test_a_run_that_ends_within_the_trace_writes_it(tmp_path):
    assert run(tmp_path, (0, 3), first_step=1, num_steps=50) == [0, 0, 0]
    assert len(traces(tmp_path)) == 1


def test_a_run_is_traced_from_its_tenth_step_on(tmp_path):
    written = run(tmp_path, (100, 115), first_step=110, num_steps=2)
    assert written.index(1) == 12  # steps 110 and 111 are traced; 112 ends it
    assert len(traces(tmp_path / "profile")) == 1


def test_a_negative_number_of_steps_is_refused():
    config = RunConfig(name="x", train=TrainConfig(profile_steps=-1))
    with pytest.raises(UserError, match=r"train\.profile_steps=-1"):
        validate(config)


def test_nothing_is_traced_unasked(tmp_path):
    run(tmp_path, (0, 3), first_step=1, num_steps=0)
    assert not traces(tmp_path)
