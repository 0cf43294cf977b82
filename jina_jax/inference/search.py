"""Exact nearest neighbours by blocks of queries and of the corpus, over all devices.

Each process compares all queries with its own share of the passages, and the best of all are
merged.
"""

import functools
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Float, Int

from jina_jax.devices.distributed import gathered
from jina_jax.devices.mesh import (
    DATA,
    make_mesh,
    of_this_process,
    put,
    replicated,
    split_first_axis,
)
from jina_jax.inference.embedder import Embedder
from jina_jax.inference.shares import Encoded, Share
from jina_jax.system.terminal import track

_NOTHING = np.iinfo(np.int32).max
"""Rank of a place that no passage has taken yet: after all others."""


class Best(NamedTuple):
    """The k best passages that each device has seen so far."""

    score_EQK: Array
    rank_EQK: Array
    """Of the passages, in the order that equal scores have."""


def _merge(
    score_EQK: Float[Array, "1 Q K"],
    rank_EQK: Int[Array, "1 Q K"],
    q_QD: Float[Array, "Q D"],
    part_CD: Float[Array, "C D"],
    rank_C: Int[Array, "C"],
) -> Best:
    """One device's part: all queries against its share of a block.

    Args:
      score_EQK: best so far on this device.
      rank_EQK: their ranks.
      q_QD: all queries.
      part_CD: this device's passages, of rising rank.
      rank_C: their ranks; those of padding are `_NOTHING`.
    """
    k = score_EQK.shape[2]
    score_QC = jnp.einsum("qd,cd->qc", q_QD, part_CD, precision=jax.lax.Precision.HIGHEST)
    score_QC = jnp.where((rank_C < _NOTHING)[None, :], score_QC, -jnp.inf)
    # Lower ranks stand first, and top_k keeps the first of equals.
    score, where = jax.lax.top_k(score_QC, min(k, len(part_CD)))
    score, rank = _in_order((score_EQK[0], score), (rank_EQK[0], rank_C[where]), k)
    return Best(score[None], rank[None])


def _in_order(
    scores: Sequence[Array], ranks: Sequence[Array], k: int
) -> tuple[jax.Array, jax.Array]:
    """The first k of each query by score, then by rank."""
    score_QN, rank_QN = jnp.concatenate(scores, axis=1), jnp.concatenate(ranks, axis=1)
    negated, rank = jax.lax.sort((-score_QN, rank_QN), dimension=1, num_keys=2)
    return -negated[:, :k], rank[:, :k]


@functools.lru_cache
def _merger(mesh: Mesh) -> Callable[..., Best]:
    split, whole = PartitionSpec(DATA), PartitionSpec()
    specs = (split, split, whole, split, split)
    return jax.jit(jax.shard_map(_merge, mesh=mesh, in_specs=specs, out_specs=Best(split, split)))


@functools.lru_cache
def _finisher(mesh: Mesh) -> Callable[[Best], tuple[jax.Array, jax.Array]]:
    def finish(best: Best) -> tuple[jax.Array, jax.Array]:
        """Puts the devices' best in one order."""
        return _in_order(tuple(best.score_EQK), tuple(best.rank_EQK), best.score_EQK.shape[2])

    return jax.jit(finish, out_shardings=replicated(mesh))


def top_k(
    q_QD: np.ndarray,
    corpus_CD: np.ndarray,
    k: int,
    *,
    query_block: int = 4096,
    block: int = 8192,
    mesh: Mesh | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """The k passages of an array with the highest inner product per query.

    Args:
      q_QD: float32 queries.
      corpus_CD: float32 passages, fewer than 2³¹; may be memory-mapped, and is read once. Of
        several processes each reads its share.
      k: at most C are returned.
      query_block: queries compared at once.
      block: passages compared at once on each device.
      mesh: over which each block of passages is divided; all devices by default.
    Returns: as `stream_top_k`.
    """
    mesh = make_mesh() if mesh is None else mesh
    share, count = Share.of(mesh), len(corpus_CD)
    rows = mesh.size // share.processes * min(block, _power_of_two(-(-count // mesh.size)))
    first = share.rank * rows
    firsts = range(first, max(count, first + 1), share.processes * rows)
    parts = (
        Encoded(np.arange(first, min(first + rows, count)), corpus_CD[first : first + rows], count)
        for first in firsts
    )
    most = min(k, count)
    return stream_top_k(q_QD, parts, most, query_block=query_block, block=block, mesh=mesh)


def stream_top_k(
    q_QD: np.ndarray,
    own: Iterable[Encoded],
    k: int,
    *,
    query_block: int = 4096,
    block: int = 8192,
    mesh: Mesh | None = None,
    order: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """The k passages with the highest inner product per query, of a corpus that comes in parts.

    Each part is merged into the best so far and let go: while one is compared, the next is asked
    for. A device holds the queries, their k best, two blocks of passages and one tile of
    query_block × (block + k) scores, whatever the size of the corpus.

    Args:
      q_QD: float32 queries, the same in every process.
      own: the passages of this process, as `Embedder.own` gives them, with rising numbers below
        2³¹; each part may be of any size.
      k: at most the number of passages are returned.
      query_block: queries compared at once.
      block: passages compared at once on each device.
      mesh: over whose devices each block of passages is divided, and whose processes share the
        passages; all devices by default.
      order: int32 [C], the indices of all passages in the order that equal scores have; by default
        the lower index stands first.
    Returns: (scores float32 [Q, k], indices int32 [Q, k]), best first, in every process.
    """
    mesh = make_mesh() if mesh is None else mesh
    share, mesh = Share.of(mesh), of_this_process(mesh)
    rows = min(query_block, _power_of_two(len(q_QD)))
    blocks = [q_QD[first : first + rows] for first in range(0, len(q_QD), rows)]
    rank_C = None if order is None else np.argsort(order).astype(np.int32)
    best, count = _search(blocks, own, k, rows, block, mesh, rank_C) if k else ([], 0)
    assert order is None or not k or count == len(order)
    shape = (len(q_QD), min(k, count))
    score_QK, index_QK = np.zeros(shape, np.float32), np.zeros(shape, np.int32)
    for number, found in enumerate(best):
        part = slice(number * rows, number * rows + len(blocks[number]))
        score, rank = (np.asarray(x)[: len(blocks[number])] for x in _finisher(mesh)(found))
        if share.processes > 1:
            score, rank = _best_of_all(score, rank)
        score, rank = score[:, : shape[1]], rank[:, : shape[1]]
        score_QK[part], index_QK[part] = score, rank if order is None else order[rank]
    return score_QK, index_QK


def _best_of_all(score_QK: np.ndarray, rank_QK: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The k best of what all processes found, in the order of scores and then of ranks."""
    k, found = score_QK.shape[1], []
    # In one array: the bits of the scores travel as int32.
    for both_PM2K in gathered(np.stack([score_QK.view(np.int32), rank_QK], axis=1)):
        score_MN, rank_MN = both_PM2K.transpose(2, 1, 0, 3).reshape(2, both_PM2K.shape[1], -1)
        score_MN = score_MN.view(np.float32)
        first_MK = np.lexsort((rank_MN, -score_MN))[:, :k]
        found.append([np.take_along_axis(x, first_MK, axis=1) for x in (score_MN, rank_MN)])
    score, rank = (np.concatenate(parts) for parts in zip(*found, strict=True))
    return score, rank


def _search(
    blocks: Sequence[np.ndarray],
    own: Iterable[Encoded],
    k: int,
    rows: int,
    block: int,
    mesh: Mesh,
    rank_C: np.ndarray | None,
) -> tuple[list[Best], int]:
    """The best of each block of queries, padded to `rows`, and the number of all passages."""
    shape, split = (mesh.size, rows, k), split_first_axis(mesh)
    queries = [put(_padded(q_QD, rows), replicated(mesh)) for q_QD in blocks]
    nothing = Best(
        put(np.full(shape, -np.inf, np.float32), split),
        put(np.full(shape, _NOTHING, np.int32), split),
    )
    best, count, size = [nothing] * len(queries), 0, 0
    for index_N, part_CD, count in _at_most(block * mesh.size, own):
        # A shorter last part is padded to the shape that is compiled already.
        size = max(size, min(block, _power_of_two(-(-len(part_CD) // mesh.size))))
        assert count < _NOTHING
        rank_N = index_N.astype(np.int32)
        if rank_C is not None:
            by_rank = np.argsort(rank_C[index_N])
            part_CD, rank_N = part_CD[by_rank], rank_C[index_N][by_rank]
        block_CD = put(_padded(part_CD, size * mesh.size), split)
        padding = size * mesh.size - len(rank_N)
        block_C = put(np.pad(rank_N, (0, padding), constant_values=_NOTHING), split)
        # One block is compared while the next is read, and no third waits in memory.
        jax.block_until_ready(best)
        best = [
            _merger(mesh)(*found, q_QD, block_CD, block_C)
            for found, q_QD in zip(best, queries, strict=True)
        ]
    return best, count


def _at_most(rows: int, own: Iterable[Encoded]) -> Iterator[Encoded]:
    for found in own:
        if len(found.index_N) <= rows:
            yield found
            continue
        for first in range(0, len(found.index_N), rows):
            part = slice(first, first + rows)
            yield found._replace(index_N=found.index_N[part], z_ND=found.z_ND[part])


def _power_of_two(size: int) -> int:
    return 1 << max(size - 1, 0).bit_length()


def _padded(x_ND: np.ndarray, rows: int) -> np.ndarray:
    return np.pad(np.asarray(x_ND, np.float32), ((0, rows - len(x_ND)), (0, 0)))


class Hit(NamedTuple):
    """A passage found."""

    score: float
    """Cosine with the query."""
    passage: str


def search(
    embedder: Embedder, passages: Callable[[], Iterable[str]], queries: Sequence[str], k: int
) -> dict[str, list[Hit]]:
    """The k passages nearest to each query, best first; with the model's prompts for both.

    Args:
      embedder: the model.
      passages: gives all of them, in the same order each time. It is called twice, and no more
        than a block of its texts is held.
      queries: any number.
      k: passages for each.
    """
    shown = track(
        embedder.own(passages(), embedder.prompts.document), "encode", unit="blocks",
        records=lambda found: len(found.index_N), enabled=sys.stderr.isatty(),
    )  # fmt: skip
    q_QD = embedder.encode(queries, prompt=embedder.prompts.query)
    score_QK, index_QK = stream_top_k(q_QD, shown, k, mesh=embedder.mesh)
    wanted = set(index_QK.ravel().tolist())
    text = {i: passage for i, passage in enumerate(passages()) if i in wanted}
    return {
        query: [Hit(float(s), text[i]) for s, i in zip(scores, found, strict=True)]
        for query, scores, found in zip(queries, score_QK, index_QK.tolist(), strict=True)
    }
