"""Retrieval: queries, the passages to search and judgements; models and BM25 side by side."""

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow.parquet as pq
import pytrec_eval

from jina_jax.config import RetrievalSet
from jina_jax.errors import UserError
from jina_jax.evaluate.results import Results, score_all
from jina_jax.inference.embedder import Embedder
from jina_jax.inference.search import stream_top_k
from jina_jax.shards.manifest import Manifest
from jina_jax.sources.rows import Row, evaluation_rows
from jina_jax.system.files import find_files
from jina_jax.system.terminal import say

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
    prompts: tuple[str, str] | None = None
    """Before queries and passages; None for those of the model."""


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
    """The held-out pairs of every source of a prepared folder."""
    return [
        load_task(s.name, folder / s.eval_path, s.prompts) for s in manifest.sources if s.eval_path
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
    """The k passages of highest cosine per query; holds a block of their embeddings at a time."""
    query, document = task.prompts or (embedder.prompts.query, embedder.prompts.document)
    q_QD = embedder.encode(list(task.queries.values()), prompt=query)
    parts = embedder.stream(task.corpus.texts(), document)
    found = stream_top_k(q_QD, parts, k, mesh=embedder.mesh)
    return ranking(task.queries, task.corpus.ids, *found)


def rank_by_bm25(task: RetrievalTask, k: int) -> Ranking:
    """The k passages of highest BM25 score (k1 1.5, b 0.75, English stop words).

    Holds the words of all passages. Where they have none all score 0.
    """
    # On import it starts JAX's backend, which is too early for training by several processes.
    import bm25s

    logging.getLogger("bm25s").setLevel(logging.WARNING)
    split = partial(bm25s.tokenize, stopwords="en", show_progress=False)
    words, k = split(list(task.corpus.texts())), min(k, len(task.corpus.ids))
    if not any(words.ids):
        nothing = np.zeros((len(task.queries), k))
        return ranking(task.queries, task.corpus.ids, nothing, nothing.astype(int) + np.arange(k))
    index = bm25s.BM25()
    index.index(words, show_progress=False)
    found, score = index.retrieve(split(list(task.queries.values())), k=k, show_progress=False)
    return ranking(task.queries, task.corpus.ids, score, found)


def ranking(
    queries: Iterable[str], passages: Sequence[str], score_QK: np.ndarray, index_QK: np.ndarray
) -> Ranking:
    """What a search found, by the ids of the queries and passages."""
    return {
        query: {passages[i]: float(s) for i, s in zip(found, scores, strict=True)}
        for query, found, scores in zip(queries, index_QK, score_QK, strict=True)
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
    systems: dict[str, Embedder | None] = {**models, **({"bm25": None} if with_bm25 else {})}

    def score_system(task: RetrievalTask, model: Embedder | None) -> dict[str, float]:
        ranking = rank_by_bm25(task, k) if model is None else rank_by_embedding(task, model, k)
        return score(task, ranking, k)

    return score_all(tasks, systems, score_system)


_ENDINGS = (".jsonl", ".jsonl.gz", ".jsonl.zst")


class PartFiles(NamedTuple):
    """Of one of the three parts of a set."""

    name: str
    paths: tuple[str, ...]
    kind: str


def read_retrieval(config: RetrievalSet) -> RetrievalTask:
    """Reads queries and judgements of a set, and checks its passages.

    The passages' ids are held, their texts are not: they are read again whenever they are asked
    for. Queries without a judgement are left out, and their number is said.

    Raises: UserError naming the file and row that cannot be read, has no text or an id that came
      before, or judges a query or passage that is not there; and when nothing is judged.
    """
    corpus_files, query_files, qrels_files = retrieval_files(config)
    queries = dict(_with_ids(query_files, config.query_fields[0], config.query_fields[1], ""))
    id_field, title, text = config.corpus_fields
    ids = [name for name, _ in _with_ids(corpus_files, id_field, text, title)]
    relevant = _judgements(config, qrels_files, queries, frozenset(ids))
    if left_out := len(queries) - len(relevant):
        say(f"{config.name}: {left_out:,} of {len(queries):,} queries are not judged and left out")

    def texts() -> Iterator[str]:
        rows = evaluation_rows(corpus_files)
        return (_text(row, text, title) for row in rows)

    kept = {name: query for name, query in queries.items() if name in relevant}
    return RetrievalTask(config.name, kept, Corpus(ids, texts), relevant)


def retrieval_files(config: RetrievalSet) -> tuple[PartFiles, PartFiles, PartFiles]:
    """The files of the passages, the queries and the judgements of a set.

    Raises: UserError naming what a folder lacks.
    """
    if not config.folder:
        return (
            PartFiles(config.name, config.corpus, config.kind),
            PartFiles(config.name, config.queries, config.kind),
            PartFiles(config.name, config.qrels, config.qrels_kind),
        )
    qrels = f"{config.folder}/qrels/{config.split}.tsv"
    if not find_files(qrels):
        there = find_files(f"{config.folder}/qrels/*.tsv")
        splits = ", ".join(name.rpartition("/")[2].removesuffix(".tsv") for name in there)
        raise UserError(
            f"evaluation set {config.name!r}: there is no {qrels}; "
            + (f"choose a split of: {splits}" if splits else "check the folder")
        )
    return (
        PartFiles(config.name, (_in_folder(config, "corpus"),), "jsonl"),
        PartFiles(config.name, (_in_folder(config, "queries"),), "jsonl"),
        PartFiles(config.name, (qrels,), "tsv"),
    )


def _in_folder(config: RetrievalSet, part: str) -> str:
    paths = [f"{config.folder}/{part}{ending}" for ending in _ENDINGS]
    found = next((path for path in paths if find_files(path)), None)
    if found is None:
        raise UserError(
            f"evaluation set {config.name!r}: {config.folder} has no {part}.jsonl, neither plain "
            f"nor as .gz or .zst"
        )
    return found


def _with_ids(files: PartFiles, id_field: str, text: str, title: str) -> Iterator[tuple[str, str]]:
    """Id and text of each row; no id comes twice."""
    seen: set[str] = set()
    for row in evaluation_rows(files):
        name = _id(row, id_field)
        if name in seen:
            raise row.error(f"has the id {name!r} in field {id_field!r}, as a row before it")
        seen.add(name)
        yield name, _text(row, text, title)


def _id(row: Row, field: str) -> str:
    value = row.field(field)
    if isinstance(value, bool) or not isinstance(value, str | int) or value == "":
        raise row.error(f"holds {value!r} in field {field!r}, not an id (a text or whole number)")
    return str(value)


def _text(row: Row, field: str, title: str) -> str:
    """The text, after its title where it has one: joined as mteb joins them."""
    heading = row.values.get(title) or ""
    if not isinstance(heading, str):
        raise row.error(f"holds {heading!r} in field {title!r}, not a title")
    if not heading:
        return row.text(field).strip()
    text = row.field(field)
    joined = f"{heading} {text}".strip() if isinstance(text, str) else ""
    if not joined:
        raise row.error(f"holds {text!r} in field {field!r}, not a text")
    return joined


def _judgements(
    config: RetrievalSet, files: PartFiles, queries: dict[str, str], passages: frozenset[str]
) -> dict[str, dict[str, int]]:
    """Query → passage → relevance."""
    query_field, passage_field, score_field = config.qrels_fields
    relevant: dict[str, dict[str, int]] = {}
    for row in evaluation_rows(files):
        query, passage = _id(row, query_field), _id(row, passage_field)
        for what, name, field, known in (
            ("query", query, query_field, queries),
            ("passage", passage, passage_field, passages),
        ):
            if name not in known:
                raise row.error(f"names the {what} {name!r} in field {field!r}, which is not there")
        score = _relevance(row, score_field)
        if relevant.setdefault(query, {}).setdefault(passage, score) != score:
            raise row.error(f"gives query {query!r} and passage {passage!r} another {score_field}")
    if not any(score > 0 for scores in relevant.values() for score in scores.values()):
        raise UserError(
            f"evaluation set {config.name!r} has no judgement above 0 in field {score_field!r}: "
            f"no passage is relevant"
        )
    return relevant


def _relevance(row: Row, field: str) -> int:
    value = row.field(field)
    try:
        score = None if isinstance(value, bool) else int(value)
    except (TypeError, ValueError, OverflowError):
        score = None
    if score is None or (isinstance(value, float) and score != value):
        raise row.error(f"holds {value!r} in field {field!r}, not a whole number")
    return score
