"""Near-duplicates: pairs whose texts share most of their words in the same order (MinHash).

datasketch gives each pair a signature and says into how many bands to cut it for the threshold.
Pairs of a source that share a band are candidates, and are confirmed by the exact Jaccard
similarity of their shingles. `prepare.near_duplicates` finds them.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar, NamedTuple

import numpy as np
import pyarrow as pa
import xxhash
from datasketch import MinHash, MinHashLSH

from jina_jax.config import NearDuplicateConfig
from jina_jax.prepare.filters.filter import Records
from jina_jax.text.identity import hash_words, normalise

_LSH_WEIGHTS = (0.1, 0.9)
"""Of false candidates, which are weeded out, and of missed ones, which are lost."""
_LARGE_GROUP = 64
"""Of a larger group with one band each pair is compared with the first alone, and not with every
other."""


@dataclass(frozen=True)
class NearDuplicateFilter:
    """Keeps one pair of each group of near-duplicates of a source: that with the least hash."""

    config: NearDuplicateConfig
    name: ClassVar[str] = "near_duplicates"
    version: ClassVar[int] = 1
    records: ClassVar[tuple[Records, ...]] = ("pair",)
    score_range: ClassVar[tuple[float, float]] = (0.0, 1.0)


def shingles(text: str, words: int) -> frozenset[int]:
    """Hashes of the runs of so many words; of the whole text when it is shorter.

    Example: "The cat sat down" has with 3 words the runs "the cat sat" and "cat sat down".
    """
    parts = normalise(text).split()
    count = max(len(parts) - words + 1, 1)
    runs = (" ".join(parts[start : start + words]) for start in range(count))
    return frozenset(xxhash.xxh32_intdigest(run.encode()) for run in runs)


def jaccard(a: np.ndarray, b: np.ndarray) -> float:
    """Shared elements over all elements; each array holds its elements once, and at least one."""
    shared = len(np.intersect1d(a, b, assume_unique=True))
    return shared / (len(a) + len(b) - shared)


class Sketches(NamedTuple):
    """N pairs."""

    order_N2: np.ndarray
    """uint64: the first bytes of the hashes of query and positive, ordered as those are."""
    shingles_N: list[bytes]
    """uint32, ascending."""
    band_NB: np.ndarray
    """uint64 hashes of the bands of the signatures, different in each band."""


def sketch(batch: pa.RecordBatch, config: NearDuplicateConfig, source: int) -> Sketches:
    """What pairs are compared by.

    Args:
      batch: pairs of one source.
      config: of the filter.
      source: its position; pairs of two sources share no band.
    """
    # Shingles are 32-bit hashes already.
    empty = MinHash(num_perm=config.permutations, seed=config.seed, hashfunc=int)
    shingles_N = []
    signature_NP = np.zeros((len(batch), config.permutations), np.uint32)
    columns = (batch.column(name).to_pylist() for name in ("query", "positive"))
    for row, (query, positive) in enumerate(zip(*columns, strict=True)):
        found = sorted(shingles(f"{query} {positive}", config.shingle_words))
        minhash = empty.copy()
        minhash.update_batch(found)
        signature_NP[row] = minhash.hashvalues
        shingles_N.append(np.array(found, np.uint32).tobytes())
    order_N2 = hash_words(batch.column("query_hash"), batch.column("positive_hash"))[:, ::2]
    return Sketches(order_N2.byteswap(), shingles_N, _bands(signature_NP, config, source))


def _bands(signature_NP: np.ndarray, config: NearDuplicateConfig, source: int) -> np.ndarray:
    bands, rows = _bands_and_rows(config)
    band_NB = np.zeros((len(signature_NP), bands), np.uint64)
    for band in range(bands):
        band_N = np.full(len(signature_NP), source * bands + band, np.uint64)
        for row in range(band * rows, (band + 1) * rows):
            band_N = _mixed(band_N + signature_NP[:, row])
        band_NB[:, band] = _mixed(band_N)
    return band_NB


@lru_cache(maxsize=1)
def _bands_and_rows(config: NearDuplicateConfig) -> tuple[int, int]:
    lsh = MinHashLSH(threshold=config.threshold, num_perm=config.permutations, weights=_LSH_WEIGHTS)
    return lsh.b, lsh.r


def _mixed(value_N: np.ndarray) -> np.ndarray:
    """Other uint64, of which the first bits depend on all bits; equal ones of equal ones alone
    (the finaliser of SplitMix64: Steele et al. 2014).
    """
    value_N = (value_N ^ (value_N >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value_N = (value_N ^ (value_N >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value_N ^ (value_N >> np.uint64(31))


def candidates(band_N: np.ndarray, number_N: np.ndarray) -> np.ndarray:
    """Pairs that share a band, each two of them once.

    Args:
      band_N: uint64, of `sketch`; all of those that are equal.
      number_N: uint64, which pair each is of.
    Returns: uint64 [C, 2], ascending; of each two the lesser number first.
    """
    order_N = np.lexsort((number_N, band_N))
    band_N, number_N = band_N[order_N], number_N[order_N]
    starts = np.flatnonzero(np.append(True, band_N[1:] != band_N[:-1]))[: len(band_N)]
    sizes = np.diff(np.append(starts, len(band_N)))
    first_N, size_N = np.repeat(starts, sizes), np.repeat(sizes, sizes)
    place_N = np.arange(len(band_N))
    found = [np.zeros((0, 2), np.uint64)]
    is_large_N = size_N > _LARGE_GROUP
    others = np.flatnonzero(is_large_N & (first_N != place_N))
    found.append(np.stack([number_N[first_N[others]], number_N[others]], axis=1))
    for step in range(1, _LARGE_GROUP):
        ones = np.flatnonzero(~is_large_N & (place_N + step < first_N + size_N))
        if not len(ones):
            break
        found.append(np.stack([number_N[ones], number_N[ones + step]], axis=1))
    return different(np.concatenate(found))


def different(edges_Cx: np.ndarray) -> np.ndarray:
    """Rows of uint64, each once, ascending."""
    edges_Cx = edges_Cx[np.lexsort(edges_Cx.T[::-1])]
    is_new = np.ones(len(edges_Cx), bool)
    is_new[1:] = (edges_Cx[1:] != edges_Cx[:-1]).any(axis=1)
    return edges_Cx[is_new]
