"""From hidden states of packed rows to one vector per text."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Float32, Int

from jina_jax.config import Activation, Pooling
from jina_jax.model.layers import gelu

ACTIVATIONS = {
    "identity": lambda x: x,
    "tanh": jnp.tanh,
    "relu": jax.nn.relu,
    "gelu": gelu,
    "sigmoid": jax.nn.sigmoid,
    "silu": jax.nn.silu,
}


def pool(
    hidden_RLD: Float[Array, "R L D"],
    segments_RL: Int[Array, "R L"],
    texts_per_row: int,
    mode: Pooling = "mean",
) -> Float32[Array, "R S D"]:
    """One vector per text.

    Args:
      hidden_RLD: hidden states, any float dtype.
      segments_RL: int, 0 for padding and what is not pooled, s for the s-th text of the row, at
        most `texts_per_row`.
      texts_per_row: slots S of a row.
      mode: `mean` over the tokens of a text, or the hidden state of its first token (`cls`) or
        last one (`lasttoken`).
    Returns: float32 [R, S, D]; slot s - 1 holds the text of segment s. A slot without tokens
      holds zeros, and its gradient is zero.
    Source: the mean is that of Günther et al. 2023 (arXiv 2307.11224), section 3.1.
    """
    belongs_RSL = _belongs(segments_RL, texts_per_row)
    if mode == "mean":
        # HIGHEST: the default precision of TPU and GPU would round the hidden states.
        sum_RSD = jnp.einsum(
            "rsl,rld->rsd",
            belongs_RSL.astype(jnp.float32),
            hidden_RLD.astype(jnp.float32),
            precision=jax.lax.Precision.HIGHEST,
        )
        tokens_RS1 = belongs_RSL.astype(jnp.float32).sum(axis=-1, keepdims=True)
        return sum_RSD / jnp.maximum(tokens_RS1, 1.0)
    chosen_RSD = _take_token(hidden_RLD, belongs_RSL, last=mode == "lasttoken")
    is_text_RS1 = belongs_RSL.any(axis=-1, keepdims=True)
    return jnp.where(is_text_RS1, chosen_RSD.astype(jnp.float32), 0.0)


def dense(
    pooled_RSD: Float32[Array, "R S D"],
    kernel_DE: Float32[Array, "D E"],
    bias_E: Float32[Array, " E"] | None,
    activation: Activation,
) -> Float32[Array, "R S E"]:
    """The Dense layer of sentence-transformers. An empty slot doesn't stay one."""
    out_RSE = jnp.einsum("rsd,de->rse", pooled_RSD, kernel_DE, precision=jax.lax.Precision.HIGHEST)
    return ACTIVATIONS[activation](out_RSE if bias_E is None else out_RSE + bias_E[None, None])


def unit(x_RSD: Float32[Array, "R S D"]) -> Float32[Array, "R S D"]:
    """Vectors at length 1; a vector of zeros stays one, and its gradient is zero."""
    square_RS1 = jnp.sum(jnp.square(x_RSD), axis=-1, keepdims=True)
    # The root of 0 has no finite gradient, so an empty slot takes the root of 1 instead.
    is_zero_RS1 = square_RS1 == 0.0
    return x_RSD / jnp.sqrt(jnp.where(is_zero_RS1, 1.0, square_RS1))


def _belongs(segments_RL: Int[Array, "R L"], texts_per_row: int) -> Bool[Array, "R S L"]:
    """Which positions each slot's text has."""
    slots_S = jnp.arange(1, texts_per_row + 1, dtype=segments_RL.dtype)
    return segments_RL[:, None, :] == slots_S[None, :, None]


def _take_token(
    hidden_RLD: Float[Array, "R L D"], belongs_RSL: Bool[Array, "R S L"], *, last: bool
) -> Float[Array, "R S D"]:
    length = belongs_RSL.shape[-1]
    if last:
        index_RS = length - 1 - jnp.argmax(belongs_RSL[..., ::-1], axis=-1)
    else:
        index_RS = jnp.argmax(belongs_RSL, axis=-1)
    return jnp.take_along_axis(hidden_RLD, index_RS[:, :, None], axis=1)


def first_dimensions(z_XD: Float32[Array, "... D"], dimensions: int) -> Float32[Array, "... E"]:
    """The first of the dimensions, at unit length again.

    Args:
      z_XD: vectors; a vector of zeros stands for a text that is not there, and stays one.
      dimensions: how many, at most D.
    Returns: [..., dimensions].
    Example: of (0.6, 0, 0.8), the first two dimensions are (1, 0).
    Source: Kusupati et al. 2022, "Matryoshka Representation Learning" (arXiv 2205.13147),
      section 3.
    """
    first_XE = z_XD[..., :dimensions]
    # The bound keeps the gradient at zero finite.
    squares_X1 = jnp.sum(first_XE**2, axis=-1, keepdims=True)
    return first_XE * jax.lax.rsqrt(jnp.maximum(squares_X1, 1e-12))


def first_token(
    hidden_RLD: Float[Array, "R L D"], segments_RL: Int[Array, "R L"], texts_per_row: int
) -> Float[Array, "R S D"]:
    """Hidden state of the first token of each text, which BERT's classifiers read.

    Args:
      hidden_RLD: hidden states, any float dtype.
      segments_RL: int, 0 for padding, s for the s-th text of the row, at most `texts_per_row`.
      texts_per_row: slots S of a row.
    Returns: [R, S, D] in the dtype of `hidden_RLD`; slot s - 1 holds the text of segment s. A slot
      without tokens holds no meaning.
    """
    return _take_token(hidden_RLD, _belongs(segments_RL, texts_per_row), last=False)
