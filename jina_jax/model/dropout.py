"""Dropout whose randomness is a function of one key, the place it is used in and the row.

A row of a batch draws the same masks in whatever company it is encoded: on one device or many, with
the whole batch or with a part of it.
"""

import enum
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Int32


class Site(enum.IntEnum):
    """Where dropout is applied; each place folds its own number into the key."""

    EMBEDDING = 0
    ATTENTION_WEIGHTS = 1
    ATTENTION_OUTPUT = 2
    ACTIVATION = 3
    FEED_FORWARD_OUTPUT = 4
    FINAL_NORM = 5


class DropoutKey(NamedTuple):
    """What the masks of some rows of a batch are drawn from."""

    key: jax.Array
    """A key of `jax.random.key`."""
    row_R: Int[Array, "R"]
    """Number of each row in its batch."""

    def fold_in(self, number: int | Int[Array, ""]) -> "DropoutKey":
        """Another key for each number, for the same rows."""
        return self._replace(key=jax.random.fold_in(self.key, number))


def dropout(
    x: Float[Array, "..."], key: DropoutKey | None, site: Site, rate: float
) -> Float[Array, "..."]:
    """Zeroes each element with probability `rate` and scales the others by 1 / (1 - rate).

    Args:
      x: any float dtype; rows or what they consist of, row by row, on the first axis.
      key: the same key and row number give the same mask. None leaves `x` as it is.
      site: folded into the key, so that one key serves a whole layer.
      rate: probability in [0, 1).
    Returns: array like `x`.
    """
    if key is None or rate == 0.0:
        return x
    # Two 16-bit draws from each 32-bit word: on CPU the generator is what dropout costs (52 ms
    # for 4M elements with jax.random.bernoulli, 15 ms so). The rate is exact to 1 / 65536.
    rows, last = len(key.row_R), x.shape[-1]
    keys_R = jax.vmap(jax.random.fold_in, (None, 0))(key.fold_in(site).key, key.row_R)
    shape = (x.size // rows // last, -(-last // 2))
    words = jax.vmap(lambda k: jax.random.bits(k, shape, jnp.uint32))(keys_R)
    words = words.reshape(*x.shape[:-1], -1)
    threshold = round((1.0 - rate) * 65536)
    keep = jnp.concatenate([(words & 0xFFFF) < threshold, (words >> 16) < threshold], axis=-1)
    return jnp.where(keep[..., :last], x * (65536 / threshold), jnp.zeros_like(x))


def _signed(word: int) -> np.int32:
    return np.uint32(word).astype(np.int32)


_QUERY, _KEY, _HEAD = map(_signed, (0x9E3779B1, 0x85EBCA77, 0xC2B2AE3D))
"""Odd, so that each is a step through all words."""
_WEIGHT_BITS = 24


def weight_seeds(key: DropoutKey) -> Int32[Array, "R"]:
    """A word for each row, from which the dropout of its attention weights is made."""
    folded = key.fold_in(Site.ATTENTION_WEIGHTS).key
    keys_R = jax.vmap(jax.random.fold_in, (None, 0))(folded, key.row_R)
    words_R = jax.vmap(lambda k: jax.random.bits(k, (), jnp.uint32))(keys_R)
    return jax.lax.bitcast_convert_type(words_R, jnp.int32)


def is_kept(
    seed: Int32[Array, "..."],
    head: Int[Array, "..."],
    query: Int[Array, "..."],
    key: Int[Array, "..."],
    rate: float,
) -> Bool[Array, "..."]:
    """Whether an attention weight is kept, from its place alone: a kernel that never writes the
    weights drops the same ones as one that does.

    Args:
      seed: int32, of `weight_seeds`.
      head: number of the head.
      query: position in the row.
      key: position in the row.
      rate: probability of being dropped; exact to 2**-24.
    Returns: bool, of the shapes broadcast.
    Source: the scrambling is Chris Wellons' "lowbias32" (Hash Function Prospector, 2018).
    """
    word = query * _QUERY + key * _KEY + (head * _HEAD + seed)
    shifted = jax.lax.shift_right_logical
    word = (word ^ shifted(word, jnp.int32(16))) * _signed(0x7FEB352D)
    word = (word ^ shifted(word, jnp.int32(15))) * _signed(0x846CA68B)
    word = word ^ shifted(word, jnp.int32(16))
    threshold = jnp.int32(round((1.0 - rate) * (1 << _WEIGHT_BITS)))
    return shifted(word, jnp.int32(32 - _WEIGHT_BITS)) < threshold


def scale_of(rate: float) -> float:
    """What is kept is multiplied by this, so that the sum stays what it was."""
    return 1.0 / (1.0 - rate)
