"""The `evaluate` verb: a run's held-out retrieval, beside the untrained model and BM25."""

import json
from typing import Any

from jina_jax.config import RunConfig
from jina_jax.data.manifest import load_manifest
from jina_jax.evaluate.embedder import Embedder
from jina_jax.evaluate.retrieval import evaluate_retrieval, load_task
from jina_jax.initial import initial_params
from jina_jax.mesh import make_mesh


def evaluate(config: RunConfig) -> dict[str, Any]:
    """Evaluates the newest checkpoint and writes `evaluation.json` in the run folder.

    Returns: task → system (trained, untrained, bm25) → measure → value in 0..1.
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
    results = evaluate_retrieval(
        tasks, {"untrained": untrained, "trained": trained}, config.evaluate.top_k
    )
    path = config.run_path / "evaluation.json"
    path.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    return results
