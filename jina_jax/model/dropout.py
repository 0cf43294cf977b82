"""Dropout whose randomness is a function of one key and the place it is used in."""

import enum

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


class Site(enum.IntEnum):
    """Where dropout is applied; each place folds its own number into the key."""

    EMBEDDING = 0
    ATTENTION_WEIGHTS = 1
    ATTENTION_OUTPUT = 2
    ACTIVATION = 3
    FEED_FORWARD_OUTPUT = 4
    FINAL_NORM = 5


def dropout(
    x: Float[Array, "..."], key: jax.Array | None, site: Site, rate: float
) -> Float[Array, "..."]:
    """Zeroes each element with probability `rate` and scales the others by 1 / (1 - rate).

    Args:
      x: any shape, any float dtype.
      key: a key of `jax.random.key`; the same key gives the same mask. None leaves `x` as it is.
      site: folded into the key, so that one key serves a whole layer.
      rate: probability in [0, 1).
    Returns: array like `x`.
    """
    if key is None or rate == 0.0:
        return x
    keep = jax.random.bernoulli(jax.random.fold_in(key, site), 1.0 - rate, x.shape)
    return jnp.where(keep, x / (1.0 - rate), jnp.zeros_like(x))
