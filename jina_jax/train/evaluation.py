"""Evaluation during training: metrics of a step, and the best parameters so far."""

import json
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
from jax.sharding import Mesh

from jina_jax.checkpoint.checkpoints import BEST_FOLDER, Checkpoints
from jina_jax.checkpoint.state import TrainState
from jina_jax.config import RunConfig
from jina_jax.devices.distributed import is_first
from jina_jax.errors import UserError
from jina_jax.evaluate.run import Tasks, measures, read_tasks, score_tasks
from jina_jax.inference.embedder import Embedder
from jina_jax.model.lora import merged
from jina_jax.system.terminal import say
from jina_jax.text.tokenizer import load_tokenizer
from jina_jax.train.metrics.writer import MetricsWriter, keep_until, read_metrics

OnEvaluation = Callable[[int, Mapping[str, float]], None]
"""Is given the steps done, and KIND/TASK/MEASURE → value."""
EVALUATIONS_FILE = "evaluations.jsonl"
_MODEL = "trained"


class StepEvaluation:
    """Evaluates the parameters of a run whenever `evaluate.every_steps` are done.

    Every process calls it for the same steps: they share the texts. The first one writes.
    """

    def __init__(
        self, config: RunConfig, mesh: Mesh, start: int, on_evaluation: OnEvaluation | None = None
    ):
        """Reads what a run is evaluated on; lines after step `start` are removed.

        The first process gives each evaluation to `on_evaluation`.

        Raises: UserError when there is nothing to evaluate on, or no such measure to choose by.
        """
        self._config, self._mesh, self._on_evaluation = config, mesh, on_evaluation
        self._path = config.run_path / EVALUATIONS_FILE
        self._embedder: Embedder | None = None
        self._merged = jax.jit(partial(merged, lora=config.lora))
        self._tasks: Tasks | None = None
        self._seen: dict[int, dict[str, float]] = {}
        if not config.evaluate.every_steps:
            return
        self._tasks = read_tasks(config)
        if not any(self._tasks):
            raise UserError(
                f"evaluate.every_steps={config.evaluate.every_steps} and nothing to evaluate on: "
                f"set data.eval_pairs and prepare again, or evaluate.retrieval, evaluate.negation, "
                f"evaluate.sts or evaluate.reranking"
            )
        known, best = measures(self._tasks, config.evaluate.top_k), config.evaluate.keep_best
        if best and best not in known:
            raise UserError(
                f"evaluate.keep_best={best} is not measured; choose one of: {', '.join(known)}"
            )
        if is_first():
            keep_until(self._path, start)
        self._seen = {
            line["step"]: line for line in read_metrics(self._path) if line["step"] <= start
        }

    def due(self, step: int) -> bool:
        """Whether `step` steps done are to be evaluated, and are not yet."""
        every = self._config.evaluate.every_steps
        is_last = step == self._config.train.num_steps
        return every > 0 and step > 0 and (step % every == 0 or is_last) and step not in self._seen

    def run(self, state: TrainState, step: int, writer: MetricsWriter | None) -> None:
        """Evaluates a step that is due.

        Args:
          state: after `step` steps.
          step: steps done.
          writer: draws the metrics, in the first process.
        """
        options = self._config.evaluate
        assert self._tasks is not None
        params, lora = state.model_params, self._config.lora
        embedder = self._embedder_of(self._merged(params) if lora.rank else params)
        found = score_tasks(self._tasks, {_MODEL: embedder}, options.top_k, with_bm25=False)
        values = {
            f"{kind}/{task}/{measure}": value
            for kind, results in found._asdict().items()
            for task, systems in results.items()
            for measure, value in systems[_MODEL].items()
        }
        if options.keep_best:
            self._keep_best(step, values, state.model_params)
        self._seen[step] = values
        if writer is not None:
            self._write(step, values)
            if self._on_evaluation is not None:
                self._on_evaluation(step, values)
            writer.draw({"step": step} | {f"evaluation/{n}": v for n, v in values.items()})

    def _embedder_of(self, params: Any) -> Embedder:
        if self._embedder is None:
            feed = self._config.feed
            self._embedder = Embedder(
                params, self._config.model, load_tokenizer(self._config.data_path / "tokenizer"),
                pooling=self._config.pooling, prompts=self._config.data.prompts,
                max_tokens=max(feed.query_tokens, feed.positive_tokens),
                batch_rows=self._config.evaluate.batch_rows, mesh=self._mesh,
            )  # fmt: skip
        self._embedder.use(params)
        return self._embedder

    def _keep_best(self, step: int, values: dict[str, float], params: Any) -> None:
        name = self._config.evaluate.keep_best
        if all(values[name] > before[name] for before in self._seen.values() if name in before):
            with Checkpoints(self._config.run_path / BEST_FOLDER, keep=1) as best:
                best.save_params(step, params, {name: values[name]})

    def _write(self, step: int, values: dict[str, float]) -> None:
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step} | values) + "\n")
        shown = "  ".join(f"{n} {v:.4f}" for n, v in values.items() if "/average/" in n)
        say(f"evaluation at step {step}: {shown}")
