"""Exact search of a memory-mapped corpus, beside NumPy: time, memory and whether ids are the same.

python benchmarks/search_speed.py
"""

import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro

from jina_jax.inference.search import top_k

K = 64
BLOCK = 8192


@dataclass(frozen=True)
class Options:
    """What to search."""

    passages: int = 500_000
    queries: int = 1024
    width: int = 256
    """Dimension of the vectors."""
    rounds: int = 3


def anonymous_mib() -> int:
    """Memory of this process that no file backs."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("RssAnon:")[1].split()[0]) >> 10


@contextmanager
def peak_of_memory() -> Iterator[list[int]]:
    """Gives a list whose one value becomes the most `anonymous_mib` while the block runs."""
    peak, done = [anonymous_mib()], threading.Event()

    def watch() -> None:
        while not done.wait(0.01):
            peak[0] = max(peak[0], anonymous_mib())

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield peak
    finally:
        done.set()
        watcher.join()


def unit(rng: np.random.Generator, rows: int, width: int) -> np.ndarray:
    """Random unit vectors."""
    x_ND = rng.standard_normal((rows, width), np.float32)
    return x_ND / np.linalg.norm(x_ND, axis=1, keepdims=True)


def by_numpy(q_QD: np.ndarray, corpus_CD: np.ndarray, k: int = K) -> np.ndarray:
    """Block by block, the best kept with argpartition; of equals the earlier first."""
    score: np.ndarray = np.zeros((len(q_QD), 0), np.float32)
    index: np.ndarray = np.zeros((len(q_QD), 0), np.int64)
    for first in range(0, len(corpus_CD), BLOCK):
        part = q_QD @ corpus_CD[first : first + BLOCK].T
        place = np.broadcast_to(first + np.arange(part.shape[1]), part.shape)
        score, index = np.hstack([score, part]), np.hstack([index, place])
        best = np.argpartition(-score, min(k, score.shape[1]) - 1, axis=1)[:, :k]
        score, index = (np.take_along_axis(x, best, 1) for x in (score, index))
    order = np.lexsort((index, -score), axis=1)
    return np.take_along_axis(index, order, 1)


def main() -> None:
    """Runs the benchmark."""
    options = tyro.cli(Options, description=__doc__)
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        shape = (options.passages, options.width)
        corpus_CD = np.memmap(f"{folder}/corpus", np.float32, "w+", shape=shape)
        for first in range(0, options.passages, 50_000):
            part = corpus_CD[first : first + 50_000]
            part[:] = unit(rng, len(part), options.width)
        corpus_CD.flush()
        corpus_CD = np.memmap(f"{folder}/corpus", np.float32, "r", shape=shape)
        q_QD = unit(rng, options.queries, options.width)
        top_k(q_QD, corpus_CD[: 2 * BLOCK], K)  # Compiles.
        print(f"corpus {corpus_CD.nbytes >> 20} MiB, {options.queries} queries, k={K}")
        for _ in range(options.rounds):
            one_round(q_QD, corpus_CD)


def one_round(q_QD: np.ndarray, corpus_CD: np.ndarray) -> None:
    """One round of both."""
    before, start = anonymous_mib(), time.perf_counter()
    with peak_of_memory() as peak:
        _, ours = top_k(q_QD, corpus_CD, K, block=BLOCK)
    ours_s = time.perf_counter() - start
    start = time.perf_counter()
    theirs = by_numpy(q_QD, corpus_CD)
    numpy_s = time.perf_counter() - start
    same = float(np.mean(ours == theirs))
    print(
        f"ours {ours_s:.1f} s, NumPy {numpy_s:.1f} s, same ids {same:.6f}, "
        f"anonymous memory {before} MiB before and {peak[0]} MiB at most"
    )


if __name__ == "__main__":
    main()
