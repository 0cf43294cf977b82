"""Root-mean-square layer norm."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float


class RMSNorm(nnx.Module):
    """Scale-only layer norm of T5: no mean is taken off and no bias is added."""

    def __init__(self, d_model: int, epsilon: float) -> None:
        self.epsilon = epsilon
        self.scale_D = nnx.Param(jnp.ones((d_model,), jnp.float32))

    def __call__(self, x_ND: Float[Array, "N D"]) -> Float[Array, "N D"]:
        """`x / sqrt(mean(x²) + epsilon) * scale`, in float32 whatever the dtype of `x`.

        Args:
          x_ND: one row per token.
        Returns: float32, one row per token.
        Source: Zhang & Sennrich 2019 (arXiv 1910.07467), without their bias.
        """
        x_ND = x_ND.astype(jnp.float32)
        mean_square_N1 = jnp.mean(jnp.square(x_ND), axis=-1, keepdims=True)
        return x_ND * jax.lax.rsqrt(mean_square_N1 + self.epsilon) * self.scale_D[None, :]
