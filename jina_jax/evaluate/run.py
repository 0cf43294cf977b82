"""The `evaluate` verb: what a run learned, beside the untrained model and BM25."""

import json
from typing import NamedTuple

from jina_jax.config import RunConfig
from jina_jax.data.manifest import load_manifest
from jina_jax.evaluate.averages import Results
from jina_jax.evaluate.embedder import Embedder
from jina_jax.evaluate.negation import evaluate_negation, held_out_tasks
from jina_jax.evaluate.reranking import evaluate_reranking, read_reranking
from jina_jax.evaluate.retrieval import evaluate_retrieval, load_task
from jina_jax.evaluate.sts import evaluate_sts, read_sts
from jina_jax.initial import initial_params
from jina_jax.mesh import make_mesh


class Evaluation(NamedTuple):
    """Results by kind; systems are untrained, trained and, of retrieval, bm25."""

    retrieval: Results
    """Of every source with held-out records."""
    negation: Results
    """Of the sources of triplets."""
    sts: Results
    """Of `evaluate.sts`."""
    reranking: Results
    """Of `evaluate.reranking`."""


def evaluate(config: RunConfig) -> Evaluation:
    """Evaluates the newest checkpoint.

    Writes `evaluation.json` (retrieval), `negation.json`, `sts.json` and `reranking.json` in the
    run folder, each where there are such tasks.
    """
    # Sets that cannot be read shall be known before minutes of work.
    sts = [read_sts(s) for s in config.evaluate.sts]
    reranking = [read_reranking(s) for s in config.evaluate.reranking]
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
        evaluate_sts(sts, models),
        evaluate_reranking(reranking, models, config.evaluate.top_k),
    )
    for name, results in found._asdict().items():
        path = config.run_path / f"{'evaluation' if name == 'retrieval' else name}.json"
        path.unlink(missing_ok=True)
        if results:
            path.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    return found
