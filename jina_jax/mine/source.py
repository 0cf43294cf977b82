"""Mines one source: collects its pairs, embeds their texts, searches, applies the rules."""

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jina_jax.config import MineConfig, SourceConfig
from jina_jax.errors import UserError
from jina_jax.inference.embedder import Embedder
from jina_jax.inference.embeddings import embed_to_file
from jina_jax.inference.search import top_k
from jina_jax.mine.pairs import Known, Texts, collect_pairs, different_texts
from jina_jax.mine.rules import RULES, TAKEN, Judged, counts, judge
from jina_jax.shards.array_record import ShardSet
from jina_jax.system.arrow import map_table
from jina_jax.system.atomic import atomic_file, join_files, write_atomically
from jina_jax.system.progress import say, track
from jina_jax.system.workspace import Workspace

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
                    with atomic_file(self._part(ending, first // rows)) as part:
                        _write(lines.of(judged, score_NK, index_NK, wanted), part)
                write_atomically(marker, json.dumps(counts(judged.verdict_NK)).encode())
            found = json.loads(marker.read_text())
            dropped.update(found.pop("dropped"))
            totals.update(found)
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


def _write(rows: Iterator[dict[str, Any]], path: Path) -> None:
    with path.open("w", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
