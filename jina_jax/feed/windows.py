"""Windows of sources: read ahead in threads, dealt, and held until they are used up."""

import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from jina_jax.config import FeedConfig
from jina_jax.feed.order import Order, Piece
from jina_jax.feed.packing import cut_lengths
from jina_jax.shards.array_record import TokenisedRecords
from jina_jax.shards.shard_set import ShardSet

_THREADS_OF_DISK, _THREADS_OF_STORE = 2, 32
"""That read windows. Those that read from a store wait most of the time; from a disk, several only
wait for each other."""


class Dealt(NamedTuple):
    """Records in the order in which batches take them."""

    records: TokenisedRecords
    number_N: np.ndarray
    """int64, within the source."""

    def part(self, start: int, stop: int) -> "Dealt":
        """Some that follow each other."""
        return Dealt(self.records.part(start, stop), self.number_N[start:stop])

    @staticmethod
    def joined(parts: Sequence["Dealt"]) -> "Dealt":
        """One part after another."""
        return Dealt(
            TokenisedRecords.joined([part.records for part in parts]),
            np.concatenate([part.number_N for part in parts]),
        )


def read_window(
    shards: ShardSet, order: Order, group: int, epoch: int, window: int, config: FeedConfig
) -> Dealt:
    """Reads a window of a lane and deals it.

    Args:
      shards: of the source.
      order: of the source.
      group: of the lane.
      epoch: from 0.
      window: of the lane, from 0.
      config: limits of the texts, by whose lengths records are dealt.
    """
    runs = order.runs(group, epoch, window)
    records = TokenisedRecords.joined([shards.read_run(*run) for run in runs])
    number_M = np.concatenate([np.arange(*run) for run in runs])
    length_M = cut_lengths(records.lengths_NS, config).sum(1)
    order_M = order.deal(group, epoch, window, length_M)
    return Dealt(records.take(order_M), number_M[order_M])


class Windows:
    """The windows that a process reads of its groups, each read once and let go when used up.

    Two of a lane are held at most: the one in use and the next.
    """

    def __init__(self, read: Callable[[int, int, int, int], Dealt], *, from_store: bool):
        """Begins with none.

        Args:
          read: (source, group, epoch, window) → that window.
          from_store: whether records lie in an object store, where each read waits.
        """
        self._read, self._from_store = read, from_store
        self._found: dict[tuple[int, int], dict[tuple[int, int], Future[Dealt]]] = {}
        self._asked_until = 0
        self._lock = threading.Lock()
        self._threads = ThreadPoolExecutor(
            _THREADS_OF_STORE if from_store else _THREADS_OF_DISK, "windows"
        )

    def coming(self, step: int, until: int) -> range:
        """The steps behind `step` and before `until` that were not given before."""
        with self._lock:
            found = range(max(step + 1, self._asked_until), until)
            self._asked_until = max(self._asked_until, until)
        return found

    def ask(self, source: int, group: int, pieces: Iterable[Piece]) -> list[Future[Dealt]]:
        """Begins to read what is not there yet, and lets go of what is older."""
        wanted = [(piece.epoch, piece.window) for piece in pieces]
        with self._lock:
            lane = self._found.setdefault((source, group), {})
            for key in wanted:
                if key not in lane:
                    lane[key] = self._threads.submit(self._read, source, group, *key)
            return [lane[key] for key in wanted]

    def take(self, source: int, group: int, pieces: Sequence[Piece]) -> list[Dealt]:
        """The records of some pieces, one `Dealt` a piece; waits until they are read."""
        asked = self.ask(source, group, pieces)
        parts = [
            future.result().part(piece.start, piece.stop)
            for future, piece in zip(asked, pieces, strict=True)
        ]
        oldest = (pieces[0].epoch, pieces[0].window)
        with self._lock:
            lane = self._found[source, group]
            for key in [key for key in lane if key < oldest]:
                del lane[key]
        return parts

    def __reduce__(self) -> Any:
        # Workers begin with none.
        return partial(Windows, self._read, from_store=self._from_store), ()
