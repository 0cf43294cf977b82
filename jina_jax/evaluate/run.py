"""The `evaluate` verb: what a run learned, beside the untrained model and BM25."""

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

from jina_jax.config import RunConfig
from jina_jax.devices.distributed import check_agreement, shared_problems
from jina_jax.devices.mesh import make_mesh
from jina_jax.errors import NO_RIGHT
from jina_jax.evaluate.negation import (
    MEASURES,
    NegationTask,
    held_out_negation,
    read_negation,
    score_negation,
)
from jina_jax.evaluate.reranking import RerankingTask, read_reranking, score_reranking
from jina_jax.evaluate.results import Results, score_all
from jina_jax.evaluate.retrieval import (
    RANK_MEASURES,
    RetrievalTask,
    evaluate_retrieval,
    held_out_retrieval,
)
from jina_jax.evaluate.retrieval_set import read_retrieval
from jina_jax.evaluate.sts import StsTask, held_out_sts, read_sts, score_sts
from jina_jax.inference.embedder import Embedder
from jina_jax.inference.initial import initial_params
from jina_jax.shards.manifest import load_manifest
from jina_jax.system.hashing import content_key
from jina_jax.system.terminal import say

RESULT_FILES = {
    "retrieval": "evaluation.json",
    "negation": "negation.json",
    "sts": "sts.json",
    "reranking": "reranking.json",
}
"""Kind of results → its file in the run folder."""


class Evaluation(NamedTuple):
    """Results by kind; systems are untrained, trained and, of retrieval, bm25; and `trained, int8`
    for a precision.
    """

    retrieval: Results
    """Of every source with held-out pairs or triplets, and `evaluate.retrieval`."""
    negation: Results
    """Of the sources of triplets, and `evaluate.negation`."""
    sts: Results
    """Of the sources of scored pairs, and `evaluate.sts`."""
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

    Raises: UserError naming the file that cannot be read; of several processes in all, also where
      one reads something else than the first.
    """
    with shared_problems():
        tasks = _read(config)
    for kind, chosen in tasks._asdict().items():
        check_agreement(content_key([one.name for one in chosen]), f"other sets of {kind}")
        for one in chosen:
            values = one
            if isinstance(one, RetrievalTask):
                corpus, own = (one.corpus.ids, one.corpus.digest), sorted(one.own_passages)
                values = vars(one) | {"corpus": corpus, "own_passages": own}
            check_agreement(
                content_key(values), f"other rows in the {kind} set {one.name!r}",
                "give every host the same files",
            )  # fmt: skip
    return tasks


def _read(config: RunConfig) -> Tasks:
    options = config.evaluate
    own_sts = [read_sts(s) for s in options.sts]
    reranking = [read_reranking(s) for s in options.reranking]
    own_retrieval = [read_retrieval(s) for s in options.retrieval]
    own_negation = [read_negation(s) for s in options.negation]
    retrieval: list[RetrievalTask] = []
    negation: list[NegationTask] = []
    sts: list[StsTask] = []
    if config.data.sources:  # An imported model comes without.
        manifest = load_manifest(config.data_path)
        retrieval = held_out_retrieval(manifest, config.data_path)
        negation = held_out_negation(manifest, config.data_path)
        sts = held_out_sts(manifest, config.data_path)
    return Tasks(
        [*retrieval, *own_retrieval], [*negation, *own_negation], [*sts, *own_sts], reranking
    )


def measures(tasks: Tasks, k: int) -> list[str]:
    """What `score_tasks` measures, as KIND/TASK/MEASURE."""
    by_kind = {
        "retrieval": [f"{measure}@{k}" for measure in RANK_MEASURES],
        "negation": MEASURES,
        "sts": ("spearman",),
        "reranking": (f"map@{k}",),
    }
    return [
        f"{kind}/{task}/{measure}"
        for kind, chosen in tasks._asdict().items()
        for task in (*(one.name for one in chosen), *(["average"] if chosen else []))
        for measure in by_kind[kind]
    ]


def score_tasks(
    tasks: Tasks, models: dict[str, Embedder], k: int, *, with_bm25: bool
) -> Evaluation:
    """Scores every model on every task.

    Args:
      tasks: of `read_tasks`.
      models: by name.
      k: cut-off of nDCG@k, recall@k, MAP@k and MRR@k.
      with_bm25: beside the models, where it applies.
    """
    return Evaluation(
        evaluate_retrieval(tasks.retrieval, models, k, with_bm25=with_bm25),
        score_all(tasks.negation, models, score_negation),
        score_all(tasks.sts, models, score_sts),
        score_all(tasks.reranking, models, partial(score_reranking, k=k)),
    )


def evaluate(config: RunConfig) -> Evaluation:
    """Evaluates the trained parameters, at each of `evaluate.precisions` too, beside those before
    training and BM25.

    Of several processes all call it, share the texts and get the same.
    """
    # Before minutes of work, so that a file that cannot be read stops it at once.
    tasks = read_tasks(config)
    trained = Embedder.from_run(config.run_path, batch_rows=config.evaluate.batch_rows)
    untrained = Embedder(
        initial_params(config, make_mesh()), config.model, trained.tokenizer,
        pooling=config.pooling, prompts=config.data.prompts, max_tokens=trained.max_tokens,
        batch_rows=config.evaluate.batch_rows,
    )  # fmt: skip
    models = {"untrained": untrained, "trained": trained}
    models |= {f"trained, {name}": trained.at(name) for name in config.evaluate.precisions}
    return score_tasks(tasks, models, config.evaluate.top_k, with_bm25=True)


def keep_results(run_path: Path, evaluation: Evaluation) -> None:
    """Writes `evaluation.json` (retrieval), `negation.json`, `sts.json` and `reranking.json` in the
    run folder, each where there are such results; says so where they may not be written.
    """
    try:
        for name, results in evaluation._asdict().items():
            path = run_path / RESULT_FILES[name]
            path.unlink(missing_ok=True)
            if results:
                path.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        if error.errno not in NO_RIGHT:
            raise
        say(f"these scores are not kept: {error.filename} may not be written ({error.strerror})")
