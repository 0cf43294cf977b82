"""The average of the parameters that training keeps beside them (EMA)."""

import jax.numpy as jnp
import optax
from jaxtyping import Array, Int32

from jina_jax.checkpoint.state import Params


def update_average(
    average: Params, params: Params, *, decay: float, step: Int32[Array, ""]
) -> Params:
    """The exponential moving average after a step: d · average + (1 - d) · params.

    d is (1 + step) / (10 + step) until that passes `decay`: so the average is of about the last
    tenth of the steps, and in the long run of the last 1 / (1 - decay). A constant d would keep the
    parameters that training began with for thousands of steps: after 500 at 0.999 they would still
    weigh 0.61. With this warm-up they weigh 1e-5 after ten, so that there is no bias to correct.
    (Dividing by 1 - decay^t, as Adam does, would give the plain mean of all steps so far, the first
    and worst among them.)

    Args:
      average: float32, as before the step.
      params: of the same shapes, after the step.
      decay: d in the long run, in 0..1.
      step: steps done before this one.
    Returns: the average after it.
    Source: the warm-up is that of `tf.train.ExponentialMovingAverage` with `num_updates`; averages
      of a fixed share of the steps are Karras et al. 2024 (arXiv 2312.02696), section 3.1.
    """
    d = jnp.minimum(decay, (1.0 + step) / (10.0 + step))
    averaged: Params = optax.incremental_update(params, average, 1.0 - d)
    return averaged
