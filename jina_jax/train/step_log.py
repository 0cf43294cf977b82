"""What is logged of each step."""

import jax
from jax.sharding import Mesh

from jina_jax.config import RunConfig
from jina_jax.devices.memory import peak_memory
from jina_jax.feed.batch import Batch
from jina_jax.train.metrics.source_metrics import SourceMetrics
from jina_jax.train.metrics.throughput import Goodput, Throughput
from jina_jax.train.metrics.writer import METRICS_FILE, MetricsWriter, read_metrics
from jina_jax.train.saves import Saves
from jina_jax.train.watch.alarms import Alarms
from jina_jax.train.watch.skipped import SkippedSteps


class StepLog:
    """Reads a step's metrics after the next one was dispatched, and logs them with the rates."""

    def __init__(
        self, config: RunConfig, mesh: Mesh, writer: MetricsWriter | None,
        of_sources: SourceMetrics, skipped: SkippedSteps, saves: Saves, goodput: Goodput,
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
        """
        self._config, self._writer, self._of_sources = config, writer, of_sources
        self._skipped, self._saves, self._goodput = skipped, saves, goodput
        self._pending: tuple[Batch, dict[str, jax.Array]] | None = None
        self._alarms = Alarms(
            config.alarms, of_sources.names,
            batch_size=config.feed.global_batch_size, warmup_steps=config.optim.warmup_steps,
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
        values = {name: float(value) for name, value in jax.device_get(metrics).items()}
        self.throughput.add(batch.arrays)
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
            {"step": done, "source": source, "batch": batch.fingerprint}
            | values
            | rates
            | peak_memory()
            | of_sources
            | self._goodput.read()
        )
        if alarms := self._alarms.judge(line):
            line["alarm"] = [alarm._asdict() for alarm in alarms]
        self._writer.write(line)
