"""The `evaluate` verb: a run's held-out records, beside the untrained model and BM25."""

import json
from typing import Any, NamedTuple

from jina_jax.config import RunConfig
from jina_jax.data.manifest import load_manifest
from jina_jax.evaluate.embedder import Embedder
from jina_jax.evaluate.negation import evaluate_negation, held_out_tasks
from jina_jax.evaluate.retrieval import evaluate_retrieval, load_task
from jina_jax.initial import initial_params
from jina_jax.mesh import make_mesh


class Evaluation(NamedTuple):
    """Task → system → measure → value in 0..1."""

    retrieval: dict[str, Any]
    """Of every source; systems untrained, trained and bm25."""
    negation: dict[str, Any]
    """Of the sources of triplets; systems untrained and trained."""


def evaluate(config: RunConfig) -> Evaluation:
    """Evaluates the newest checkpoint.

    Writes `evaluation.json` in the run folder and, where triplets are held out, `negation.json`.
    """
    manifest = load_manifest(config.data_path)
    tasks = [
        load_task(s.name, config.data_path / s.eval_path) for s in manifest.sources if s.eval_path
    ]
    trained = Embedder.from_run(config.run_path, batch_rows=config.evaluate.batch_rows)
    untrained = Embedder(
        initial_params(config, make_mesh()), config.model, trained.tokenizer,
        max_tokens=trained.max_tokens, batch_rows=config.evaluate.batch_rows,
    )  # fmt: skip
    models = {"untrained": untrained, "trained": trained}
    found = Evaluation(
        evaluate_retrieval(tasks, models, config.evaluate.top_k),
        evaluate_negation(held_out_tasks(manifest, config.data_path), models),
    )
    for name, results in (("evaluation", found.retrieval), ("negation", found.negation)):
        path = config.run_path / f"{name}.json"
        path.unlink(missing_ok=True)
        if results:
            path.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    return found
