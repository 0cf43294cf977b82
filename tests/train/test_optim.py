import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jina_jax.config import OptimConfig
from jina_jax.train.optim import learning_rate_schedule, make_optimizer


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
    params = {"matrix": jnp.ones((1, 2)), "scale": jnp.ones(2)}
    optimizer = make_optimizer(config, 10)
    grads = {"matrix": jnp.array([[300.0, -400.0]]), "scale": jnp.zeros(2)}
    updates, state = optimizer.update(grads, optimizer.init(params), params)
    new = optax.apply_updates(params, updates)
    # Adam's first step is the sign; decay takes 0.1 · 0.5 of the matrix and leaves the scale.
    assert np.allclose(new["matrix"], [[1 - 0.1 - 0.05, 1 + 0.1 - 0.05]], atol=1e-6)
    assert np.allclose(new["scale"], 1.0, atol=0)
    # Clipped to norm 1, the first moment is a tenth of (0.6, -0.8).
    assert np.allclose(optax.tree.get(state, "mu")["matrix"], [[0.06, -0.08]], atol=1e-6)
