"""Exact nearest neighbours by blocks of the corpus."""

import sys
from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jina_jax.evaluate.embedder import Embedder


@partial(jax.jit, static_argnames="k")
def _merge(
    best_QK: jax.Array, index_QK: jax.Array, q_QD: jax.Array, block_CD: jax.Array,
    first: jax.Array, size: jax.Array, *, k: int,
) -> tuple[jax.Array, jax.Array]:  # fmt: skip
    score_QC = jnp.matmul(q_QD, block_CD.T, precision=jax.lax.Precision.HIGHEST)
    column_C = jnp.arange(block_CD.shape[0], dtype=jnp.int32)
    score_QC = jnp.where((column_C < size)[None, :], score_QC, -jnp.inf)
    index_QC = jnp.broadcast_to((first + column_C)[None, :], score_QC.shape)
    # Earlier passages stand first, and top_k keeps the first of equals.
    score, where = jax.lax.top_k(jnp.concatenate([best_QK, score_QC], axis=1), k)
    index = jnp.concatenate([index_QK, index_QC], axis=1)
    return score, jnp.take_along_axis(index, where, axis=1)


def top_k(
    q_QD: np.ndarray, corpus_CD: np.ndarray, k: int, *, block: int = 8192
) -> tuple[np.ndarray, np.ndarray]:
    """The k passages with the highest inner product per query.

    Memory is that of one block of scores, whatever the size of the corpus.

    Args:
      q_QD: float32 queries.
      corpus_CD: float32 passages.
      k: at most C are returned.
      block: passages scored at once.
    Returns: (scores float32 [Q, k], indices int32 [Q, k]), best first; of equal scores the lower
      index stands first.
    """
    k = min(k, len(corpus_CD))
    block = min(block, max(1, len(corpus_CD)))
    score = jnp.full((len(q_QD), k), -jnp.inf, jnp.float32)
    index = jnp.zeros((len(q_QD), k), jnp.int32)
    for first in range(0, len(corpus_CD), block):
        part_CD = corpus_CD[first : first + block]
        padded_CD = np.pad(part_CD, ((0, block - len(part_CD)), (0, 0)))
        score, index = _merge(score, index, q_QD, padded_CD, first, len(part_CD), k=k)
    return np.asarray(score), np.asarray(index)


class Hit(NamedTuple):
    """A passage found."""

    score: float
    """Cosine with the query."""
    passage: str


def search(
    embedder: Embedder, passages: Sequence[str], queries: Sequence[str], k: int
) -> dict[str, list[Hit]]:
    """The k passages nearest to each query, best first."""
    corpus_CD = embedder.encode(passages, progress=sys.stderr.isatty())
    score_QK, index_QK = top_k(embedder.encode(queries), corpus_CD, k)
    return {
        query: [Hit(float(s), passages[i]) for s, i in zip(scores, found, strict=True)]
        for query, scores, found in zip(queries, score_QK, index_QK, strict=True)
    }
