"""Reranking: whether the relevant ones of a query's passages are nearer to it than the others."""

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import pytrec_eval

from jina_jax.config import RerankingSet
from jina_jax.errors import UserError
from jina_jax.inference.embedder import Embedder
from jina_jax.sources.kinds import file_kind
from jina_jax.sources.rows import Row, evaluation_files, evaluation_rows
from jina_jax.system.terminal import say


class Candidates(NamedTuple):
    """A query and the passages to rank."""

    query: str
    positives: Sequence[str]
    negatives: Sequence[str]


class RerankingTask(NamedTuple):
    """The queries of a set."""

    name: str
    queries: Sequence[Candidates]


def read_reranking(config: RerankingSet) -> RerankingTask:
    """Reads a set of queries with passages.

    A query without a relevant passage, or without another, has one rank only: such are left out,
    as sentence-transformers does, and their number is said.

    Raises: UserError naming the file and row that cannot be read, and when no query is left.
    """
    kinds = {file_kind(path, config.kind) for path in evaluation_files(config)}
    read = _of_rows if kinds <= {"csv", "tsv"} else _of_records
    candidates = list(read(config))
    queries = [one for one in candidates if one.positives and one.negatives]
    if not queries:
        raise UserError(
            f"evaluation set {config.name!r} has no query with passages in both "
            f"{config.fields[1]!r} and {config.fields[2]!r}: check paths and fields"
        )
    if left_out := len(candidates) - len(queries):
        say(f"{config.name}: {left_out:,} queries without passages of both kinds are left out")
    return RerankingTask(config.name, queries)


def _of_records(config: RerankingSet) -> Iterator[Candidates]:
    """A query a record, with its passages."""
    query, positive, negative = config.fields
    for row in evaluation_rows(config):
        texts = _texts(row, query)
        if len(texts) != 1:
            raise row.error(f"has {len(texts)} texts in field {query!r}, not one")
        yield Candidates(texts[0], _texts(row, positive), _texts(row, negative))


def _of_rows(config: RerankingSet) -> Iterable[Candidates]:
    """A query's rows together, each passage once."""
    query, *fields = config.fields
    found: dict[str, tuple[dict[str, None], dict[str, None]]] = {}
    for row in evaluation_rows(config):
        sides = found.setdefault(row.text(query), ({}, {}))
        for side, field in zip(sides, fields, strict=True):
            if row.field(field).strip():
                side[row.field(field)] = None
    return (Candidates(q, list(good), list(other)) for q, (good, other) in found.items())


def _texts(row: Row, name: str) -> list[str]:
    cell = row.field(name)
    if not isinstance(cell, list):
        return [row.text(name)]
    for text in cell:
        if not isinstance(text, str) or not text.strip():
            raise row.error(f"holds {text!r} in field {name!r}, not a text")
    return cell


def mean_average_precision(
    positives: Sequence[np.ndarray], negatives: Sequence[np.ndarray], k: int
) -> float:
    """MAP@k by trec_eval (`map_cut`).

    The average precision of a query is the sum, over its relevant passages among the first k, of
    the share of relevant ones up to there, divided by the number of its relevant passages. Of equal
    scores the irrelevant passage comes first, so that a model that tells nothing apart gains
    nothing by the order of the file.

    Args:
      positives: scores of each query's relevant passages; at least one.
      negatives: scores of its others.
      k: cut-off.
    Returns: in 0..1.
    Example: one query, relevant 0.9 and 0.5, another 0.7: (1/1 + 2/3) / 2 = 0.8333.
    Source: Buckley & Voorhees 2005, TREC, ch. 3.
    """
    relevant: dict[str, dict[str, int]] = {}
    ranking: dict[str, dict[str, float]] = {}
    for number, (of_P, of_N) in enumerate(zip(positives, negatives, strict=True)):
        # trec_eval puts the later name first where scores are equal.
        scores_of_relevant = {f"a{i}": float(s) for i, s in enumerate(of_P)}
        relevant[str(number)] = dict.fromkeys(scores_of_relevant, 1)
        ranking[str(number)] = scores_of_relevant | {f"b{i}": float(s) for i, s in enumerate(of_N)}
    evaluator = pytrec_eval.RelevanceEvaluator(relevant, {f"map_cut.{k}"})
    by_query = evaluator.evaluate(ranking).values()
    return float(np.mean([q[f"map_cut_{k}"] for q in by_query]))


def score_reranking(task: RerankingTask, embedder: Embedder, k: int) -> dict[str, float]:
    """MAP@k of ranking each query's passages by their cosines with it."""
    queries, q_QD = _embedded(embedder, (c.query for c in task.queries), embedder.prompts.query)
    passages, p_CD = _embedded(
        embedder,
        (p for c in task.queries for p in (*c.positives, *c.negatives)),
        embedder.prompts.document,
    )

    def cosines(compared: Sequence[str], query: str) -> np.ndarray:
        return p_CD[[passages[p] for p in compared]] @ q_QD[queries[query]]

    positives = [cosines(c.positives, c.query) for c in task.queries]
    negatives = [cosines(c.negatives, c.query) for c in task.queries]
    return {f"map@{k}": mean_average_precision(positives, negatives, k)}


def _embedded(
    embedder: Embedder, texts: Iterable[str], prompt: str
) -> tuple[dict[str, int], np.ndarray]:
    """Each different text and its row, and the embeddings."""
    rows = {text: i for i, text in enumerate(dict.fromkeys(texts))}
    return rows, embedder.encode(list(rows), prompt=prompt)
