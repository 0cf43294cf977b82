"""The pairs that a run was trained on, with their texts.

Shards hold token ids and hashes, no texts. So the source is read again, and a pair is taken when
its two hashes are those of a training record: what the filters dropped, what is held out for
evaluation and what came twice stays out.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from jina_jax.config import SourceConfig
from jina_jax.shards.array_record import ShardSet
from jina_jax.sources.chunks import CHUNK_RECORDS, Chunk
from jina_jax.sources.read import read_all
from jina_jax.system.atomic import atomic_file
from jina_jax.text.identity import HASH_BYTES, hash_words, text_hash

_RECORDS_AT_ONCE = 16_384
_SCHEMA = pa.schema(
    {
        "query": pa.large_string(),
        "positive": pa.large_string(),
        "query_hash": pa.binary(HASH_BYTES),
        "positive_hash": pa.binary(HASH_BYTES),
    }
)


def collect_pairs(source: SourceConfig, shards: ShardSet, out: Path) -> int:
    """Writes the training pairs of a source with their texts, in the order of the source.

    Holds 33 bytes a training record in memory.

    Args:
      source: of pairs.
      shards: of its training records.
      out: an Arrow IPC file for columns query, positive, query_hash and positive_hash.
    Returns: pairs written; fewer than `len(shards)` where the source has changed.
    """
    wanted = np.unique(_trained_keys(shards))
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


def _trained_keys(shards: ShardSet) -> np.ndarray:
    """Both hashes of each record, as one value that can be ordered."""
    keys = [
        _keys(shards.read(range(first, min(first + _RECORDS_AT_ONCE, len(shards)))).hashes_NSx2)
        for first in range(0, len(shards), _RECORDS_AT_ONCE)
    ]
    return np.concatenate(keys)


def _keys(hashes_NSx2: np.ndarray) -> np.ndarray:
    """Both hashes of N pairs as one value each, S32 [N]."""
    words = np.ascontiguousarray(hashes_NSx2).reshape(len(hashes_NSx2), -1)
    return words.view(f"S{2 * HASH_BYTES}").reshape(-1)


def _wanted_of(chunk: Chunk, wanted: np.ndarray, is_left: np.ndarray) -> Iterator[pa.RecordBatch]:
    """The records of a chunk that are wanted, each once; marks them as taken."""
    hashes = [[text_hash(text) for text in texts] for texts in chunk.texts]
    if not chunk.rows:
        return
    words = np.frombuffer(b"".join(q + p for q, p in zip(*hashes, strict=True)), "<u8")
    keys_N = _keys(words.reshape(-1, 2, 2))
    # The first of those that are the same, and only where a chunk before did not have it.
    _, first = np.unique(keys_N, return_index=True)
    place = np.minimum(np.searchsorted(wanted, keys_N[first]), len(wanted) - 1)
    is_wanted = (wanted[place] == keys_N[first]) & is_left[place]
    is_left[place[is_wanted]] = False
    rows = np.sort(first[is_wanted])
    if len(rows):
        columns: list[Any] = [*chunk.texts, *hashes]
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
    """int64, the text of each pair."""
    hash_U: np.ndarray
    """S16."""

    def __len__(self) -> int:
        return len(self.row_U)

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
    hash_N = hash_words(pairs.column(f"{name}_hash")).view(f"S{HASH_BYTES}").reshape(-1)
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
        _, query, passage = np.intersect1d(queries.hash_U, passages.hash_U, return_indices=True)
        code = np.concatenate(
            [
                queries.of_pair_N * self._passages + passages.of_pair_N,
                query * self._passages + passage,
            ]
        )
        self._code = np.unique(code)
        self.most = int(np.bincount(self._code // self._passages).max(initial=0))
        """Of any query."""

    def __call__(self, query_N: np.ndarray, passage_NK: np.ndarray) -> np.ndarray:
        """Bool [N, K]: whether each passage is known to match its query."""
        code_NK = query_N[:, None] * self._passages + passage_NK
        place_NK = np.minimum(np.searchsorted(self._code, code_NK), len(self._code) - 1)
        return self._code[place_NK] == code_NK
