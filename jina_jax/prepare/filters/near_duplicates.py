"""Near-duplicates: pairs whose texts share most of their words in the same order (MinHash).

datasketch gives each pair a signature and says into how many bands to cut it for the threshold.
Pairs that share a band are candidates, and are confirmed by the exact Jaccard similarity of their
shingles. What is confirmed links pairs into groups, and of each group the pair with the least hash
stays: the outcome depends on the set of pairs and not on their order.

Signatures and shingles lie on disk; memory holds some 50 bytes a pair of the source.
"""

import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, NamedTuple

import numpy as np
import pyarrow as pa
import xxhash
from datasketch import MinHash, MinHashLSH

from jina_jax.config import NearDuplicateConfig
from jina_jax.prepare.filters.filter import Batches, Records, Verdict, verdict
from jina_jax.system.arrow import map_table, write_table
from jina_jax.text.identity import find_keys, hash_words, normalise, row_keys

_LSH_WEIGHTS = (0.1, 0.9)
"""Of false candidates, which are weeded out, and of missed ones, which are lost."""
_LARGE_BUCKET = 64
"""Of a larger one each pair is compared with the first alone, and not with every other."""
_FOUND_FILE = "found.arrow"
_CLIP = 200


@dataclass(frozen=True)
class NearDuplicateFilter:
    """Keeps one pair of each group of near-duplicates of a source."""

    config: NearDuplicateConfig
    name: ClassVar[str] = "near_duplicates"
    version: ClassVar[int] = 1
    records: ClassVar[tuple[Records, ...]] = ("pair",)
    score_range: ClassVar[tuple[float, float]] = (0.0, 1.0)
    thresholds: ClassVar[tuple[str, ...]] = ("config.enabled",)
    needs_accelerator: ClassVar[bool] = False
    teaches: ClassVar[slice | None] = None

    def fit(self, batches: Batches, folder: Path, cache: Path) -> None:
        """Writes which pairs go, how similar each is to another, and the query of what stays."""
        with tempfile.TemporaryDirectory(prefix=".", dir=cache) as temporary:
            sketches = _sketch(batches(), self.config, Path(temporary))
            links = list(_links(sketches, self.config))
        write_table(_found(links, sketches.hash_Nx4, batches), folder / _FOUND_FILE)

    def score(self, batch: pa.RecordBatch, folder: Path, cache: Path) -> np.ndarray:
        """The highest similarity of each pair that goes to another of its group, else 0."""
        found = map_table(folder / _FOUND_FILE)
        place_N, is_found_N = _places(batch, found)
        score_N = np.zeros(len(batch), np.float32)
        score_N[is_found_N] = found.column("similarity").to_numpy()[place_N[is_found_N]]
        return score_N[:, None]

    def decide(self, batch: pa.RecordBatch, score_NS: np.ndarray, folder: Path) -> Verdict:
        """Reason `near_duplicate`; details name the query of the pair that stays."""
        found = map_table(folder / _FOUND_FILE)
        place_N, is_found_N = _places(batch, found)
        details = np.full(len(batch), "", object)
        stays = found.column("stays").take(pa.array(place_N[is_found_N])).to_pylist()
        details[is_found_N] = [f"of {query}" for query in stays]
        return verdict(np.where(is_found_N, "near_duplicate", ""), details, score_NS[:, 0])


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


class _Sketches(NamedTuple):
    """N pairs: signatures and shingles on disk."""

    hash_Nx4: np.ndarray
    """uint64: text hashes of query and positive."""
    signature_NP: np.ndarray
    """uint32 MinHashes, memory-mapped."""
    shingles_S: np.ndarray
    """uint32, of all pairs one after another, memory-mapped."""
    first_N: np.ndarray
    """Where those of each pair begin, and in one more element where the last ones end."""

    def similarity(self, a: int, b: int) -> float:
        first = self.first_N
        of_a, of_b = (self.shingles_S[first[i] : first[i + 1]] for i in (a, b))
        return jaccard(of_a, of_b)


def _sketch(
    batches: Iterable[pa.RecordBatch], config: NearDuplicateConfig, folder: Path
) -> _Sketches:
    # Shingles are 32-bit hashes already.
    empty = MinHash(num_perm=config.permutations, seed=config.seed, hashfunc=int)
    hashes, counts = [np.zeros((0, 4), np.uint64)], [0]
    with (folder / "signatures").open("wb") as signatures, (folder / "shingles").open("wb") as file:
        for batch in batches:
            hashes.append(_pair_hashes(batch))
            columns = (batch.column(name).to_pylist() for name in ("query", "positive"))
            for query, positive in zip(*columns, strict=True):
                found = sorted(shingles(f"{query} {positive}", config.shingle_words))
                minhash = empty.copy()
                minhash.update_batch(found)
                signatures.write(minhash.hashvalues.astype(np.uint32).tobytes())
                file.write(np.array(found, np.uint32).tobytes())
                counts.append(len(found))
    signature_P, shingles_S = (
        np.memmap(path, np.uint32, "r") if path.stat().st_size else np.zeros(0, np.uint32)
        for path in (folder / "signatures", folder / "shingles")
    )
    signature_NP = signature_P.reshape(-1, config.permutations)
    return _Sketches(np.concatenate(hashes), signature_NP, shingles_S, np.cumsum(counts))


def _pair_hashes(batch: pa.RecordBatch) -> np.ndarray:
    return hash_words(batch.column("query_hash"), batch.column("positive_hash"))


class _Link(NamedTuple):
    """Two near-duplicates, by their numbers."""

    a: int
    b: int
    similarity: float


def _links(sketches: _Sketches, config: NearDuplicateConfig) -> Iterator[_Link]:
    """Pairs that are as similar as the threshold asks; one may come more than once."""
    lsh = MinHashLSH(threshold=config.threshold, num_perm=config.permutations, weights=_LSH_WEIGHTS)
    for band in range(lsh.b):
        band_N = np.zeros(len(sketches.signature_NP), np.uint64)
        for row in range(band * lsh.r, (band + 1) * lsh.r):
            # Multiplying by an odd number and adding loses nothing of what was there.
            band_N = band_N * np.uint64(0x9E3779B97F4A7C15) + sketches.signature_NP[:, row]
        order = np.argsort(band_N, kind="stable")
        edges = np.flatnonzero(np.diff(band_N[order])) + 1
        for bucket in np.split(order, edges):
            for a, b in _candidates(bucket):
                similarity = sketches.similarity(a, b)
                if similarity >= config.threshold:
                    yield _Link(a, b, similarity)


def _candidates(bucket: np.ndarray) -> Iterator[tuple[int, int]]:
    others = bucket.tolist()
    firsts = others if len(others) <= _LARGE_BUCKET else others[:1]
    for place, a in enumerate(firsts):
        for b in others[place + 1 :]:
            yield a, b


def _found(links: Sequence[_Link], hash_Nx4: np.ndarray, batches: Batches) -> pa.Table:
    """Hash, similarity and the query that stays, for each pair that goes; sorted by hash."""
    stays = _survivors(links, hash_Nx4)
    similarity: dict[int, float] = {}
    for link in links:
        for pair in (link.a, link.b):
            similarity[pair] = max(similarity.get(pair, 0.0), link.similarity)
    queries = _queries(set(stays.values()), batches)
    pairs = sorted(stays, key=lambda pair: hash_Nx4[pair].tobytes())
    return pa.table(
        {
            "hash": pa.array([hash_Nx4[pair].tobytes() for pair in pairs], pa.binary(32)),
            "similarity": pa.array([similarity[pair] for pair in pairs], pa.float32()),
            "stays": pa.array([queries[stays[pair]] for pair in pairs], pa.string()),
        }
    )


def _survivors(links: Sequence[_Link], hash_Nx4: np.ndarray) -> dict[int, int]:
    """For each pair that goes, the one of its group that stays: that with the least hash."""
    parent: dict[int, int] = {}

    def root(pair: int) -> int:
        while (above := parent.setdefault(pair, pair)) != pair:
            parent[pair] = parent[above]
            pair = above
        return pair

    for link in links:
        ends = root(link.a), root(link.b)
        low, high = sorted(ends, key=lambda pair: hash_Nx4[pair].tobytes())
        parent[high] = low
    return {pair: root(pair) for pair in parent if root(pair) != pair}


def _queries(wanted: set[int], batches: Batches) -> dict[int, str]:
    """The queries of some pairs, clipped, by the pairs' numbers."""
    found, number = {}, 0
    for batch in batches() if wanted else ():
        for query in batch.column("query"):
            if number in wanted:
                found[number] = query.as_py()[:_CLIP]
            number += 1
    return found


def _places(batch: pa.RecordBatch, found: pa.Table) -> tuple[np.ndarray, np.ndarray]:
    """For each pair of a batch its row in `found`, and whether it is there."""
    known = np.zeros(0, "S32")
    if len(found):  # As it lies in the mapped file, which holds one batch.
        known = np.frombuffer(found.column("hash").chunk(0).buffers()[1], "S32", len(found))
    return find_keys(known, row_keys(_pair_hashes(batch)))
