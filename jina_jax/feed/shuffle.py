"""A permutation that needs no memory: where row i of an epoch lies is computed, not stored."""

import numpy as np

_ROUNDS = 6


def _mix(x_N: np.ndarray) -> np.ndarray:
    """The finaliser of SplitMix64 (Steele et al. 2014): 64 bits in, 64 well-mixed bits out."""
    x_N = (x_N ^ (x_N >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x_N = (x_N ^ (x_N >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x_N ^ (x_N >> np.uint64(31))


def permute(index_N: np.ndarray, size: int, *seeds: int) -> np.ndarray:
    """Maps positions to rows by a pseudo-random permutation of range(size).

    A Feistel network over the next power of four, walked until the value falls below `size`
    (Black & Rogaway 2002, "Ciphers with arbitrary finite domains").

    Args:
      index_N: integers in [0, size).
      size: rows of the epoch, below 2**62.
      *seeds: any integers; together they choose the permutation.
    Returns: int64 [N], the row at each position.
    """
    assert 0 < size < 2**62
    half_bits = np.uint64(max(1, ((size - 1).bit_length() + 1) // 2))
    half_mask = (np.uint64(1) << half_bits) - np.uint64(1)
    with np.errstate(over="ignore"):
        key = np.zeros(1, np.uint64)
        for seed in seeds:
            key = _mix(key + np.uint64(seed % 2**64) + np.uint64(0x9E3779B97F4A7C15))
        value_N = np.asarray(index_N).astype(np.uint64)
        todo_N = np.ones(value_N.shape, bool)
        while todo_N.any():
            left, right = value_N[todo_N] >> half_bits, value_N[todo_N] & half_mask
            for r in range(_ROUNDS):
                round_key = key + np.uint64(r + 1) * np.uint64(0xD1B54A32D192ED03)
                left, right = right, left ^ (_mix(right + round_key) & half_mask)
            value_N[todo_N] = (left << half_bits) | right
            todo_N = value_N >= np.uint64(size)
    return value_N.astype(np.int64)
