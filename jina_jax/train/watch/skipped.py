"""Steps that were skipped because their loss or gradient was not finite, and their records."""

from collections.abc import Mapping
from pathlib import Path

from jina_jax.errors import NotFinite
from jina_jax.feed.batch import Batch
from jina_jax.shards.array_record import ShardSet
from jina_jax.system.terminal import say
from jina_jax.train.metrics.writer import json_line, keep_until, read_metrics

SKIPPED_FILE = "skipped.jsonl"


class SkippedSteps:
    """Counts skipped steps, and writes what a replay of them needs into `skipped.jsonl`.

    A line has `step`, `source`, `loss`, `gradient_norm` (null where not finite), `records` (their
    numbers within the source) and `hashes` (of the texts of each record, in hexadecimal).
    """

    def __init__(
        self, run_path: Path, sources: Mapping[str, ShardSet], *, start: int, limit: int,
        writes: bool,
    ):  # fmt: skip
        """Begins to count.

        Args:
          run_path: the file lies in it; lines after step `start` are removed.
          sources: of the feed, in its order.
          start: steps done before.
          limit: skipped steps in a row that end the run.
          writes: whether this process writes the file.
        """
        self._path, self._sources, self._writes = run_path / SKIPPED_FILE, sources, writes
        self._limit, self.in_a_row = limit, 0
        if writes and self._path.exists():
            keep_until(self._path, start)
        self.total = len(read_metrics(self._path)) if writes else 0
        """Since the run began."""

    def add(self, batch: Batch, values: Mapping[str, float]) -> None:
        """Counts a step that is done, skipped or not."""
        self.in_a_row = self.in_a_row + 1 if values["skipped"] else 0
        self.total += bool(self.in_a_row)
        if not self.in_a_row or not self._writes:
            return
        name = list(self._sources)[batch.source]
        hashes = self._sources[name].read(batch.record_B).hashes_NSx2
        line = {
            "step": batch.step + 1,
            "source": name,
            "loss": values["loss"],
            "gradient_norm": values["gradient_norm"],
            "records": batch.record_B.tolist(),
            "hashes": [[text.tobytes().hex() for text in record] for record in hashes],
        }
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json_line(line))
        say(
            f"STEP SKIPPED: {batch.step + 1}, a batch of {name}: loss {values['loss']:g}, gradient "
            f"norm {values['gradient_norm']:g}; its records are in {self._path}"
        )

    @property
    def are_too_many(self) -> bool:
        """Whether the run is to end."""
        return self.in_a_row >= self._limit

    def error(self, step: int) -> NotFinite:
        """What the run ends with, when `step` steps are saved."""
        return NotFinite(
            f"{self.in_a_row} steps in a row had no finite loss or gradient "
            f"(faults.max_skipped_steps). The parameters before them are saved as step {step}; the "
            f"records are in {self._path}. Where all sources are among them, lower "
            f"optim.learning_rate or lengthen optim.warmup_steps and begin anew with --workdir; "
            f"where it is one, look at its records. The same command goes on with the next batch"
        )
