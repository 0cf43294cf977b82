"""Retrieval on the held-out split: the model, the untrained model and BM25 side by side."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytrec_eval

from jina_jax.errors import UserError
from jina_jax.evaluate.averages import Results, with_average
from jina_jax.evaluate.embedder import Embedder
from jina_jax.evaluate.search import top_k

Ranking = dict[str, dict[str, float]]
"""Query id → passage id → score."""


@dataclass(frozen=True)
class RetrievalTask:
    """Queries, the passages to search and which of them are relevant."""

    name: str
    queries: dict[str, str]
    corpus: dict[str, str]
    relevant: dict[str, dict[str, int]]


def load_task(name: str, path: Path) -> RetrievalTask:
    """Reads the held-out pairs of one source; equal texts (same hash) are one query or passage.

    Args:
      name: of the source.
      path: Parquet with columns query, positive, query_hash and positive_hash.
    """
    if not path.is_file():
        raise UserError(f"no held-out pairs at {path}: prepare the data again")
    rows = pq.read_table(path).to_pylist()
    queries: dict[str, str] = {}
    corpus: dict[str, str] = {}
    relevant: dict[str, dict[str, int]] = {}
    for row in rows:
        query, passage = row["query_hash"].hex(), row["positive_hash"].hex()
        queries.setdefault(query, row["query"])
        corpus.setdefault(passage, row["positive"])
        relevant.setdefault(query, {})[passage] = 1
    return RetrievalTask(name, queries, corpus, relevant)


def rank_by_embedding(task: RetrievalTask, embedder: Embedder, k: int) -> Ranking:
    """The k passages of highest cosine per query."""
    q_QD = embedder.encode(list(task.queries.values()))
    corpus_CD = embedder.encode(list(task.corpus.values()))
    return _ranking(task, *top_k(q_QD, corpus_CD, k, mesh=embedder.mesh))


def rank_by_bm25(task: RetrievalTask, k: int) -> Ranking:
    """The k passages of highest BM25 score (k1 1.5, b 0.75, English stop words)."""
    # On import it starts JAX's backend, which is too early for training by several processes.
    import bm25s

    logging.getLogger("bm25s").setLevel(logging.WARNING)
    split = partial(bm25s.tokenize, stopwords="en", show_progress=False)
    index = bm25s.BM25()
    index.index(split(list(task.corpus.values())), show_progress=False)
    found, score = index.retrieve(
        split(list(task.queries.values())), k=min(k, len(task.corpus)), show_progress=False
    )
    return _ranking(task, score, found)


def _ranking(task: RetrievalTask, score_QK: np.ndarray, index_QK: np.ndarray) -> Ranking:
    passages = list(task.corpus)
    return {
        query: {passages[i]: float(s) for i, s in zip(found, scores, strict=True)}
        for query, found, scores in zip(task.queries, index_QK, score_QK, strict=True)
    }


def score(task: RetrievalTask, ranking: Ranking, k: int) -> dict[str, float]:
    """Mean nDCG@k and recall@k over the queries, by trec_eval."""
    evaluator = pytrec_eval.RelevanceEvaluator(task.relevant, {f"ndcg_cut.{k}", f"recall.{k}"})
    by_query = list(evaluator.evaluate(ranking).values())
    return {
        f"{name}@{k}": float(np.mean([q[f"{measure}_{k}"] for q in by_query]))
        for name, measure in (("ndcg", "ndcg_cut"), ("recall", "recall"))
    }


def evaluate_retrieval(
    tasks: Sequence[RetrievalTask], models: dict[str, Embedder], k: int, *, with_bm25: bool = True
) -> Results:
    """Scores every model and BM25 on every task and, as `average`, on their mean."""
    return with_average(
        {
            task.name: {
                name: score(task, rank_by_embedding(task, model, k), k)
                for name, model in models.items()
            }
            | ({"bm25": score(task, rank_by_bm25(task, k), k)} if with_bm25 else {})
            for task in tasks
        }
    )
