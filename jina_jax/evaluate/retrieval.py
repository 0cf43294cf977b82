"""Retrieval: the model, the untrained model and BM25 side by side."""

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow.parquet as pq
import pytrec_eval

from jina_jax.errors import UserError
from jina_jax.evaluate.averages import Results, with_average
from jina_jax.inference.embedder import Embedder
from jina_jax.inference.search import stream_top_k

Ranking = dict[str, dict[str, float]]
"""Query id → passage id → score."""


class Corpus(NamedTuple):
    """The passages to search."""

    ids: Sequence[str]
    texts: Callable[[], Iterable[str]]
    """Gives the texts in the order of the ids, as often as it is called."""


def corpus_of(texts: dict[str, str]) -> Corpus:
    """Passages that are in memory, by id."""
    return Corpus(list(texts), texts.values)


@dataclass(frozen=True)
class RetrievalTask:
    """Queries, the passages to search and which of them are relevant."""

    name: str
    queries: dict[str, str]
    corpus: Corpus
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
    return task_of_pairs(
        name,
        ((r["query_hash"], r["query"], r["positive_hash"], r["positive"]) for r in rows),
    )


def task_of_pairs(name: str, pairs: Iterable[tuple[bytes, str, bytes, str]]) -> RetrievalTask:
    """A task whose passages are the positives of pairs, each relevant for its own query.

    Args:
      name: of the task.
      pairs: hash and text of the query, hash and text of the positive.
    """
    queries: dict[str, str] = {}
    corpus: dict[str, str] = {}
    relevant: dict[str, dict[str, int]] = {}
    for query_hash, query, passage_hash, passage in pairs:
        queries.setdefault(query_hash.hex(), query)
        corpus.setdefault(passage_hash.hex(), passage)
        relevant.setdefault(query_hash.hex(), {})[passage_hash.hex()] = 1
    return RetrievalTask(name, queries, corpus_of(corpus), relevant)


def rank_by_embedding(task: RetrievalTask, embedder: Embedder, k: int) -> Ranking:
    """The k passages of highest cosine per query; holds a block of their embeddings at a time."""
    q_QD = embedder.encode(list(task.queries.values()))
    parts = embedder.stream(task.corpus.texts())
    return _ranking(task, *stream_top_k(q_QD, parts, k, mesh=embedder.mesh))


def rank_by_bm25(task: RetrievalTask, k: int) -> Ranking:
    """The k passages of highest BM25 score (k1 1.5, b 0.75, English stop words).

    Holds the words of all passages.
    """
    # On import it starts JAX's backend, which is too early for training by several processes.
    import bm25s

    logging.getLogger("bm25s").setLevel(logging.WARNING)
    split = partial(bm25s.tokenize, stopwords="en", show_progress=False)
    index = bm25s.BM25()
    index.index(split(list(task.corpus.texts())), show_progress=False)
    found, score = index.retrieve(
        split(list(task.queries.values())), k=min(k, len(task.corpus.ids)), show_progress=False
    )
    return _ranking(task, score, found)


def _ranking(task: RetrievalTask, score_QK: np.ndarray, index_QK: np.ndarray) -> Ranking:
    passages = task.corpus.ids
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
