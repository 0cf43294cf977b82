"""Mines one source: collects its pairs, embeds their texts, searches, applies the rules."""

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jina_jax.config import MineConfig, SourceConfig
from jina_jax.errors import UserError
from jina_jax.inference.embedder import Embedder
from jina_jax.inference.encode_file import embed_to_file
from jina_jax.inference.search import top_k
from jina_jax.mine.pairs import Known, Texts, collect_pairs, different_texts
from jina_jax.shards.array_record import ShardSet
from jina_jax.system.arrow import map_table
from jina_jax.system.atomic import join_files, write_atomically, write_jsonl
from jina_jax.system.progress import say, track
from jina_jax.system.workspace import Workspace

TAKEN, SAME_TEXT, TOO_NEAR, MARGIN, NOT_LOOKED_AT = range(5)
RULES = {SAME_TEXT: "same_text", TOO_NEAR: "first_rank", MARGIN: "margin"}
"""What drops a candidate: it is the query or one of its positives; it is nearer than `first_rank`;
it scores above the positive less the margin."""


class Judged(NamedTuple):
    """What became of the candidates of N pairs."""

    verdict_NK: np.ndarray
    """int8: TAKEN, a key of RULES, or NOT_LOOKED_AT where there were enough before, or it is
    farther than `last_rank`."""
    rank_NK: np.ndarray
    """int64, from 1, among candidates of another text than the query and its positives; of
    those the rank of the candidate before."""


def judge(
    score_NK: np.ndarray, is_known_NK: np.ndarray, positive_N: np.ndarray, config: MineConfig
) -> Judged:
    """Applies the rules in their order: same text, first rank, margin.

    Args:
      score_NK: float32 cosines of each pair's query with its nearest passages, best first.
      is_known_NK: bool; the passage is the query's own text or one of its positives.
      positive_N: float32 cosines of each query with its positive.
      config: ranks, margin and how many to take.
    Example: a positive at 0.8 and candidates at 0.9, 0.77 and 0.7, none known, with a relative
      margin of 0.05: the limit is 0.76, the first two are dropped by it and the third is taken.
    """
    positive_N1 = positive_N.astype(np.float64)[:, None]
    relative = config.margin_kind == "relative"
    limit_N1 = positive_N1 - config.margin * (np.abs(positive_N1) if relative else 1.0)
    rank_NK = np.cumsum(~is_known_NK, axis=1)
    verdict_NK = np.where(score_NK > limit_N1, MARGIN, TAKEN)
    verdict_NK[rank_NK < config.first_rank] = TOO_NEAR
    verdict_NK[is_known_NK] = SAME_TEXT
    is_taken_NK = (verdict_NK == TAKEN) & (rank_NK <= config.last_rank)
    taken_NK = np.cumsum(is_taken_NK, axis=1)
    is_over_NK = (taken_NK - is_taken_NK >= config.negatives_per_pair) | (
        rank_NK > config.last_rank
    )
    verdict_NK[is_over_NK] = NOT_LOOKED_AT
    return Judged(verdict_NK.astype(np.int8), rank_NK)


def counts(verdict_NK: np.ndarray) -> dict[str, Any]:
    """Candidates looked at, those taken, and those that each rule dropped."""
    by_verdict = np.bincount(verdict_NK.ravel(), minlength=NOT_LOOKED_AT + 1).tolist()
    return {
        "candidates": sum(by_verdict[:NOT_LOOKED_AT]),
        "triplets": by_verdict[TAKEN],
        "dropped": {name: by_verdict[number] for number, name in RULES.items()},
        "pairs_without_negative": int((~(verdict_NK == TAKEN).any(axis=1)).sum()),
    }


_MOST_KNOWN = 64
"""Candidates searched for in place of passages that are known to match. A query with more of them
may be left with fewer than `last_rank` others."""


class SourceMiner:
    """Steps that each go on from what lies in the workspace."""

    def __init__(
        self,
        source: SourceConfig,
        space: Workspace,
        embedder: Embedder,
        config: MineConfig,
        progress: bool,
    ) -> None:
        """Begins nothing yet.

        Args:
          source: of pairs.
          space: where files and markers lie.
          embedder: the trained model.
          config: ranks, margin and blocks.
          progress: show it on standard error.
        """
        self._source, self._space, self._embedder = source, space, embedder
        self._config, self._progress = config, progress

    def run(self, shards: Sequence[Path]) -> dict[str, Any]:
        """Makes the files of the source.

        Args:
          shards: of its training records.
        Returns: the counts of `run.MinedSource`.
        """
        pairs = map_table(self._collect(ShardSet(shards)))
        queries, passages = (different_texts(pairs, name) for name in ("query", "positive"))
        q_QD, p_CD = (
            embed_to_file(
                self._embedder, texts.read_from, len(texts), self._work(f"{name}.f32"),
                self._marker(name), progress=self._progress,
            )
            for name, texts in (("queries", queries), ("passages", passages))
        )  # fmt: skip
        total = self._search(queries, passages, q_QD, p_CD)
        blocks = -(-len(queries) // self._config.query_block)
        for ending in ("jsonl", "dropped.jsonl"):
            join_files(
                (self._part(ending, number) for number in range(blocks)),
                self._space.result / f"{self._source.name}.{ending}",
            )
        sizes = {"pairs": len(pairs), "queries": len(queries), "passages": len(passages)}
        return sizes | total

    def _work(self, name: str) -> Path:
        return self._space.work / f"{self._source.name}.{name}"

    def _marker(self, name: str) -> Path:
        return self._space.markers / f"{self._source.name}.{name}"

    def _collect(self, shards: ShardSet) -> Path:
        path, marker = self._work("pairs.arrow"), self._marker("pairs")
        if not marker.exists():
            say(f"{self._source.name}: read the training pairs", enabled=self._progress)
            pairs = collect_pairs(self._source, shards, path)
            if not pairs:
                raise UserError(
                    f"source {self._source.name!r} holds none of the pairs that the run was "
                    f"trained on: has it changed since it was prepared?"
                )
            if missing := len(shards) - pairs:
                say(f"{self._source.name}: {missing:,} of {len(shards):,} training pairs are no "
                    f"longer in the source", enabled=self._progress)  # fmt: skip
            write_atomically(marker, b"")
        return path

    def _search(
        self, queries: Texts, passages: Texts, q_QD: np.ndarray, p_CD: np.ndarray
    ) -> dict[str, Any]:
        """Searches block by block of queries, and adds up the counts."""
        known = Known(queries, passages)
        most = self._config.last_rank + min(known.most, _MOST_KNOWN)
        order = np.argsort(queries.of_pair_N, kind="stable")
        query_N, passage_N = queries.of_pair_N[order], passages.of_pair_N[order]
        rows = self._config.query_block
        firsts = range(0, len(queries), rows)
        totals: Counter[str] = Counter()
        dropped: Counter[str] = Counter()
        name = f"search {self._source.name}"
        for first in track(firsts, name, total=len(firsts), unit="blocks", enabled=self._progress):
            marker = self._marker(f"block-{first // rows:06d}")
            if not marker.exists():
                score_QK, index_QK = top_k(
                    q_QD[first : first + rows], p_CD, most,
                    query_block=rows, block=self._config.corpus_block,
                )  # fmt: skip
                mine = slice(*np.searchsorted(query_N, [first, first + len(index_QK)]))
                of_N, positive_N = query_N[mine], passage_N[mine]
                score_NK, index_NK = score_QK[of_N - first], index_QK[of_N - first]
                cosine_N = np.einsum("nd,nd->n", q_QD[of_N], p_CD[positive_N])
                judged = judge(score_NK, known(of_N, index_NK), cosine_N, self._config)
                lines = _Lines(queries, passages, of_N, positive_N, cosine_N)
                for ending, wanted in (("jsonl", (TAKEN,)), ("dropped.jsonl", tuple(RULES))):
                    part = self._part(ending, first // rows)
                    write_jsonl(part, lines.of(judged, score_NK, index_NK, wanted))
                write_atomically(marker, json.dumps(counts(judged.verdict_NK)).encode())
            counted = json.loads(marker.read_text())
            dropped.update(counted.pop("dropped"))
            totals.update(counted)
        return dict(totals) | {"dropped": {rule: dropped[rule] for rule in RULES.values()}}

    def _part(self, ending: str, number: int) -> Path:
        return self._work(f"{number:06d}.{ending}")


class _Lines:
    """Candidates of a block of pairs as lines."""

    def __init__(
        self, queries: Texts, passages: Texts, query_N: np.ndarray, positive_N: np.ndarray,
        cosine_N: np.ndarray,
    ) -> None:  # fmt: skip
        self._queries, self._passages = queries, passages
        self._query_N, self._positive_N, self._cosine_N = query_N, positive_N, cosine_N

    def of(
        self, judged: Judged, score_NK: np.ndarray, index_NK: np.ndarray, wanted: tuple[int, ...]
    ) -> Iterator[dict[str, Any]]:
        """Those with a wanted verdict, pair by pair and best first."""
        row_X, column_X = np.nonzero(np.isin(judged.verdict_NK, wanted))
        at = row_X, column_X
        texts = (
            self._queries.read(self._query_N[row_X]),
            self._passages.read(self._positive_N[row_X]),
            self._passages.read(index_NK[at]),
        )
        numbers = (judged.verdict_NK[at], judged.rank_NK[at], self._cosine_N[row_X], score_NK[at])
        for query, positive, passage, verdict, rank, cosine, score in zip(
            *texts, *(x.tolist() for x in numbers), strict=True
        ):
            is_taken = verdict == TAKEN
            yield {
                "query": query,
                "positive": positive,
                "negative" if is_taken else "passage": passage,
                **({} if is_taken else {"rule": RULES[verdict]}),
                "rank": rank,
                "positive_score": round(cosine, 6),
                "negative_score" if is_taken else "score": round(score, 6),
            }
