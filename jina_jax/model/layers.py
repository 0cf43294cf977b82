"""The linear map, the norms and the graph that the encoders are made of."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from jina_jax.config import LoraConfig

INITIAL_STD = 0.02
"""Of BERT's weights and of those after it."""


def table(rows: int, columns: int, *, rngs: nnx.Rngs, std: float = INITIAL_STD) -> nnx.Param:
    """A vector for each piece, position or other number, drawn with a deviation."""
    return nnx.Param(std * jax.random.normal(rngs.params(), (rows, columns), jnp.float32))


class Adapter(nnx.Module):
    """What is trained in place of a matrix [in, out]: a product of rank A (Hu et al. 2021, arXiv
    2106.09685).
    """

    def __init__(self, in_size: int, out_size: int, lora: LoraConfig) -> None:
        self.scale = lora.scale
        self.a_IA = nnx.Param(jnp.zeros((in_size, lora.rank), jnp.float32))
        self.b_AO = nnx.Param(jnp.zeros((lora.rank, out_size), jnp.float32))

    def __call__(self, x: Float[Array, "N I"]) -> Float[Array, "N O"]:
        """`scale · x A B`, in the dtype of `x`."""
        return (x @ self.a_IA[...].astype(x.dtype) * self.scale) @ self.b_AO[...].astype(x.dtype)


class Linear(nnx.Module):
    """A matrix, stored [in, out] in float32 and multiplied in `dtype`."""

    adapter: Adapter | None = None
    """Of the class, so that a map without one has no such part."""

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
        if self.adapter is not None:
            y = y + self.adapter(x.astype(self.dtype))
        return y + self.bias_O[...].astype(self.dtype)[None] if self.has_bias else y


def gelu(x: Float[Array, "... F"]) -> Float[Array, "... F"]:
    """`x Φ(x)`, by the error function as torch computes it.

    In float32 on a CPU it takes half the time of `jax.nn.gelu` forward, and less with the backward
    pass; the complement of the error function that `jax.nn.gelu` takes keeps the small
    numbers that bfloat16 needs.
    """
    if x.dtype != jnp.float32:
        return jax.nn.gelu(x, approximate=False)
    return 0.5 * x * (1.0 + _erf(x * 2**-0.5))


@jax.custom_jvp
def _erf(x: Array) -> Array:
    """The error function. Its derivative is given here: JAX 0.12's own of float32 fails within
    `shard_map`.
    """
    return jax.lax.erf(x)


_erf.defjvps(lambda t, _, x: t * (2 * jnp.pi**-0.5) * jnp.exp(-x * x))


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


class LayerNorm(nnx.Module):
    """Takes off the mean, divides by the deviation, scales and shifts (Ba et al. 2016)."""

    def __init__(self, d_model: int, epsilon: float, *, has_bias: bool = True) -> None:
        self.epsilon, self.has_bias = epsilon, has_bias
        self.scale_D = nnx.Param(jnp.ones((d_model,), jnp.float32))
        if has_bias:
            self.bias_D = nnx.Param(jnp.zeros((d_model,), jnp.float32))

    def __call__(self, x_ND: Float[Array, "N D"]) -> Float[Array, "N D"]:
        """`(x - mean(x)) / sqrt(var(x) + epsilon) * scale + bias`, in float32.

        Args:
          x_ND: one row per token, any float dtype.
        Returns: float32, one row per token.
        Example: (1, 3) has mean 2 and deviation 1, and gives (-1, 1) with scale 1 and bias 0.
        Source: Ba et al. 2016 (arXiv 1607.06450).
        """
        x_ND = x_ND.astype(jnp.float32)
        # From the centred values: mean(x²) - mean(x)² would lose digits where the mean is large.
        centred_ND = x_ND - jnp.mean(x_ND, axis=-1, keepdims=True)
        variance_N1 = jnp.mean(jnp.square(centred_ND), axis=-1, keepdims=True)
        normal_ND = centred_ND * jax.lax.rsqrt(variance_N1 + self.epsilon)
        scaled_ND = normal_ND * self.scale_D[None, :]
        return scaled_ND + self.bias_D[None, :] if self.has_bias else scaled_ND


@functools.lru_cache
def graphdef(module: Any, config: Any, lora: LoraConfig = LoraConfig()) -> nnx.GraphDef:
    """The structure of `module(config)`, to be merged with its parameters.

    Args:
      module: class of an encoder or classifier.
      config: its shape.
      lora: says which matrices of layers have an adapter.
    """

    def made() -> nnx.Module:
        model = module(config, rngs=nnx.Rngs(0))
        for path, part in nnx.iter_modules(model) if lora.rank else ():
            if isinstance(part, Linear) and is_adapted(path, lora):
                in_size, out_size = part.kernel.shape
                part.adapter = Adapter(in_size, out_size, lora)
        return model

    return nnx.graphdef(nnx.eval_shape(made))


def is_adapted(path: tuple[Any, ...], lora: LoraConfig) -> bool:
    """Whether the matrix of the linear map at a path, such as `blocks/0/attention/q`, has an
    adapter.
    """
    is_chosen = not lora.targets or path[-1] in lora.targets
    return lora.rank > 0 and path[0] == "blocks" and is_chosen
