"""Retrieval: queries, the passages to search and judgements; models and BM25 side by side."""

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow.parquet as pq
import pytrec_eval

from jina_jax.devices.distributed import from_first
from jina_jax.errors import UserError
from jina_jax.evaluate.results import Results, score_all
from jina_jax.inference.embedder import Embedder
from jina_jax.inference.search import stream_top_k
from jina_jax.shards.manifest import Manifest
from jina_jax.system.hashing import content_key

Ranking = dict[str, dict[str, float]]
"""Query id → passage id → score."""
RANK_MEASURES = {
    "ndcg": "ndcg_cut_{}", "recall": "recall_{}", "map": "map_cut_{}", "mrr": "recip_rank"
}  # fmt: skip
"""Measures of a ranking up to a cut-off, and their names in trec_eval."""


class Corpus(NamedTuple):
    """The passages to search."""

    ids: Sequence[str]
    texts: Callable[[], Iterable[str]]
    """Gives the texts in the order of the ids, as often as it is called."""
    digest: str
    """Of the texts."""


def corpus_of(texts: dict[str, str]) -> Corpus:
    """Passages that are in memory, by id."""
    return Corpus(list(texts), texts.values, content_key(list(texts.values())))


@dataclass(frozen=True)
class RetrievalTask:
    """Queries, the passages to search and which of them are relevant."""

    name: str
    queries: dict[str, str]
    corpus: Corpus
    relevant: dict[str, dict[str, int]]
    prompts: tuple[str, str] | None = None
    """Before queries and passages; None for those of the model."""
    own_passages: frozenset[str] = frozenset()
    """Ids of queries that stand among the passages themselves, and are not found there. Source:
    BEIR, Thakur et al. 2021 (arXiv 2104.08663), for ArguAna and Quora."""


def load_task(name: str, path: Path, prompts: tuple[str, str] | None = None) -> RetrievalTask:
    """Reads the held-out pairs of one source; equal texts (same hash) are one query or passage.

    Args:
      name: of the source.
      path: Parquet with columns query, positive, query_hash and positive_hash.
      prompts: that the source is trained with.
    """
    if not path.is_file():
        raise UserError(f"no held-out pairs at {path}: prepare the data again")
    rows = pq.read_table(path).to_pylist()
    task = task_of_pairs(
        name,
        ((r["query_hash"], r["query"], r["positive_hash"], r["positive"]) for r in rows),
    )
    return replace(task, prompts=prompts)


def held_out_retrieval(manifest: Manifest, folder: Path) -> list[RetrievalTask]:
    """The held-out pairs of every source of a prepared folder; of scored pairs none."""
    return [
        load_task(s.name, folder / s.eval_path, s.prompts)
        for s in manifest.sources
        if s.eval_path and s.record != "scored"
    ]


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
    """The k passages of highest cosine per query; holds a block of their embeddings at a time.

    Equal cosines are ordered as `score` orders them, at the cut-off too.
    """
    query, document = task.prompts or (embedder.prompts.query, embedder.prompts.document)
    q_QD = embedder.encode(list(task.queries.values()), prompt=query)
    own = embedder.own(task.corpus.texts(), document)
    found = stream_top_k(
        q_QD, own, k + bool(task.own_passages), mesh=embedder.mesh, order=order(task.corpus.ids)
    )
    return _without_own(task, ranking(task.queries, task.corpus.ids, *found), k)


def rank_by_bm25(task: RetrievalTask, k: int) -> Ranking:
    """The k passages of highest BM25 score (k1 1.5, b 0.75, English stop words).

    Holds the words of all passages. Where they have none all score 0. Which of equal scores at the
    cut-off are kept is left to bm25s.
    """
    # On import it starts JAX's backend, which is too early for training by several processes.
    import bm25s

    logging.getLogger("bm25s").setLevel(logging.WARNING)
    split = partial(bm25s.tokenize, stopwords="en", show_progress=False)
    words = split(list(task.corpus.texts()))
    most = min(k + bool(task.own_passages), len(task.corpus.ids))
    found = np.tile(np.arange(most), (len(task.queries), 1))
    score = np.zeros(found.shape)
    if any(words.ids):
        index = bm25s.BM25()
        index.index(words, show_progress=False)
        queries = split(list(task.queries.values()))
        found, score = index.retrieve(queries, k=most, show_progress=False)
    return _without_own(task, ranking(task.queries, task.corpus.ids, score, found), k)


def _without_own(task: RetrievalTask, found: Ranking, k: int) -> Ranking:
    """The first k of each query that are not the query itself."""
    for query in task.own_passages:
        found[query].pop(query, None)
    return {query: dict(islice(passages.items(), k)) for query, passages in found.items()}


def order(passages: Sequence[str]) -> np.ndarray:
    """The indices of passages (int32) in trec_eval's order of equal scores: by falling id."""
    indices = sorted(range(len(passages)), key=passages.__getitem__, reverse=True)
    return np.array(indices, np.int32)


def ranking(
    queries: Iterable[str], passages: Sequence[str], score_QK: np.ndarray, index_QK: np.ndarray
) -> Ranking:
    """What a search found, by the ids of the queries and passages."""
    return {
        query: {passages[i]: float(s) for i, s in zip(found, scores, strict=True)}
        for query, found, scores in zip(queries, index_QK, score_QK, strict=True)
    }


def score(task: RetrievalTask, ranking: Ranking, k: int) -> dict[str, float]:
    """Mean of each of `RANK_MEASURES` at k over the judged queries, by trec_eval.

    A passage is relevant where it is judged above 0; the gain of nDCG is the relevance itself. The
    average precision of MAP@k is divided by the number of a query's relevant passages, as MTEB
    does; sentence-transformers divides by k where there are more than k. A query without a relevant
    passage counts as 0.

    Equal scores are ordered as trec_eval orders them, the later id first, and compared as float32.
    sentence-transformers puts the earlier id first.
    """
    # trec_eval has no cut-off for the reciprocal rank: what is ranked behind k is left out here.
    first = {query: _first(passages, k) for query, passages in ranking.items()}
    names = {f"{measure}@{k}": name.format(k) for measure, name in RANK_MEASURES.items()}
    evaluator = pytrec_eval.RelevanceEvaluator(task.relevant, set(names.values()))
    by_query = list(evaluator.evaluate(first).values())
    return {measure: float(np.mean([q[name] for q in by_query])) for measure, name in names.items()}


def _first(passages: dict[str, float], k: int) -> dict[str, float]:
    """The first k in the order of trec_eval."""
    order = sorted(passages, key=lambda name: (np.float32(passages[name]), name), reverse=True)
    return {name: passages[name] for name in order[:k]}


def evaluate_retrieval(
    tasks: Sequence[RetrievalTask], models: dict[str, Embedder], k: int, *, with_bm25: bool = True
) -> Results:
    """Scores every model and BM25 on every task and, as `average`, on their mean.

    Of several processes all call it, and get the same; BM25 is of the first.
    """
    systems: dict[str, Embedder | None] = {**models, **({"bm25": None} if with_bm25 else {})}

    def score_system(task: RetrievalTask, model: Embedder | None) -> dict[str, float]:
        if model is None:
            found: dict[str, float] = from_first(lambda: score(task, rank_by_bm25(task, k), k))
            return found
        return score(task, rank_by_embedding(task, model, k), k)

    return score_all(tasks, systems, score_system)
