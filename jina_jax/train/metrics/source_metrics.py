"""Metrics of each source of a mixture: how much was drawn, and the means of its steps."""

from collections.abc import Mapping

from jina_jax.feed.mixture import Mixture

MEANS = (
    "loss", "accuracy", "positive_cosine", "in_batch_cosine", "negative_cosine", "masked_share",
    "distill_loss",
)  # fmt: skip
"""Metrics of a step that are reported for each source; `LossOutput` explains them."""


class SourceMetrics:
    """Counts the batches of each source, and adds up their metrics from one line to the next."""

    def __init__(self, records: Mapping[str, int], mixture: Mixture, *, batch_size: int, done: int):
        """Begins to count.

        Args:
          records: name of each source → its training records, in the order of the mixture.
          mixture: of the run.
          batch_size: records in a batch.
          done: steps done before, whose batches the mixture gives.
        """
        self.names = list(records)
        self._records, self._mixture, self._batch_size = records, mixture, batch_size
        self._batches_N = mixture.drawn(done)
        self._reset()

    def _reset(self) -> None:
        self._values: list[list[Mapping[str, float]]] = [[] for _ in self._records]

    def planned(self) -> str:
        """What the whole run draws of each source, in words."""
        of_run = len(self._mixture.source_T)
        each = zip(self._records.items(), self._mixture.drawn(of_run).tolist(), strict=True)
        parts = [
            f"{name} {batches:,} ({batches * self._batch_size / size:.2f} epochs)"
            for (name, size), batches in each
        ]
        return f"of {of_run:,} batches: {', '.join(parts)}"

    def add(self, source: int, values: Mapping[str, float]) -> None:
        """Counts a step that is done, with its metrics."""
        self._batches_N[source] += 1
        if values.get("skipped"):
            return  # Its metrics mean nothing.
        self._values[source].append({name: values[name] for name in MEANS if name in values})

    def read(self) -> dict[str, float]:
        """Metrics named `source/NAME/...`; the means start anew.

        `batches`, `records` and `epochs` count what was drawn since the run began; `share` is that
        share of its batches, and `asked_share` what it should be. The others are means over the
        steps of the source since the last call; without such steps they are left out.
        """
        done = int(self._batches_N.sum())
        asked_N = self._mixture.asked(done)
        metrics: dict[str, float] = {}
        for s, (name, size) in enumerate(self._records.items()):
            batches = int(self._batches_N[s])
            of_source: dict[str, float] = {
                "batches": batches,
                "records": batches * self._batch_size,
                "epochs": batches * self._batch_size / size,
                "share": batches / done,
                "asked_share": float(asked_N[s]) / done,
            }
            if steps := self._values[s]:
                for mean in steps[0]:
                    of_source[mean] = sum(values[mean] for values in steps) / len(steps)
            metrics |= {f"source/{name}/{what}": value for what, value in of_source.items()}
        self._reset()
        return metrics
