"""Near-duplicates: pairs whose texts share most of their words in the same order (MinHash).

Candidates come from datasketch's locality-sensitive hashing and are confirmed by the exact Jaccard
similarity of their shingles. What is confirmed links pairs into groups, and of each group the
pair with the least key stays: the outcome depends on the set of pairs and not on their order.
"""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import xxhash
from datasketch import MinHash, MinHashLSH

from jina_jax.data.filters import Verdict, verdict
from jina_jax.data.normalise import normalise
from jina_jax.filter_config import NearDuplicateConfig

NEAR_DUPLICATES_VERSION = 1
"""Raised when the same configuration finds other near-duplicates."""

_LSH_WEIGHTS = (0.1, 0.9)
"""Of false candidates and of missed ones."""


def find_near_duplicates(
    batch: pa.RecordBatch, keys: Sequence[bytes], config: NearDuplicateConfig
) -> Verdict:
    """Finds pairs that are near-duplicates of another pair of the batch.

    Near-duplicates in different batches are not found: give a whole source, or a partition of it.
    Memory grows with the batch: 10 KiB a pair of 60 words was measured.

    Args:
      batch: with string columns `query` and `positive`; both count, as one text.
      keys: what orders the pairs, such as their hash; of equal keys the first row stays.
      config: threshold and shingles.
    Returns: reason `near_duplicate`; details name the query of the pair of its group that stays;
      scores are the similarity to that pair, 0 where the pair stays itself.
    """
    queries, positives = (batch.column(n).to_pylist() for n in ("query", "positive"))
    texts = [f"{q} {p}" for q, p in zip(queries, positives, strict=True)]
    shingles_N = [shingles(text, config.shingle_words) for text in texts]
    stays_N = _survivors(_links(shingles_N, config), keys)
    reasons, details, scores = [], [], []
    for row, stays in enumerate(stays_N):
        kept = row == stays
        reasons.append("" if kept else "near_duplicate")
        details.append("" if kept else f"of {queries[stays][:200]}")
        scores.append(0.0 if kept else jaccard(shingles_N[row], shingles_N[stays]))
    return verdict(reasons, details, np.array(scores, np.float32))


def shingles(text: str, words: int) -> frozenset[int]:
    """Hashes of the runs of so many words; of the whole text when it is shorter.

    Example: "The cat sat down" has with 3 words the runs "the cat sat" and "cat sat down".
    """
    parts = normalise(text).split()
    count = max(len(parts) - words + 1, 1)
    runs = (" ".join(parts[start : start + words]) for start in range(count))
    return frozenset(xxhash.xxh32_intdigest(run.encode()) for run in runs)


def jaccard(a: frozenset[int], b: frozenset[int]) -> float:
    """Shared shingles over all shingles; both sets hold at least one."""
    shared = len(a & b)
    return shared / (len(a) + len(b) - shared)


def _links(
    shingles_N: Sequence[frozenset[int]], config: NearDuplicateConfig
) -> list[tuple[int, int]]:
    """Pairs of rows that are as similar as the threshold asks, each once."""
    by_shingles: dict[frozenset[int], int] = {}
    links = []
    # Candidates are confirmed below, so that a false one costs little and a missed one is lost.
    index = MinHashLSH(
        threshold=config.threshold, num_perm=config.permutations, weights=_LSH_WEIGHTS
    )
    for row, found in enumerate(shingles_N):
        first = by_shingles.setdefault(found, row)
        if first != row:
            links.append((first, row))
            continue
        # Shingles are 32-bit hashes already.
        minhash = MinHash(num_perm=config.permutations, seed=config.seed, hashfunc=int)
        minhash.update_batch(found)
        candidates = index.query(minhash)
        links += [
            (other, row)
            for other in candidates
            if jaccard(shingles_N[other], found) >= config.threshold
        ]
        index.insert(row, minhash)
    return links


def _survivors(links: Sequence[tuple[int, int]], keys: Sequence[bytes]) -> np.ndarray:
    """For each row the row of its group that stays."""
    order = sorted(range(len(keys)), key=lambda row: (keys[row], row))
    rank = {row: place for place, row in enumerate(order)}
    parent = list(range(len(keys)))

    def root(row: int) -> int:
        while parent[row] != row:
            parent[row] = parent[parent[row]]
            row = parent[row]
        return row

    for a, b in links:
        low, high = sorted((root(a), root(b)), key=rank.__getitem__)
        parent[high] = low
    return np.array([root(row) for row in range(len(keys))], int)
