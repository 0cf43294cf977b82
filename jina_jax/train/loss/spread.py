"""Spread of embeddings over the sphere: global orthogonal regularisation.

Both moments are over the cosines of all pairs of a batch, and neither needs the cosines: their sum
is that of the vectors' sum with itself, and the sum of their squares that of the entries of
xᵀx, a matrix of dimension × dimension.

Source: Zhang et al. 2017, arXiv 1708.06320, section 3; EmbeddingGemma, arXiv 2509.20354, for text.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float32


def squared_mean(x_BD: Float32[Array, "B D"]) -> Float32[Array, ""]:
    """Squared mean cosine of two different vectors; 0 of fewer than two.

    Args:
      x_BD: of unit length.
    """
    of_itself = jnp.sum(jnp.square(x_BD))
    total = jnp.sum(jnp.square(jnp.sum(x_BD, axis=0))) - of_itself
    return jnp.square(total / _pairs(x_BD))


def second_moment_above_chance(x_BD: Float32[Array, "B D"]) -> Float32[Array, ""]:
    """Mean squared cosine of two different vectors, by how much it is above 1/D, that of vectors
    in random directions; 0 of fewer than two.

    Args:
      x_BD: of unit length.
    """
    moments_DD = jnp.matmul(x_BD.T, x_BD, precision=jax.lax.Precision.HIGHEST)
    of_itself = jnp.sum(jnp.square(jnp.sum(jnp.square(x_BD), axis=-1)))
    total = jnp.sum(jnp.square(moments_DD)) - of_itself
    return jax.nn.relu(total / _pairs(x_BD) - 1 / x_BD.shape[1])


def _pairs(x_BD: Array) -> float:
    return max(float(len(x_BD)) * (len(x_BD) - 1), 1.0)
