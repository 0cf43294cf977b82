"""What is logged of each step, and of each source of the mixture."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
from jax.sharding import Mesh

from jina_jax.config import RunConfig
from jina_jax.devices.memory import peak_memory
from jina_jax.feed.batch import Batch, fingerprint_words
from jina_jax.feed.mixture import Mixture
from jina_jax.train.loss.contrastive import LossOutput
from jina_jax.train.loss.scored import ScoredOutput
from jina_jax.train.metrics.throughput import Goodput, Throughput
from jina_jax.train.metrics.writer import METRICS_FILE, MetricsWriter, read_metrics
from jina_jax.train.saves import Saves
from jina_jax.train.watch.alarms import Alarms
from jina_jax.train.watch.skipped import SkippedSteps

OnStep = Callable[[int, Mapping[str, Any]], None]
"""Is given the steps done, and their line of metrics."""
MEANS = tuple(
    dict.fromkeys((*LossOutput._fields, *ScoredOutput._fields, "distill_embeddings_loss"))
)
"""Metrics of a step that are reported for each source; `LossOutput` and `ScoredOutput` explain
them."""


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


class StepLog:
    """Reads a step's metrics after the next one was dispatched, and logs them with the rates."""

    def __init__(
        self, config: RunConfig, mesh: Mesh, writer: MetricsWriter | None,
        of_sources: SourceMetrics, skipped: SkippedSteps, saves: Saves, goodput: Goodput,
        on_step: OnStep | None = None,
    ):  # fmt: skip
        """Begins to log.

        Args:
          config: of the run.
          mesh: of its devices.
          writer: None in processes that write nothing.
          of_sources: receives every step's metrics.
          skipped: receives every step's metrics.
          saves: counts those that failed.
          goodput: of the run.
          on_step: is given each line that is written, with its step.
        """
        self._on_step = on_step
        self._config, self._writer, self._of_sources = config, writer, of_sources
        self._skipped, self._saves, self._goodput = skipped, saves, goodput
        self._pending: tuple[Batch, dict[str, jax.Array]] | None = None
        self._alarms = Alarms(
            config.alarms, of_sources.names,
            batch_size=config.feed.global_batch_size,
            warmup_steps=config.optim.warmup(config.train.num_steps),
        )  # fmt: skip
        # Alarms that were raised before a resumption stay raised.
        for line in read_metrics(config.run_path / METRICS_FILE) if writer else ():
            self._alarms.judge(line)
        self.throughput = Throughput(config, mesh)

    def dispatched(self, batch: Batch, metrics: dict[str, jax.Array]) -> None:
        """Takes a step that was dispatched, and logs the one before."""
        self.flush()
        self._pending = batch, metrics

    def flush(self) -> None:
        """Waits for the step dispatched last; logs it when it is due."""
        if self._pending is None:
            return
        batch, metrics = self._pending
        self._pending = None
        found = jax.device_get(metrics)
        fingerprint = fingerprint_words(found.pop("batch"))
        values = {name: float(value) for name, value in found.items()}
        self.throughput.add(batch)
        self._of_sources.add(batch.source, values)
        self._skipped.add(batch, values)
        values["skipped_steps"] = self._skipped.total
        values["failed_saves"] = self._saves.failures
        values.pop("skipped")
        done = batch.step + 1
        if done % self._config.train.log_every_steps and done != self._config.train.num_steps:
            return
        rates, of_sources = self.throughput.read(), self._of_sources.read()
        if self._writer is None:
            return
        source = self._of_sources.names[batch.source]
        line = (
            {"step": done, "source": source, "batch": fingerprint}
            | values
            | rates
            | peak_memory()
            | of_sources
            | self._goodput.read()
        )
        if alarms := self._alarms.judge(line):
            line["alarm"] = [alarm._asdict() for alarm in alarms]
        self._writer.write(line)
        if self._on_step is not None:
            self._on_step(done, line)
