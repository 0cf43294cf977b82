"""The model-based filters as tasks over files, for an engine to schedule.

A task reads tables (Parquet, or Arrow IPC under other endings), writes one .npy file into a cache
folder and returns its path. The path follows from the input's contents, so a task can run anywhere,
be repeated and be killed: what exists is returned at once, what was cut short is made again. Memory
is bounded by a block of texts, and for samples and ranks by the sample.

For a source of several tables, with T as any one of them:

1. `embed_task(T, "positive", cache, encoder)` and `embed_task(T, "query", cache, encoder)`
2. `sample_task(tables, positive embeddings of all tables, cache, config)`, once
3. `rank_task(T, query embeddings, positive embeddings, sample, cache, config, mesh)`
4. `keep_by_rank(open_array(ranks), config)`: the threshold, at any later time

and for triplets `margin_task`, then `margins` and `keep_by_margin`.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jax.sharding import Mesh

from jina_jax.config import ConsistencyConfig
from jina_jax.data.runs import hash_words
from jina_jax.score.cache import content_key, new_array, open_array
from jina_jax.score.consistency import Ranker, Sample, sample_keys, sample_rows
from jina_jax.score.encoder import SentenceEncoder
from jina_jax.score.margin import CrossEncoder

_BATCH_ROWS = 16_384
_FORMAT = "1"
"""Part of every key; raise it when the same input shall give other numbers."""


def embed_task(table: Path, column: str, cache: Path, encoder: SentenceEncoder) -> Path:
    """Embeds a column of texts.

    Args:
      table: file of N rows.
      column: of texts.
      cache: folder of results.
      encoder: gives unit vectors.
    Returns: a float32 [N, D] .npy file.
    """
    contents = content_key(text for (text,) in _rows(table, [column]))
    path = cache / f"{content_key([_FORMAT, 'embed', encoder.key, contents])}.npy"
    if not path.exists():
        with new_array(path, (_num_rows(table), encoder.dimensions), np.float32) as z_ND:
            first = 0
            for part_ND in encoder.stream(text for (text,) in _rows(table, [column])):
                z_ND[first : first + len(part_ND)] = part_ND
                first += len(part_ND)
    return path


def sample_task(
    tables: Sequence[Path], embeddings: Sequence[Path], cache: Path, config: ConsistencyConfig
) -> Path:
    """Draws the sample of a source.

    Args:
      tables: all tables of the source, with columns query_hash and positive_hash.
      embeddings: of their positives, from `embed_task`.
      cache: folder of results.
      config: size and seed of the sample.
    Returns: a .npy file of records with fields `z` (float32 [D]) and `hash` (uint64 [2]), by
      increasing sample key: the same bytes whatever the order of the tables.
    """
    key_M, where_Mx2 = np.zeros(0, np.uint64), np.zeros((0, 2), np.int64)
    for number, table in enumerate(tables):
        key_N = sample_keys(*_hashes(table), config.seed)
        where_Nx2 = np.stack([np.full(len(key_N), number), np.arange(len(key_N))], axis=1)
        key_M, where_Mx2 = np.concatenate([key_M, key_N]), np.concatenate([where_Mx2, where_Nx2])
        rows_M = sample_rows(key_M, config.sample_size)
        key_M, where_Mx2 = key_M[rows_M], where_Mx2[rows_M]
    drawn = [(number, where_Mx2[where_Mx2[:, 0] == number, 1]) for number in range(len(tables))]
    # Which embeddings were drawn, in an order that does not depend on that of the tables.
    names = sorted(embeddings[number].name for number, rows in drawn if len(rows))
    path = cache / f"{content_key([_FORMAT, 'sample', key_M.tobytes(), *names])}.npy"
    if path.exists():
        return path
    dimensions = open_array(embeddings[0]).shape[1]
    dtype = np.dtype([("z", np.float32, (dimensions,)), ("hash", np.uint64, (2,))])
    with new_array(path, (len(key_M),), dtype) as sample_M:
        for number, rows in drawn:
            into = where_Mx2[:, 0] == number
            sample_M["z"][into] = open_array(embeddings[number])[rows]
            sample_M["hash"][into] = _hashes(tables[number])[1][rows]
    return path


def rank_task(
    table: Path,
    query_embeddings: Path,
    positive_embeddings: Path,
    sample: Path,
    cache: Path,
    config: ConsistencyConfig,
    mesh: Mesh,
) -> Path:
    """Ranks the pairs of a table against the sample of their source.

    Args:
      table: file of N pairs with columns query_hash and positive_hash.
      query_embeddings: from `embed_task`.
      positive_embeddings: from `embed_task`.
      sample: from `sample_task`.
      cache: folder of results.
      config: tolerance and block sizes.
      mesh: over which sample and queries are divided.
    Returns: an int32 [N] .npy file: sampled passages above each pair's own.
    """
    hash_Nx2 = _hashes(table)[1]
    names = [query_embeddings.name, positive_embeddings.name, sample.name]
    tolerance = repr(config.tie_tolerance)
    key = content_key([_FORMAT, "rank", *names, tolerance, hash_Nx2.tobytes()])
    path = cache / f"{key}.npy"
    if not path.exists():
        sample_M = open_array(sample)
        ranker = Ranker(Sample(sample_M["z"], sample_M["hash"]), config, mesh)
        q_ND, p_ND = open_array(query_embeddings), open_array(positive_embeddings)
        with new_array(path, (len(hash_Nx2),), np.int32) as rank_N:
            rank_N[:] = ranker.ranks(q_ND, p_ND, hash_Nx2)
    return path


def margin_task(table: Path, cache: Path, cross_encoder: CrossEncoder) -> Path:
    """Scores the triplets of a table.

    Args:
      table: file of N triplets with columns query, positive and negative.
      cache: folder of results.
      cross_encoder: gives logits.
    Returns: a float32 [N, 2] .npy file: the logits of the positive and of the negative.
    """
    columns = ["query", "positive", "negative"]
    contents = content_key(text for row in _rows(table, columns) for text in row)
    path = cache / f"{content_key([_FORMAT, 'margin', cross_encoder.key, contents])}.npy"
    if not path.exists():
        with new_array(path, (_num_rows(table), 2), np.float32) as logits_Nx2:
            pairs = ((query, text) for query, *texts in _rows(table, columns) for text in texts)
            flat, first = logits_Nx2.reshape(-1), 0
            for part_N in cross_encoder.stream(pairs):
                flat[first : first + len(part_N)] = part_N
                first += len(part_N)
    return path


def _rows(table: Path, columns: list[str]) -> Iterator[tuple[str, ...]]:
    for batch in _batches(table, columns):
        yield from zip(*(batch.column(name).to_pylist() for name in columns), strict=True)


def _batches(table: Path, columns: list[str]) -> Iterator[pa.RecordBatch]:
    if table.suffix == ".parquet":
        with pq.ParquetFile(table) as file:
            yield from file.iter_batches(_BATCH_ROWS, columns=columns)
    else:
        with pa.memory_map(str(table)) as file:
            mapped = pa.ipc.open_file(file).read_all().select(columns)
            yield from mapped.to_batches(_BATCH_ROWS)


def _num_rows(table: Path) -> int:
    if table.suffix == ".parquet":
        return pq.read_metadata(table).num_rows
    with pa.memory_map(str(table)) as file:
        return pa.ipc.open_file(file).read_all().num_rows


def _hashes(table: Path) -> tuple[np.ndarray, np.ndarray]:
    """Text hashes of queries and positives as uint64 [N, 2]."""
    names = ["query_hash", "positive_hash"]
    batches = list(_batches(table, names))
    if not batches:
        return np.zeros((0, 2), np.uint64), np.zeros((0, 2), np.uint64)
    columns = pa.Table.from_batches(batches)
    query_Nx2, positive_Nx2 = (hash_words(columns.column(name)) for name in names)
    return query_Nx2, positive_Nx2
