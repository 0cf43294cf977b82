"""The `evaluate` verb: what a run learned, beside the untrained model and BM25."""

import json
from collections.abc import Sequence
from typing import NamedTuple

from jina_jax.config import RunConfig
from jina_jax.devices.mesh import make_mesh
from jina_jax.evaluate.averages import Results
from jina_jax.evaluate.negation import (
    MEASURES,
    NegationTask,
    evaluate_negation,
    held_out_tasks,
    read_negation,
)
from jina_jax.evaluate.reranking import RerankingTask, evaluate_reranking, read_reranking
from jina_jax.evaluate.retrieval import RetrievalTask, evaluate_retrieval, load_task
from jina_jax.evaluate.retrieval_set import read_retrieval
from jina_jax.evaluate.sts import StsTask, evaluate_sts, read_sts
from jina_jax.inference.embedder import Embedder
from jina_jax.inference.initial import initial_params
from jina_jax.shards.manifest import load_manifest

RESULT_FILES = {
    "retrieval": "evaluation.json",
    "negation": "negation.json",
    "sts": "sts.json",
    "reranking": "reranking.json",
}
"""Kind of results → its file in the run folder."""


class Evaluation(NamedTuple):
    """Results by kind; systems are untrained, trained and, of retrieval, bm25."""

    retrieval: Results
    """Of every source with held-out records, and `evaluate.retrieval`."""
    negation: Results
    """Of the sources of triplets, and `evaluate.negation`."""
    sts: Results
    """Of `evaluate.sts`."""
    reranking: Results
    """Of `evaluate.reranking`."""


class Tasks(NamedTuple):
    """What a run is evaluated on."""

    retrieval: Sequence[RetrievalTask]
    negation: Sequence[NegationTask]
    sts: Sequence[StsTask]
    reranking: Sequence[RerankingTask]


def read_tasks(config: RunConfig) -> Tasks:
    """Reads the held-out records of the prepared folder, and the configured sets.

    Raises: UserError naming the file that cannot be read.
    """
    options = config.evaluate
    sts = [read_sts(s) for s in options.sts]
    reranking = [read_reranking(s) for s in options.reranking]
    own_retrieval = [read_retrieval(s) for s in options.retrieval]
    own_negation = [read_negation(s) for s in options.negation]
    retrieval, negation = _held_out(config) if config.data.sources else ([], [])
    return Tasks([*retrieval, *own_retrieval], [*negation, *own_negation], sts, reranking)


def _held_out(config: RunConfig) -> tuple[list[RetrievalTask], list[NegationTask]]:
    """Of a prepared folder; an imported model comes without one."""
    manifest, folder = load_manifest(config.data_path), config.data_path
    retrieval = [load_task(s.name, folder / s.eval_path) for s in manifest.sources if s.eval_path]
    return retrieval, held_out_tasks(manifest, folder)


def measures(tasks: Tasks, k: int) -> list[str]:
    """What `score_tasks` measures, as KIND/TASK/MEASURE."""
    of_kind = {
        "retrieval": (f"ndcg@{k}", f"recall@{k}"),
        "negation": MEASURES,
        "sts": ("spearman",),
        "reranking": (f"map@{k}",),
    }
    return [
        f"{kind}/{task}/{measure}"
        for kind, found in tasks._asdict().items()
        for task in (*(one.name for one in found), *(["average"] if found else []))
        for measure in of_kind[kind]
    ]


def score_tasks(
    tasks: Tasks, models: dict[str, Embedder], k: int, *, with_bm25: bool
) -> Evaluation:
    """Scores every model on every task.

    Args:
      tasks: of `read_tasks`.
      models: by name.
      k: cut-off of nDCG@k, recall@k and MAP@k.
      with_bm25: beside the models, where it applies.
    """
    return Evaluation(
        evaluate_retrieval(tasks.retrieval, models, k, with_bm25=with_bm25),
        evaluate_negation(tasks.negation, models),
        evaluate_sts(tasks.sts, models),
        evaluate_reranking(tasks.reranking, models, k),
    )


def evaluate(config: RunConfig) -> Evaluation:
    """Evaluates the trained parameters, beside those before training and BM25.

    Writes `evaluation.json` (retrieval), `negation.json`, `sts.json` and `reranking.json` in the
    run folder, each where there are such tasks.
    """
    # What cannot be read shall be known before minutes of work.
    tasks = read_tasks(config)
    trained = Embedder.from_run(config.run_path, batch_rows=config.evaluate.batch_rows)
    untrained = Embedder(
        initial_params(config, make_mesh()), config.model, trained.tokenizer,
        max_tokens=trained.max_tokens, batch_rows=config.evaluate.batch_rows,
    )  # fmt: skip
    models = {"untrained": untrained, "trained": trained}
    found = score_tasks(tasks, models, config.evaluate.top_k, with_bm25=True)
    for name, results in found._asdict().items():
        path = config.run_path / RESULT_FILES[name]
        path.unlink(missing_ok=True)
        if results:
            path.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    return found
