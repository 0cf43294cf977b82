"""What Matryoshka training is worth: both models cut to fewer dimensions, on held-out pairs.

Two runs from the same random weights on the same batches, one with the plain loss and one with
`loss.matryoshka_dims`. Both are scored by nDCG@10 with all their dimensions and with the first few,
at unit length again; for each seed, and their mean and spread.

    python benchmarks/matryoshka.py

The pairs are the docstrings of Python's standard library and of packages whose versions
`constraints.txt` gives.
"""

import dataclasses
import json
import statistics
from dataclasses import dataclass
from pathlib import Path

import tyro
from train_speed import standard_library

from jina_jax.config import (
    DataConfig,
    FeedConfig,
    LossConfig,
    OptimConfig,
    RunConfig,
    SourceConfig,
    T5Config,
    TokenizerConfig,
    TrainConfig,
)
from jina_jax.evaluate.retrieval import load_task, rank_by_embedding, score
from jina_jax.inference.embedder import Embedder
from jina_jax.prepare.run import prepare
from jina_jax.shards.manifest import load_manifest
from jina_jax.train.loop import train

PACKAGES = ("jax", "numpy", "scipy", "sklearn", "transformers", "pandas")
MODELS = ("plain", "matryoshka")


@dataclass(frozen=True)
class Options:
    """What to run."""

    workdir: Path = Path("runs/matryoshka")
    """Everything is kept below it, and a killed benchmark goes on there."""
    seeds: tuple[int, ...] = (0, 1, 2)
    steps: int = 300
    dims: tuple[int, ...] = (8, 16, 32, 64)
    """First dimensions; the model has 128."""


def configured(options: Options, model: str, seed: int) -> RunConfig:
    """A run of one of both models."""
    dims = options.dims if model == "matryoshka" else ()
    return RunConfig(
        name=f"{model}-{seed}",
        workdir=str(options.workdir / f"{model}-{seed}"),
        data_dir=str(options.workdir / "data"),
        data=DataConfig(
            (SourceConfig("docs", "pydocs", (*standard_library(), *PACKAGES)),),
            TokenizerConfig("train", 8000),
            eval_pairs=1000,
        ),
        feed=FeedConfig(global_batch_size=128, query_tokens=48, positive_tokens=64, row_tokens=64),
        model=T5Config(
            vocab_size=8064, d_model=128, d_kv=32, d_ff=512, num_layers=2, num_heads=4,
            dropout_rate=0.0,
        ),
        loss=LossConfig(matryoshka_dims=dims),
        optim=OptimConfig(learning_rate=1.2e-3, warmup_steps=30),
        train=TrainConfig(num_steps=options.steps, seed=seed),
    )  # fmt: skip


def measured(options: Options, model: str, seed: int) -> dict[str, float]:
    """nDCG@10 in percent by number of dimensions."""
    config = configured(options, model, seed)
    kept = options.workdir / f"{config.name}.json"
    if not kept.exists():
        prepare(config.data, config.data_path)
        train(config)
        (source,) = load_manifest(config.data_path).sources
        task = load_task("docs", config.data_path / str(source.eval_path))
        found = {}
        for dim in (*options.dims, config.model.dimensions):
            embedder = Embedder.load(config.run_path, truncate_dim=dim)
            ranking = rank_by_embedding(task, embedder, 10)
            found[str(dim)] = 100 * score(task, ranking, 10)["ndcg@10"]
        kept.write_text(json.dumps(found) + "\n", encoding="utf-8")
    return json.loads(kept.read_text(encoding="utf-8"))


def main() -> None:
    """Runs what is not yet kept, and prints the table."""
    options = tyro.cli(Options, description=__doc__)
    options = dataclasses.replace(options, workdir=options.workdir.absolute())
    found = {m: [measured(options, m, seed) for seed in options.seeds] for m in MODELS}
    print(f"{'dimensions':>12}" + "".join(f"{m:>20}" for m in MODELS) + f"{'difference':>20}")
    for dim in found["plain"][0]:
        plain, cut = ([f[dim] for f in found[m]] for m in MODELS)
        columns = [plain, cut, [b - a for a, b in zip(plain, cut, strict=True)]]
        cells = [f"{statistics.mean(c):.1f} ({min(c):.1f} to {max(c):.1f})" for c in columns]
        print(f"{dim:>12}" + "".join(f"{cell:>20}" for cell in cells))


if __name__ == "__main__":
    main()
