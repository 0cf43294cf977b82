"""Embeddings whose first dimensions are embeddings too.

Source: Kusupati et al. 2022, "Matryoshka Representation Learning" (arXiv 2205.13147), section 3.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float32


def first_dimensions(z_BTD: Float32[Array, "B T D"], dimensions: int) -> Float32[Array, "B T E"]:
    """The first of the dimensions, at unit length again.

    Args:
      z_BTD: vectors; a vector of zeros stands for a text that is not there, and stays one.
      dimensions: how many, at most D.
    Returns: [B, T, dimensions].
    Example: of (0.6, 0, 0.8), the first two dimensions are (1, 0).
    """
    first_BTE = z_BTD[..., :dimensions]
    # The bound keeps the gradient at zero finite.
    squares_BT1 = jnp.sum(first_BTE**2, axis=-1, keepdims=True)
    return first_BTE * jax.lax.rsqrt(jnp.maximum(squares_BT1, 1e-12))
