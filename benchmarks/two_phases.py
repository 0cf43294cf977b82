"""Both phases of the paper on open data, from random weights: what triplets teach, what they cost.

Phase 1 trains on pairs of three sources. Its checkpoint mines hard negatives for these pairs, and
phase 2 goes on with them and with NLI triplets, both as they are and with the entailment for the
query: so contradictions are kept from both. Of both phases: Easy- and HardNegation on held-out NLI
triplets, nDCG@10 on held-out pairs of phase 1; for each seed, and their mean and spread.

python benchmarks/two_phases.py FOLDER

FOLDER holds `opentrivia/` (the category files), `tldr_pages/*.jsonl.gz` (fields a and b),
`wikisplit/*.tsv` and `nli/*.jsonl` (premise, hypothesis and label).
"""

import dataclasses
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro

from jina_jax.config import (
    DataConfig,
    FeedConfig,
    LossConfig,
    MineConfig,
    OptimConfig,
    RunConfig,
    SourceConfig,
    T5Config,
    TokenizerConfig,
    TrainConfig,
)
from jina_jax.evaluate.negation import held_out_negation, score_negation
from jina_jax.evaluate.results import score_all
from jina_jax.evaluate.retrieval import evaluate_retrieval, load_task
from jina_jax.inference.embedder import Embedder
from jina_jax.mine.run import mine
from jina_jax.prepare.run import prepare
from jina_jax.shards.manifest import load_manifest
from jina_jax.sources.catalogue import catalogue_source
from jina_jax.sources.read import read_source
from jina_jax.system.atomic import write_atomically
from jina_jax.train.loop import train
from jina_jax.types import Triplet

MODEL = T5Config(
    vocab_size=8064, d_model=128, d_kv=32, d_ff=512, num_layers=3, num_heads=4, dropout_rate=0.0
)
FEED = FeedConfig(global_batch_size=128, query_tokens=48, positive_tokens=64, row_tokens=64)


@dataclass(frozen=True)
class Options:
    """What to run."""

    folder: tyro.conf.Positional[Path]
    workdir: Path = Path("runs/two_phases")
    """Everything is kept below it, and a killed benchmark goes on there."""
    seeds: tuple[int, ...] = (0, 1, 2)
    pair_steps: int = 1000
    triplet_steps: int = 500


def pair_phase(options: Options, seed: int) -> RunConfig:
    """Phase 1: three sources of pairs, a vocabulary learned on them."""
    found = options.folder.absolute()
    sources = (
        dataclasses.replace(
            catalogue_source("opentrivia"), paths=(str(found / "opentrivia/*"),)
        ),
        SourceConfig(
            "tldr", paths=(str(found / "tldr_pages/*.jsonl.gz"),), query_field="a",
            positive_field="b", licence="CC BY 4.0",
        ),
        dataclasses.replace(
            catalogue_source("wikisplit"), paths=(str(found / "wikisplit/*.tsv"),)
        ),
    )  # fmt: skip
    return RunConfig(
        name=f"pairs-{seed}",
        workdir=str(options.workdir / f"pairs-{seed}"),
        data_dir=str(options.workdir / "pairs-data"),
        data=DataConfig(sources, TokenizerConfig("train", vocab_size=8000), eval_pairs=1000),
        feed=FEED,
        model=MODEL,
        optim=OptimConfig(learning_rate=1.2e-3, warmup_steps=50),
        train=TrainConfig(num_steps=options.pair_steps, seed=seed),
        mine=MineConfig(last_rank=20, margin=-0.1, margin_kind="absolute"),
    )


def _nli_triplets(options: Options) -> Path:
    """The triplets of the NLI files, each (premise, entailment, contradiction)."""
    path = options.workdir.absolute() / "nli.jsonl"
    if not path.exists():
        nli = dataclasses.replace(
            catalogue_source("snli_triplets"), kind="jsonl", dataset="",
            paths=(str(options.folder.absolute() / "nli/*.jsonl"),),
        )  # fmt: skip
        rows = [r for r in read_source(nli) if isinstance(r, Triplet)]
        lines = [
            json.dumps({"query": r.query, "positive": r.positive, "negative": r.negative})
            for r in rows
        ]
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, "\n".join(lines).encode())
    return path


def triplet_phase(options: Options, seed: int, pairs: RunConfig) -> RunConfig:
    """Phase 2: NLI triplets, and those that phase 1 mined; from the end of phase 1."""
    entailed = SourceConfig(
        "nli", paths=(str(_nli_triplets(options)),), negative_field="negative", weight=2.0,
        licence="SNLI CC BY-SA 4.0, MultiNLI mixed",
    )  # fmt: skip
    entailing = dataclasses.replace(
        entailed, name="nli_reversed", query_field="positive", positive_field="query", weight=5.0
    )
    mined = [
        SourceConfig(s.name, paths=(str(pairs.mine_path / f"{s.name}.jsonl"),),
                     negative_field="negative", licence=s.licence)
        for s in pairs.data.sources
    ]  # fmt: skip
    return dataclasses.replace(
        pairs,
        name=f"triplets-{seed}",
        workdir=str(options.workdir / f"triplets-{seed}"),
        data_dir="",
        data=DataConfig(
            (entailed, entailing, *mined),
            TokenizerConfig(str(pairs.data_path / "tokenizer")),
            eval_pairs=500,
        ),
        model=dataclasses.replace(MODEL, dropout_rate=0.1),
        # A contradiction has most words of what it contradicts: a wide margin tells them apart.
        loss=LossConfig(margin=0.3, margin_weight=10.0),
        optim=OptimConfig(learning_rate=6e-4, warmup_steps=20),
        train=TrainConfig(
            num_steps=options.triplet_steps, seed=seed, initial_weights=str(pairs.run_path)
        ),
    )


def measure(options: Options, seed: int) -> dict[str, dict[str, float]]:
    """Runs both phases of a seed. Returns: phase → measure → value in percent, and seconds."""
    kept = options.workdir / f"seed-{seed}.json"
    if kept.exists():
        return json.loads(kept.read_text())
    pairs = pair_phase(options, seed)
    triplets = triplet_phase(options, seed, pairs)
    seconds = {}
    began = time.perf_counter()
    prepare(pairs.data, pairs.data_path)
    train(pairs)
    seconds[1] = time.perf_counter() - began
    began = time.perf_counter()
    mine(pairs)
    prepare(triplets.data, triplets.data_path)
    train(triplets)
    seconds[2] = time.perf_counter() - began
    models = {f"phase {n}": Embedder.load(r.run_path) for n, r in ((1, pairs), (2, triplets))}
    found: dict[str, dict[str, float]] = {f"phase {n}": {"seconds": seconds[n]} for n in (1, 2)}
    nli = held_out_negation(load_manifest(triplets.data_path), triplets.data_path)[:1]
    for scores in score_all(nli, models, score_negation).values():
        for phase, values in scores.items():
            found[phase] |= {name: 100 * value for name, value in values.items()}
    manifest = load_manifest(pairs.data_path)
    tasks = [load_task(s.name, pairs.data_path / str(s.eval_path)) for s in manifest.sources]
    for task, by_model in evaluate_retrieval(tasks, models, 10).items():
        for phase in models:
            found[phase][f"ndcg@10 {task}"] = 100 * by_model[phase]["ndcg@10"]
    kept.write_text(json.dumps(found, indent=1) + "\n")
    return found


def table(found: Sequence[dict[str, dict[str, float]]]) -> str:
    """Mean ± sample standard deviation over the seeds, phases beside each other."""
    lines = [f"{'':28}{'phase 1':>16}{'phase 2':>16}{'change':>16}"]
    for name in found[0]["phase 1"]:
        phases = [np.array([f[p][name] for f in found]) for p in ("phase 1", "phase 2")]
        columns = [*phases, phases[1] - phases[0]]
        cells = (f"{c.mean():.1f} ± {c.std(ddof=1) if len(c) > 1 else 0:.1f}" for c in columns)
        lines.append(f"{name:28}" + "".join(f"{cell:>16}" for cell in cells))
    return "\n".join(lines)


def main() -> None:
    """Runs every seed, and prints the table."""
    options = tyro.cli(Annotated[Options, tyro.conf.arg(name="")], description=__doc__)
    print(table([measure(options, seed) for seed in options.seeds]))


if __name__ == "__main__":
    main()
