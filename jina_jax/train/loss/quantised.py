"""Embeddings as few bits hold them, so that training sees what quantisation will lose."""

from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float32

_LEVELS = 127
"""Of int8 to each side of zero."""


@partial(jax.custom_vjp, nondiff_argnums=(1,))
def straight_through(
    z_BTD: Float32[Array, "B T D"], precision: Literal["int8", "binary"]
) -> Float32[Array, "B T D"]:
    """Embeddings quantised and read back, at length 1; their gradient passes as it comes.

    `int8` rounds to the nearest of 255 levels that divide a vector's own range, from minus to plus
    its largest absolute entry, evenly. So a vector depends on no other one, whatever the mesh. The
    int8 of `encode` divides each dimension's range over all texts into 256, which no batch knows:
    its steps are of about the same width, not the same. `binary` keeps the sign alone, and is what
    `encode` writes: an entry above 0 is 1, any other -1.

    Args:
      z_BTD: vectors of any length; one of zeros stands for a text that is not there, and stays one.
      precision: of the quantised vector.
    Returns: float32 vectors of length 1; the gradient of z_BTD is that of the result, unchanged.
    Example: of (0.6, -0.8, 0), binary is (1, -1, -1) / √3, and int8 is (95, -127, 0) / 158.6.
    Source: 2602.11151 trains embeddings with such a rounding to int8; Bengio et al. 2013
      (arXiv 1308.3432), section 4, has the straight-through estimator.
    """
    if precision == "binary":
        code_BTD = jnp.where(z_BTD > 0, 1.0, -1.0)
    else:
        largest_BT1 = jnp.max(jnp.abs(z_BTD), axis=-1, keepdims=True)
        code_BTD = jnp.round(z_BTD / jnp.where(largest_BT1 > 0, largest_BT1, 1.0) * _LEVELS)
    is_text_BT1 = jnp.any(z_BTD != 0, axis=-1, keepdims=True)
    length_BT1 = jnp.sqrt(jnp.sum(jnp.square(code_BTD), axis=-1, keepdims=True))
    return jnp.where(is_text_BT1, code_BTD / jnp.where(is_text_BT1, length_BT1, 1.0), 0.0)


def _forward(
    z_BTD: Float32[Array, "B T D"], precision: Literal["int8", "binary"]
) -> tuple[Float32[Array, "B T D"], None]:
    return straight_through(z_BTD, precision), None


def _backward(
    precision: Literal["int8", "binary"], _: None, gradient_BTD: Float32[Array, "B T D"]
) -> tuple[Float32[Array, "B T D"]]:
    return (gradient_BTD,)


straight_through.defvjp(_forward, _backward)
