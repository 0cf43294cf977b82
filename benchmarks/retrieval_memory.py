"""Retrieval over a set in files, from text to ranking: is it exact, and what memory does it take?

Embeds and searches sets of several sizes in the layout of BEIR, each in a process of its own, and
compares the passages found with those of NumPy on the same embeddings, which has them all at once.
Passages are parts of docstrings of installed packages, queries the summaries of some of these.

jina-jax demo
python benchmarks/retrieval_memory.py runs/demo
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import tyro
from search_speed import anonymous_mib, by_numpy, peak_of_memory

from jina_jax.config import RetrievalSet
from jina_jax.evaluate.retrieval import rank_by_embedding
from jina_jax.evaluate.retrieval_set import read_retrieval
from jina_jax.inference.embedder import TEXTS_AT_ONCE, Embedder
from jina_jax.inference.shares import Encoded
from jina_jax.sources.pydocs import read_pydocs
from jina_jax.types import BadRecord

WORDS = 30
"""Of a passage, at most."""
ALIKE = 1e-6
"""Cosines of a smaller difference may change places: NumPy adds in another order."""


@dataclass(frozen=True)
class Options:
    """What to search."""

    model: tyro.conf.Positional[Path]
    """A run folder or an exported folder."""
    passages: tuple[int, ...] = (25_000, 100_000)
    """Sizes of the corpus."""
    queries: int = 200
    k: int = 100
    side: str = ""
    """Set by the benchmark itself: the folder of the set to search."""


class Kept(Embedder):
    """Writes the embeddings that it streams to a file, where there is one."""

    path: Path | None = None

    def own(self, texts: Iterable[str], prompt: str | None = None) -> Iterator[Encoded]:
        """Those of `Embedder`."""
        with (self.path or Path(os.devnull)).open("wb") as file:
            for found in super().own(texts, prompt):
                file.write(found.z_ND.tobytes())
                yield found


def write_sets(options: Options, work: Path) -> None:
    """Writes a set of each size; smaller ones are the beginnings of larger ones."""
    passages: dict[str, str] = {}
    most = max(options.passages)
    for record in read_pydocs(()):
        if isinstance(record, BadRecord):
            continue
        words = record.positive.split()
        for first in range(0, len(words), WORDS):
            passages.setdefault(" ".join(words[first : first + WORDS]), record.query)
    if len(passages) < most:
        sys.exit(f"only {len(passages):,} passages in the documentation installed here")
    texts = list(passages)
    order = np.random.default_rng(0).permutation(len(texts))[:most]
    queries = [(f"q{i}", passages[texts[p]], f"p{i}") for i, p in enumerate(order)]
    for size in options.passages:
        (work / str(size) / "qrels").mkdir(parents=True)
        _lines(work / f"{size}/corpus.jsonl", (
            {"_id": f"p{i}", "text": texts[p]} for i, p in enumerate(order[:size])
        ))  # fmt: skip
        chosen = queries[: options.queries]
        _lines(work / f"{size}/queries.jsonl", ({"_id": q, "text": t} for q, t, _ in chosen))
        rows = "".join(f"{q}\t{p}\t1\n" for q, _, p in chosen)
        (work / f"{size}/qrels/test.tsv").write_text(f"query-id\tcorpus-id\tscore\n{rows}")


def _lines(path: Path, rows: Iterator[dict[str, str]]) -> None:
    with path.open("w", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(row) + "\n")


def one_side(options: Options) -> None:
    """Searches one set and prints figures as JSON."""
    folder = Path(options.side)
    embedder = Kept.load(options.model)
    assert isinstance(embedder, Kept)
    task = read_retrieval(RetrievalSet("docs", str(folder)))
    # Compiles, and leaves the buffers that every block needs.
    embedder.encode(list(islice(task.corpus.texts(), 2 * TEXTS_AT_ONCE)))
    q_QD = embedder.encode(list(task.queries.values()))
    embedder.path = folder / "embeddings"
    before, start = anonymous_mib(), time.perf_counter()
    with peak_of_memory() as peak:
        found = rank_by_embedding(task, embedder, options.k)
    seconds = time.perf_counter() - start
    shape = (len(task.corpus.ids), embedder.dimensions)
    corpus_CD = np.memmap(embedder.path, np.float32, "r", shape=shape)
    theirs = by_numpy(q_QD, corpus_CD, options.k)
    number = {name: i for i, name in enumerate(task.corpus.ids)}
    ours = np.array([[number[name] for name in ranked] for ranked in found.values()])
    differs_Q, differs_K = np.nonzero(ours != theirs)
    pairs = (
        np.einsum("nd,nd->n", q_QD[differs_Q], corpus_CD[x[differs_Q, differs_K]], dtype=np.float64)
        for x in (ours, theirs)
    )
    apart = np.abs(np.subtract(*pairs))
    figures = {
        "passages": shape[0], "embeddings_mib": corpus_CD.nbytes / 2**20, "seconds": seconds,
        "before_mib": before, "peak_mib": peak[0], "places": ours.size,
        "other_ids": len(apart), "other_ids_apart": int((apart > ALIKE).sum()),
    }  # fmt: skip
    print(json.dumps(figures))


def main() -> None:
    """Runs the benchmark."""
    options = tyro.cli(Options, description=__doc__)
    if options.side:
        one_side(options)
        return
    with tempfile.TemporaryDirectory() as work:
        write_sets(options, Path(work))
        for size in options.passages:
            command = [sys.executable, __file__, str(options.model), "--side", f"{work}/{size}"]
            values = ["--queries", str(options.queries), "--k", str(options.k)]
            out = subprocess.run([*command, *values], check=True, stdout=subprocess.PIPE).stdout
            f = json.loads(out.splitlines()[-1])
            print(
                f"{f['passages']:,} passages, {f['embeddings_mib']:.0f} MiB of embeddings: "
                f"{f['seconds']:.0f} s; anonymous memory {f['before_mib']} MiB before, "
                f"{f['peak_mib']} MiB at most; of "
                f"{f['places']:,} places {f['other_ids']} have another id than NumPy, "
                f"{f['other_ids_apart']} of them with cosines more than {ALIKE} apart",
                flush=True,
            )


if __name__ == "__main__":
    main()
