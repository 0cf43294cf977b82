"""The order of a source's records: which of them each group of each batch has.

A batch is made of groups, and each group draws from a lane of its own. For an epoch the source is
cut into blocks of consecutive records, these are put in random order, and every lane gets an equal
part of the row. A lane is read window by window. A window's records are dealt to the batches that
it lasts for, at random but so that each gets as many tokens: sorted by length and cut into as many
strata as a group has records, of which every group gets one each (Cochran 1977, "Sampling
Techniques", chapter 5). So a host reads a few long runs of records, packs rows that are equally
full, and finds step t without reading what was before; and every record comes once an epoch.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from jina_jax.feed.packing import mix

ORDER_VERSION = 2
"""Raise it when the same configuration gives other batches. 1 shuffled all records of a source."""
_ROUNDS = 6
_BLOCK = 1024
"""Most records of a block, which are read one after the other."""
_BLOCKS = 1024
"""As many blocks a source is cut into, where these are not too short or too long."""
_LEAST_BLOCK = 16
_LEAST_BATCHES = 16
"""Batches that a window lasts for, whatever their size: from window to window lengths differ."""


class Piece(NamedTuple):
    """Records of a batch that come from one window of a lane, in the order they are dealt in."""

    epoch: int
    window: int
    start: int
    stop: int


@dataclass(frozen=True)
class Order:
    """The order of one source."""

    records: int
    groups: int
    """Of a batch."""
    pairs: int
    """Records of a group; all groups together have no more than the source."""
    mixed: int
    """Records that the windows of all lanes hold together."""
    seed: int
    source: int
    """Number of the source, which decides beside the seed."""

    def lane(self, group: int) -> tuple[int, int]:
        """(first, end) of a group's part of an epoch's row of records."""
        return group * self.records // self.groups, (group + 1) * self.records // self.groups

    def pieces(self, group: int, ordinal: int) -> list[Piece]:
        """What makes a group of the batch that is the source's number `ordinal`, from 0."""
        first, end = self.lane(group)
        size, position, missing, found = end - first, ordinal * self.pairs, self.pairs, []
        while missing:
            epoch, within = divmod(position, size)
            taken = min(missing, size - within)
            # From the head of the epoch on, windows hold whole batches.
            window = max(0, within - self._head(size, epoch)) // self._window
            start, _ = self._ends(size, epoch, window)
            found.append(Piece(epoch, window, within - start, within - start + taken))
            position, missing = position + taken, missing - taken
        return found

    def runs(self, group: int, epoch: int, window: int) -> list[tuple[int, int]]:
        """[first, end) of each run of consecutive records of a window, in the order of reading."""
        first, end = self.lane(group)
        start, stop = (first + at for at in self._ends(end - first, epoch, window))
        block_K, until_K = _row_of_blocks(self.records, self.seed, self.source, epoch)
        runs: list[tuple[int, int]] = []
        number = int(np.searchsorted(until_K, start, side="right"))
        while start < stop:
            behind = min(stop, int(until_K[number])) - start
            # A block ends at its place's end, also where it is the short one.
            from_end = int(until_K[number]) - start
            block = int(block_K[number]) * block_records(self.records)
            at = min(block + block_records(self.records), self.records) - from_end
            if runs and runs[-1][1] == at:
                runs[-1] = (runs[-1][0], at + behind)
            else:
                runs.append((at, at + behind))
            start, number = start + behind, number + 1
        return runs

    def deal(self, group: int, epoch: int, window: int, length_M: np.ndarray) -> np.ndarray:
        """The order in which the records of a window come into batches.

        Args:
          group: of the lane.
          epoch: from 0.
          window: of the lane, from 0 in each epoch.
          length_M: tokens of each record of the window, in the order of reading.
        Returns: int64 [M], indices into the window.
        """
        first, end = self.lane(group)
        head = self._head(end - first, epoch) if window == 0 else 0
        of_window = (self.seed, self.source, epoch, group, window)
        order_M = np.argsort(_numbers(len(length_M), *of_window, 0), kind="stable")
        head = min(head, len(order_M))
        batches = (len(order_M) - head) // self.pairs
        body = order_M[head : head + batches * self.pairs]
        dealt = strata(length_M[body], self.pairs, _numbers(len(body), *of_window, 1))
        return np.concatenate([order_M[:head], body[dealt], order_M[head + len(body) :]])

    @property
    def _window(self) -> int:
        return window_records(self.groups, self.pairs, self.mixed)

    def _head(self, size: int, epoch: int) -> int:
        """Records at the beginning of an epoch that complete the batch the one before ended in."""
        return -epoch * size % self.pairs

    def _ends(self, size: int, epoch: int, window: int) -> tuple[int, int]:
        head = self._head(size, epoch)
        start = head + window * self._window if window else 0
        return start, min(size, head + (window + 1) * self._window)


def strata(length_N: np.ndarray, parts: int, number_N: np.ndarray) -> np.ndarray:
    """Deals records into groups of equally many, each of one from every stratum of lengths.

    Args:
      length_N: tokens of each; N is a multiple of `parts`.
      parts: records of a group, and strata.
      number_N: random numbers.
    Returns: int64 [N], the records of the first group, of the second, and so on.
    """
    by_length = np.argsort(length_N, kind="stable").reshape(parts, -1)
    within = np.argsort(number_N.reshape(by_length.shape), axis=1, kind="stable")
    return np.take_along_axis(by_length, within, axis=1).T.reshape(-1)


def window_records(groups: int, pairs: int, mixed: int) -> int:
    """Records of a lane's window, a multiple of a group's; arguments as of `Order`."""
    return pairs * max(_LEAST_BATCHES, mixed // (groups * pairs))


def block_records(records: int) -> int:
    """Records of a block of a source of so many."""
    return min(max(records // _BLOCKS, _LEAST_BLOCK), _BLOCK)


@lru_cache(maxsize=256)
def _row_of_blocks(
    records: int, seed: int, source: int, epoch: int
) -> tuple[np.ndarray, np.ndarray]:
    """Blocks of an epoch in their order, and how many records there are up to each one's end."""
    size = block_records(records)
    count = -(-records // size)
    block_K = permute(np.arange(count), count, seed, source, epoch)
    length_K = np.minimum(size, records - block_K * size)
    return block_K, np.cumsum(length_K)


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
        key = _key(*seeds)
        value_N = np.asarray(index_N).astype(np.uint64)
        todo_N = np.ones(value_N.shape, bool)
        while todo_N.any():
            left, right = value_N[todo_N] >> half_bits, value_N[todo_N] & half_mask
            for r in range(_ROUNDS):
                round_key = key + np.uint64(r + 1) * np.uint64(0xD1B54A32D192ED03)
                left, right = right, left ^ (mix(right + round_key) & half_mask)
            value_N[todo_N] = (left << half_bits) | right
            todo_N = value_N >= np.uint64(size)
    return value_N.astype(np.int64)


def _key(*seeds: int) -> np.ndarray:
    key = np.zeros(1, np.uint64)
    for seed in seeds:
        key = mix(key + np.uint64(seed % 2**64) + np.uint64(0x9E3779B97F4A7C15))
    return key


def _numbers(count: int, *seeds: int) -> np.ndarray:
    """Uint64 random numbers that depend on the seeds alone, whatever the library's version."""
    with np.errstate(over="ignore"):
        step = np.uint64(0x9E3779B97F4A7C15)
        return mix(_key(*seeds) + np.arange(1, count + 1, dtype=np.uint64) * step)
