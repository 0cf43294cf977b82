"""The position-wise half of a T5 block, and the linear map that both halves are made of."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from jina_jax.config import T5Config
from jina_jax.model.dropout import DropoutKey, Site, dropout


class Linear(nnx.Module):
    """A matrix, stored [in, out] in float32 and multiplied in `dtype`; T5's have no bias."""

    def __init__(
        self,
        in_size: int,
        out_size: int,
        *,
        std: float,
        dtype: str,
        rngs: nnx.Rngs,
        has_bias: bool = False,
    ) -> None:
        self.dtype = dtype
        shape = (in_size, out_size)
        self.kernel = nnx.Param(std * jax.random.normal(rngs.params(), shape, jnp.float32))
        self.has_bias = has_bias
        if has_bias:
            self.bias_O = nnx.Param(jnp.zeros((out_size,), jnp.float32))

    def __call__(self, x: Float[Array, "N I"]) -> Float[Array, "N O"]:
        """The rows of `x` times the matrix, plus the bias if there is one, in `dtype`."""
        y = x.astype(self.dtype) @ self.kernel[...].astype(self.dtype)
        return y + self.bias_O[...].astype(self.dtype)[None] if self.has_bias else y


class FeedForward(nnx.Module):
    """`relu(x Wi) Wo` (T5 v1.0) or `(gelu(x Wi0) * x Wi1) Wo` (T5 v1.1)."""

    def __init__(self, config: T5Config, *, rngs: nnx.Rngs) -> None:
        d, f, dtype = config.d_model, config.d_ff, config.compute_dtype
        self.dropout_rate = config.dropout_rate
        self.is_gated = config.feed_forward_proj == "gated-gelu"
        if self.is_gated:
            self.wi_0 = Linear(d, f, std=d**-0.5, dtype=dtype, rngs=rngs)
            self.wi_1 = Linear(d, f, std=d**-0.5, dtype=dtype, rngs=rngs)
        else:
            self.wi = Linear(d, f, std=d**-0.5, dtype=dtype, rngs=rngs)
        self.wo = Linear(f, d, std=f**-0.5, dtype=dtype, rngs=rngs)

    def __call__(
        self, x_ND: Float[Array, "N D"], *, dropout_key: DropoutKey | None = None
    ) -> Float[Array, "N D"]:
        """Maps each token by itself.

        Args:
          x_ND: normalised hidden states, one row per token.
          dropout_key: the layer's key, or None for no dropout.
        Returns: [N, D] in the compute dtype.
        Source: Raffel et al. 2020; Shazeer 2020 (arXiv 2002.05202) for the gated form.
        """
        if self.is_gated:
            # The tanh approximation is what the checkpoints were trained with ("gelu_new").
            h_NF = jax.nn.gelu(self.wi_0(x_ND), approximate=True) * self.wi_1(x_ND)
        else:
            h_NF = jax.nn.relu(self.wi(x_ND))
        h_NF = dropout(h_NF, dropout_key, Site.ACTIVATION, self.dropout_rate)
        return self.wo(h_NF)
