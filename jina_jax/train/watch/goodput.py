"""Where the time of a run goes, over all its resumptions."""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

BUCKETS = ("start", "compile", "data_wait", "step", "checkpoint", "evaluation", "lost")
"""`start`: until the first batch is asked for. `checkpoint`: what the loop waits for, not what is
written beside it. `lost`: work after the newest checkpoint that a kill took and that is done again,
as far as metrics.jsonl tells of it."""


class Goodput:
    """Counts every second of this process in one bucket, and those of the processes before it."""

    def __init__(self) -> None:
        self._seconds = dict.fromkeys(BUCKETS, 0.0)
        self._bucket, self._since = "start", time.perf_counter()

    def resume(self, saved: Mapping[str, float], last_line: Mapping[str, float]) -> None:
        """Goes on from an earlier process.

        Args:
          saved: `saved_with` of the checkpoint that the run goes on from.
          last_line: the last line that was written to metrics.jsonl before.
        """
        for bucket in BUCKETS:
            self._seconds[bucket] += saved.get(bucket, 0.0)
        spent = sum(last_line.get(_name(bucket)) or 0.0 for bucket in BUCKETS)
        self._seconds["lost"] += max(0.0, spent - sum(saved.values()))

    def enter(self, bucket: str) -> str:
        """Counts what follows in a bucket, and gives the one before."""
        now = time.perf_counter()
        self._seconds[self._bucket] += now - self._since
        before, self._bucket, self._since = self._bucket, bucket, now
        return before

    @contextmanager
    def of(self, bucket: str) -> Iterator[None]:
        """Counts what is done inside in a bucket."""
        before = self.enter(bucket)
        try:
            yield
        finally:
            self.enter(before)

    def saved_with(self) -> dict[str, float]:
        """Seconds of each bucket, to be saved with a checkpoint."""
        self.enter(self._bucket)
        return dict(self._seconds)

    def read(self) -> dict[str, float]:
        """`goodput/BUCKET_s` for a line of metrics, and the `share` of all time that was step."""
        seconds = self.saved_with()
        share = seconds["step"] / max(sum(seconds.values()), 1e-9)
        return {_name(bucket): s for bucket, s in seconds.items()} | {"goodput/share": share}


def _name(bucket: str) -> str:
    return f"goodput/{bucket}_s"
