"""Steps that were skipped because their loss or gradient was not finite, and their records."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from jina_jax.errors import NotFinite
from jina_jax.feed.batch import Batch
from jina_jax.feed.windows import Dealt
from jina_jax.system.terminal import say
from jina_jax.train.metrics.writer import json_line, keep_until, read_metrics

SKIPPED_FILE = "skipped.jsonl"


class SkippedSteps:
    """Counts skipped steps, and writes what a replay of them needs into `skipped.jsonl`.

    A line has `step`, `source`, `loss`, `gradient_norm` (null where not finite), `records` (their
    numbers within the source) and `hashes` (of the texts of each record, in hexadecimal).
    """

    def __init__(
        self, run_path: Path, names: Sequence[str], records_of: Callable[[int], Dealt],
        *, start: int, limit: int, writes: bool,
    ):  # fmt: skip
        """Begins to count.

        Args:
          run_path: the file lies in it; lines after step `start` are removed.
          names: of the sources, in the feed's order.
          records_of: step → the records of its whole batch, which is made again for it.
          start: steps done before.
          limit: skipped steps in a row that end the run.
          writes: whether this process writes the file.
        """
        self._path, self._writes = run_path / SKIPPED_FILE, writes
        self._names, self._records_of = names, records_of
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
        name = self._names[batch.source]
        of_batch = self._records_of(batch.step)
        line = {
            "step": batch.step + 1,
            "source": name,
            "loss": values["loss"],
            "gradient_norm": values["gradient_norm"],
            "records": of_batch.number_N.tolist(),
            "hashes": [
                [text.tobytes().hex() for text in record] for record in of_batch.records.hashes_NSx2
            ],
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
