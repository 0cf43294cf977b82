import jax
import jax.numpy as jnp

from jina_jax.train.profile import Profiler


def traces(folder):
    return sorted(folder.rglob("*.xplane.pb"))


def run(folder, steps, **planned):
    double = jax.jit(lambda x: 2 * x)
    x, written = jnp.ones(4), []
    with Profiler(folder, **planned) as profiler:
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


def test_nothing_is_traced_unasked(tmp_path):
    run(tmp_path, (0, 3), first_step=1, num_steps=0)
    assert not traces(tmp_path)
