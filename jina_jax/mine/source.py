"""Mines one source: collects its pairs, embeds their texts, searches, applies the rules.

Several processes work in one folder that all see. The first collects the pairs, writes the
embeddings and joins the results; all share the texts that are embedded and the passages that are
searched, and each applies the rules to blocks of queries of its own.
"""

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from jina_jax.config import MineConfig, SourceConfig
from jina_jax.config.source import prompts_of
from jina_jax.devices.distributed import from_first, is_first, shared_problems, wait_for_all
from jina_jax.errors import UserError
from jina_jax.inference.embedder import Embedder
from jina_jax.inference.encode_file import embed_to_file, embedded
from jina_jax.inference.search import top_k
from jina_jax.shards.shard_set import ShardSet
from jina_jax.sources.chunks import CHUNK_RECORDS, Chunk
from jina_jax.sources.read import read_all
from jina_jax.system.arrow import map_table
from jina_jax.system.atomic import atomic_file, join_files, write_atomically, write_jsonl
from jina_jax.system.terminal import say, track
from jina_jax.system.workspace import Workspace
from jina_jax.text.identity import HASH_BYTES, find_keys, hash_words, row_keys, text_hash

_SCHEMA = pa.schema(
    {
        "query": pa.large_string(),
        "positive": pa.large_string(),
        "query_hash": pa.binary(HASH_BYTES),
        "positive_hash": pa.binary(HASH_BYTES),
        "label": pa.large_string(),
    }
)


def collect_pairs(source: SourceConfig, shards: ShardSet, out: Path) -> int:
    """Writes the training pairs of a source with their texts, in the order of the source.

    Holds 33 bytes a training record in memory.

    Args:
      source: of pairs.
      shards: of its training records.
      out: an Arrow IPC file for columns query, positive, query_hash, positive_hash and label,
        which is empty where the source has none.
    Returns: pairs written; fewer than `len(shards)` where the source has changed.
    """
    wanted = np.unique(np.concatenate([_keys(r.hashes_NSx2) for r in shards.batches()]))
    is_left = np.ones(len(wanted), bool)
    pairs = 0
    with (
        atomic_file(out) as part,
        pa.OSFile(str(part), "wb") as file,
        pa.ipc.new_file(file, _SCHEMA) as writer,
    ):
        for chunk in read_all(source):
            for batch in _wanted_of(chunk, wanted, is_left):
                writer.write_batch(batch)
                pairs += len(batch)
    return pairs


def _keys(hashes_NSx2: np.ndarray) -> np.ndarray:
    """Both hashes of N pairs as one value each."""
    return row_keys(hashes_NSx2.reshape(len(hashes_NSx2), 4))


def _wanted_of(chunk: Chunk, wanted: np.ndarray, is_left: np.ndarray) -> Iterator[pa.RecordBatch]:
    """The records of a chunk that are wanted, each once; marks them as taken."""
    hashes = [[text_hash(text) for text in texts] for texts in chunk.texts]
    if not chunk.rows:
        return
    words = np.frombuffer(b"".join(q + p for q, p in zip(*hashes, strict=True)), "<u8")
    keys_N = _keys(words.reshape(-1, 2, 2))
    # The first of those that are the same, and only where a chunk before did not have it.
    _, first = np.unique(keys_N, return_index=True)
    place, is_wanted = find_keys(wanted, keys_N[first])
    is_wanted &= is_left[place]
    is_left[place[is_wanted]] = False
    rows = np.sort(first[is_wanted])
    if len(rows):
        columns: list[Any] = [*chunk.texts, *hashes, chunk.labels or [""] * len(chunk.rows)]
        arrays = [
            pa.array(column, field.type).take(pa.array(rows))
            for column, field in zip(columns, _SCHEMA, strict=True)
        ]
        yield pa.record_batch(arrays, schema=_SCHEMA)


class Texts(NamedTuple):
    """The different texts of a column, numbered in the order in which they first stand there."""

    column: pa.ChunkedArray
    row_U: np.ndarray
    """int64, where each text first stands."""
    of_pair_N: np.ndarray
    """int64, the text of each pair; -1 where `sample` left it out."""
    hash_U: np.ndarray
    """S16."""

    def __len__(self) -> int:
        return len(self.row_U)

    def sample(self, most: int) -> "Texts":
        """So many of them, those with the lowest hashes; 0 takes all."""
        if not 0 < most < len(self):
            return self
        chosen = np.sort(np.argsort(self.hash_U)[:most])
        number_U = np.full(len(self), -1)
        number_U[chosen] = np.arange(most)
        return Texts(self.column, self.row_U[chosen], number_U[self.of_pair_N], self.hash_U[chosen])

    def read(self, numbers: np.ndarray) -> list[str]:
        """The texts of these numbers."""
        return self.column.take(pa.array(self.row_U[numbers])).to_pylist()

    def read_from(self, first: int) -> Iterator[str]:
        """The texts from a number on."""
        for start in range(first, len(self), CHUNK_RECORDS):
            yield from self.read(np.arange(start, min(start + CHUNK_RECORDS, len(self))))


def different_texts(pairs: pa.Table, name: str) -> Texts:
    """The texts of a column, each hash once.

    Args:
      pairs: as `collect_pairs` writes them; may be memory-mapped.
      name: `query` or `positive`.
    """
    hash_N = row_keys(hash_words(pairs.column(f"{name}_hash")))
    hash_U, first_U, of_N = np.unique(hash_N, return_index=True, return_inverse=True)
    order = np.argsort(first_U)
    number_U = np.empty(len(order), np.int64)
    number_U[order] = np.arange(len(order))
    return Texts(pairs.column(name), first_U[order], number_U[of_N], hash_U[order])


class Known:
    """Which passages are known to match a query: its positives, and its own text."""

    def __init__(self, queries: Texts, passages: Texts) -> None:
        """Takes the texts of the same pairs."""
        self._passages = max(len(passages), 1)
        of_pair = queries.of_pair_N >= 0
        _, query, passage = np.intersect1d(queries.hash_U, passages.hash_U, return_indices=True)
        code = np.concatenate(
            [
                queries.of_pair_N[of_pair] * self._passages + passages.of_pair_N[of_pair],
                query * self._passages + passage,
            ]
        )
        self._code = np.unique(code)
        self.most = int(np.bincount(self._code // self._passages).max(initial=0))
        """Of any query."""

    def __call__(self, query_N: np.ndarray, passage_NK: np.ndarray) -> np.ndarray:
        """Bool [N, K]: whether each passage is known to match its query."""
        return find_keys(self._code, query_N[:, None] * self._passages + passage_NK)[1]


class Labels:
    """Which passages stand beside a label: those of pairs that have it."""

    def __init__(self, pairs: pa.Table, passages: Texts) -> None:
        """Takes the pairs that `collect_pairs` writes, and their passages."""
        self.most = 0
        """Passages of any label; 0 where there are none."""
        column = pairs.column("label")
        if pc.any(pc.not_equal(column, "")).as_py():
            encoded = column.combine_chunks().dictionary_encode()
            self._of_pair_N = encoded.indices.to_numpy().astype(np.int64)
            self._labels = encoded.dictionary.to_pylist()
            self._code = np.unique(passages.of_pair_N * len(self._labels) + self._of_pair_N)
            self.most = int(np.bincount(self._code % len(self._labels)).max())

    def __call__(self, row_N: np.ndarray, passage_NK: np.ndarray) -> np.ndarray:
        """Bool [N, K]: whether each passage has the label of a pair, by the pairs' rows."""
        if not self.most:
            return np.zeros(passage_NK.shape, bool)
        label_N1 = self._of_pair_N[row_N][:, None]
        return find_keys(self._code, passage_NK * len(self._labels) + label_N1)[1]

    def of(self, row: int) -> dict[str, str]:
        """The label of a pair, as a field of a line; none where there are none."""
        return {"label": self._labels[self._of_pair_N[row]]} if self.most else {}


TAKEN, SAME_TEXT, SAME_LABEL, TOO_NEAR, MARGIN, NOT_LOOKED_AT = range(6)
RULES = {
    SAME_TEXT: "same_text", SAME_LABEL: "same_label", TOO_NEAR: "first_rank", MARGIN: "margin",
}  # fmt: skip
"""What drops a candidate: it is the query or one of its positives; it has the pair's label; it is
nearer than `first_rank`; it scores above the positive less the margin."""


class Judged(NamedTuple):
    """What became of the candidates of N pairs."""

    verdict_NK: np.ndarray
    """int8: TAKEN, a key of RULES, or NOT_LOOKED_AT where there were enough before, or it is
    farther than `last_rank`."""
    rank_NK: np.ndarray
    """int64, from 1, among candidates of another label, and another text than the query and its
    positives; of those the rank of the candidate before."""


def judge(
    score_NK: np.ndarray,
    is_known_NK: np.ndarray,
    has_label_NK: np.ndarray,
    positive_N: np.ndarray,
    config: MineConfig,
) -> Judged:
    """Applies the rules in their order: same text, same label, first rank, margin.

    Args:
      score_NK: float32 cosines of each pair's query with its nearest passages, best first.
      is_known_NK: bool; the passage is the query's own text or one of its positives.
      has_label_NK: bool; it has the pair's label.
      positive_N: float32 cosines of each query with its positive.
      config: ranks, margin and how many to take.
    Example: a positive at 0.8 and candidates at 0.9, 0.77 and 0.7, none known, with a relative
      margin of 0.05: the limit is 0.76, the first two are dropped by it and the third is taken.
    """
    positive_N1 = positive_N.astype(np.float64)[:, None]
    relative = config.margin_kind == "relative"
    limit_N1 = positive_N1 - config.margin * (np.abs(positive_N1) if relative else 1.0)
    rank_NK = np.cumsum(~(is_known_NK | has_label_NK), axis=1)
    verdict_NK = np.where(score_NK > limit_N1, MARGIN, TAKEN)
    verdict_NK[rank_NK < config.first_rank] = TOO_NEAR
    verdict_NK[has_label_NK] = SAME_LABEL
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


_MOST_KNOWN, _MOST_OF_LABEL = 64, 1024
"""Candidates searched for in place of passages that are known to match, and of those with the same
label. A query with more of them may be left with fewer than `last_rank` others."""


@dataclass(frozen=True)
class SourceMiner:
    """Steps that each go on from what lies in the workspace."""

    source: SourceConfig
    """Of pairs."""
    space: Workspace
    embedder: Embedder
    """The trained model."""
    config: MineConfig
    progress: bool
    """Show it on standard error."""

    def run(self, shards: ShardSet) -> dict[str, Any]:
        """Makes the files of the source.

        Args:
          shards: of its training records.
        Returns: the counts of `run.MinedSource`.
        """
        with shared_problems():
            if is_first():
                self._collect(shards)
        with shared_problems():
            path = self._work("pairs.arrow")
            if not path.is_file():
                raise UserError(
                    f"{path}, which process 0 wrote, is not there: all hosts must see one "
                    f"mine.output_dir"
                )
        pairs = map_table(path)
        queries, passages = (different_texts(pairs, name) for name in ("query", "positive"))
        queries = queries.sample(self.config.max_queries)
        of_query, of_passage = prompts_of(self.source, self.embedder.prompts)
        q_QD = self._embed("queries", queries, of_query)
        p_CD = self._embed("passages", passages, of_passage)
        self._search(queries, passages, Labels(pairs, passages), q_QD, p_CD)
        sizes = {"pairs": len(pairs), "queries": len(queries), "passages": len(passages)}
        blocks = -(-len(queries) // self.config.query_block)
        total: dict[str, Any] = from_first(lambda: self._join(blocks))
        return sizes | total

    def _embed(self, name: str, texts: Texts, prompt: str) -> np.ndarray:
        path = self._work(f"{name}.f32")
        embed_to_file(
            self.embedder, texts.read_from, len(texts), path, self._marker(name), prompt=prompt,
            progress=self.progress,
        )  # fmt: skip
        wait_for_all()
        return embedded(path, (len(texts), self.embedder.dimensions))

    def _work(self, name: str) -> Path:
        return self.space.work / f"{self.source.name}.{name}"

    def _marker(self, name: str) -> Path:
        return self.space.markers / f"{self.source.name}.{name}"

    def _collect(self, shards: ShardSet) -> None:
        marker = self._marker("pairs")
        if not marker.exists():
            say(f"{self.source.name}: read the training pairs", enabled=self.progress)
            pairs = collect_pairs(self.source, shards, self._work("pairs.arrow"))
            if not pairs:
                raise UserError(
                    f"source {self.source.name!r} holds none of the pairs that the run was "
                    f"trained on: has it changed since it was prepared?"
                )
            if missing := len(shards) - pairs:
                say(f"{self.source.name}: {missing:,} of {len(shards):,} training pairs are no "
                    f"longer in the source", enabled=self.progress)  # fmt: skip
            write_atomically(marker, b"")

    def _search(
        self, queries: Texts, passages: Texts, labels: Labels, q_QD: np.ndarray, p_CD: np.ndarray
    ) -> None:
        """Searches block by block of queries, and writes what becomes of the candidates.

        Of as many blocks as there are processes each judges one, once these are searched.
        """
        rows, share = self.config.query_block, self.embedder.share
        known = Known(queries, passages)
        most = self.config.last_rank + min(known.most, _MOST_KNOWN)
        most += min(labels.most, _MOST_OF_LABEL)
        order = np.argsort(queries.of_pair_N, kind="stable")
        pairs = _Pairs(queries.of_pair_N[order], passages.of_pair_N[order], order)
        left = from_first(lambda: self._blocks_left(-(-len(queries) // rows)))
        firsts = range(0, len(left), share.processes)
        name = f"search {self.source.name}"
        for first in track(firsts, name, total=len(firsts), unit="blocks", enabled=self.progress):
            own = None
            for rank, block in enumerate(left[first : first + share.processes]):
                found = top_k(
                    q_QD[block * rows : (block + 1) * rows], p_CD, most,
                    query_block=rows, block=self.config.corpus_block, mesh=self.embedder.mesh,
                )  # fmt: skip
                own = (block, *found) if rank == share.rank else own
            if own is not None:
                block, score_QK, index_QK = own
                query_N, positive_N, row_N = pairs.of_queries(block * rows, len(index_QK))
                cosine_N = np.einsum("nd,nd->n", q_QD[query_N], p_CD[positive_N])
                lines = _Lines(queries, passages, labels, query_N, positive_N, row_N, cosine_N)
                of_N = query_N - block * rows
                self._judge(block, lines, known, score_QK[of_N], index_QK[of_N])
        wait_for_all()

    def _judge(
        self, block: int, lines: "_Lines", known: Known, score_NK: np.ndarray, index_NK: np.ndarray
    ) -> None:
        """Writes the candidates of a block's pairs, and that it is done."""
        judged = judge(
            score_NK, known(lines.query_N, index_NK), lines.labels(lines.row_N, index_NK),
            lines.cosine_N, self.config,
        )  # fmt: skip
        for ending, wanted in (("jsonl", (TAKEN,)), ("dropped.jsonl", tuple(RULES))):
            write_jsonl(self._part(ending, block), lines.of(judged, score_NK, index_NK, wanted))
        done = json.dumps(counts(judged.verdict_NK)).encode()
        write_atomically(self._block_marker(block), done)

    def _blocks_left(self, blocks: int) -> list[int]:
        """Those that no process has judged."""
        return [block for block in range(blocks) if not self._block_marker(block).exists()]

    def _join(self, blocks: int) -> dict[str, Any]:
        """Puts the blocks' lines together, and adds up their counts."""
        for ending in ("jsonl", "dropped.jsonl"):
            join_files(
                (self._part(ending, block) for block in range(blocks)),
                self.space.result / f"{self.source.name}.{ending}",
            )
        totals: Counter[str] = Counter()
        dropped: Counter[str] = Counter()
        for block in range(blocks):
            counted = json.loads(self._block_marker(block).read_text())
            dropped.update(counted.pop("dropped"))
            totals.update(counted)
        return dict(totals) | {"dropped": {rule: dropped[rule] for rule in RULES.values()}}

    def _block_marker(self, block: int) -> Path:
        return self._marker(f"block-{block:06d}")

    def _part(self, ending: str, number: int) -> Path:
        return self._work(f"{number:06d}.{ending}")


class _Pairs(NamedTuple):
    """Query, passage and row of each pair, by rising query."""

    query_N: np.ndarray
    passage_N: np.ndarray
    row_N: np.ndarray

    def of_queries(self, first: int, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Those of so many queries from one on."""
        chosen = slice(*np.searchsorted(self.query_N, [first, first + count]))
        return self.query_N[chosen], self.passage_N[chosen], self.row_N[chosen]


class _Lines(NamedTuple):
    """Candidates of a block of pairs as lines."""

    queries: Texts
    passages: Texts
    labels: Labels
    query_N: np.ndarray
    positive_N: np.ndarray
    row_N: np.ndarray
    """Of the pair, for its label."""
    cosine_N: np.ndarray

    def of(
        self, judged: Judged, score_NK: np.ndarray, index_NK: np.ndarray, wanted: tuple[int, ...]
    ) -> Iterator[dict[str, Any]]:
        """Those with a wanted verdict, pair by pair and best first."""
        row_X, column_X = np.nonzero(np.isin(judged.verdict_NK, wanted))
        at = row_X, column_X
        texts = (
            self.queries.read(self.query_N[row_X]),
            self.passages.read(self.positive_N[row_X]),
            self.passages.read(index_NK[at]),
        )
        numbers = (judged.verdict_NK[at], judged.rank_NK[at], self.cosine_N[row_X], score_NK[at])
        for query, positive, passage, row, verdict, rank, cosine, score in zip(
            *texts, self.row_N[row_X].tolist(), *(x.tolist() for x in numbers), strict=True
        ):
            is_taken = verdict == TAKEN
            yield {
                "query": query,
                "positive": positive,
                "negative" if is_taken else "passage": passage,
                **self.labels.of(row),
                **({} if is_taken else {"rule": RULES[verdict]}),
                "rank": rank,
                "positive_score": round(cosine, 6),
                "negative_score" if is_taken else "score": round(score, 6),
            }
