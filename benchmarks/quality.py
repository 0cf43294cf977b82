"""Quality and time of training, beside sentence-transformers.

Both sides start from the same random T5 weights, with the same vocabulary, and train on the same
pairs in the same batches, cut at the same tokens, with the same loss (the mean of InfoNCE in both
directions, temperature 0.05), AdamW, clipping and schedule. Ours is `train` with packed rows;
sentence-transformers is its trainer, whose collator pads each column of a batch to its longest
text. The trained models are scored by one and the same code: nDCG@10 of held-out queries among all
held-out passages and, with `--sts`, Spearman's correlation on the STS Benchmark.

    python benchmarks/quality.py

The pairs are the docstrings of Python's standard library and of packages whose versions
`constraints.txt` gives, a summary and its explanation; `--pairs FILE` takes JSON lines instead.
Each seed has weights and an order of its own. With `--results FILE`, what is measured is kept, and
seeds may be run one by one: `--seeds 0 --results FILE`, then `--seeds 1 --results FILE`.

The whole time is that of a process that trains, from its start to the saved model, imports and
compiling included; ours has the preparation of the pairs added to it. Steps alone are timed over
the second half of the training, when everything is compiled.
"""

import dataclasses
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import tyro
from quality_sides import Options, run_config, train_ours, train_theirs
from quality_table import NDCG, SIDES, STS, summary
from train_speed import standard_library

from jina_jax.config import RunConfig, StsSet, TokenizerConfig

# What imports jax is imported in the functions: the other side's process has no use for it.

PACKAGES = ("jax", "numpy", "scipy", "sklearn", "torch", "transformers", "pandas")


def prepare_both(options: Options, work: Path) -> float:
    """Pairs and vocabulary for both sides, then our shards; seconds that the latter took."""
    from jina_jax.prepare.run import prepare
    from jina_jax.sources.pydocs import read_pydocs
    from jina_jax.text.tokenizer import build_tokenizer
    from jina_jax.types import Pair

    if options.pairs is None:
        found = read_pydocs((*standard_library(), *PACKAGES))
        pairs = [(p.query, p.positive) for p in found if isinstance(p, Pair)]
    else:
        lines = options.pairs.read_text(encoding="utf-8").splitlines()
        pairs = [(r["query"], r["positive"]) for r in map(json.loads, lines)]
    with (work / "pairs.jsonl").open("w", encoding="utf-8") as file:
        file.writelines(json.dumps({"query": q, "positive": p}) + "\n" for q, p in pairs)
    (work / "tokenizer").mkdir()
    vocabulary = TokenizerConfig("train", options.vocab_size)
    build_tokenizer(vocabulary, (text for pair in pairs for text in pair), work / "tokenizer")
    config, began = run_config(options, work, 0), time.perf_counter()
    manifest = prepare(config.data, config.data_path, progress=False)
    prepare_s = time.perf_counter() - began
    print(
        f"{manifest.sources[0].train:,} pairs to train on, {manifest.sources[0].eval:,} held out; "
        f"prepared in {prepare_s:.1f} s",
        flush=True,
    )
    return prepare_s


def write_start(options: Options, work: Path, seed: int) -> None:
    """Random weights as a Hugging Face folder, and for the other side our batches and rates."""
    import jax
    import jax.numpy as jnp

    from jina_jax.export.huggingface import export_huggingface
    from jina_jax.model.encoder import init_params
    from jina_jax.train.optimizer import learning_rate_schedule

    config = run_config(options, work, seed)
    export_huggingface(
        init_params(config.model, jax.random.key(seed)), config.model, work / "tokenizer",
        work / f"initial-{seed}", max_tokens=options.max_tokens, card="Random weights.\n",
    )  # fmt: skip
    rates = learning_rate_schedule(config.optim, options.steps)(jnp.arange(options.steps))
    plan = {"pairs": ordered_pairs(config), "rates": np.asarray(rates).tolist()}
    (work / f"plan-{seed}.json").write_text(json.dumps(plan), encoding="utf-8")


def ordered_pairs(config: RunConfig) -> list[list[str]]:
    """The pairs in the order of our batches, found by the hashes of their texts."""
    from jina_jax.feed.pipeline import feed_of_run
    from jina_jax.shards.manifest import load_manifest
    from jina_jax.text.identity import text_hash
    from jina_jax.text.tokenizer import load_tokenizer

    feed = feed_of_run(config, load_manifest(config.data_path))
    (shards,) = feed.feed.sources.values()
    tokenizer = load_tokenizer(config.data_path / "tokenizer")
    tokenizer.enable_truncation(config.data.max_text_tokens)
    by_hash: dict[bytes, list[str]] = {}
    for line in Path(config.data.sources[0].paths[0]).read_text(encoding="utf-8").splitlines():
        pair = list(json.loads(line).values())
        by_hash.setdefault(b"".join(map(text_hash, pair)), pair)
    ordered = []
    for batch in feed.batches:
        records = shards.read(batch.record_B)
        for number, hashes in enumerate(records.hashes_NSx2):
            pair = by_hash[hashes.tobytes()]
            ids = [tokenizer.encode(text).ids for text in pair]
            assert all(np.array_equal(records.text(number, i), ids[i]) for i in (0, 1))
            ordered.append(pair)
    return ordered


def trained_side(options: Options, work: Path, side: str, seed: int) -> dict[str, Any]:
    """Trains one side in a process of its own: losses and seconds of steps, and of all."""
    given = dataclasses.replace(options, seeds=(seed,), side=side, work=work)
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in vars(given).items()
             if value is not None and name != "seeds"]  # fmt: skip
    command = [sys.executable, __file__, f"--seeds={seed}", *flags]
    before = _cpu_seconds()
    began = time.perf_counter()
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    process_s = time.perf_counter() - began
    machine_s, cpu_s = np.subtract(_cpu_seconds(), before).tolist()
    return json.loads(done.stdout.splitlines()[-1]) | {
        "process_s": process_s,
        "cpu_s": cpu_s,
        "others": (machine_s - cpu_s) / process_s,
    }


def _cpu_seconds() -> tuple[float, float]:
    """CPU seconds of the whole machine, and of this process's children that ended."""
    machine = psutil.cpu_times()
    mine = resource.getrusage(resource.RUSAGE_CHILDREN)
    return machine.user + machine.nice + machine.system, mine.ru_utime + mine.ru_stime


def measured(options: Options, work: Path, seed: int, prepare_s: float) -> dict[str, Any]:
    """Trains and scores both sides with one seed."""
    from jina_jax.inference.embedder import Embedder

    write_start(options, work, seed)
    config = run_config(options, work, seed)
    ours, theirs = (trained_side(options, work, side, seed) for side in SIDES)
    trained = Embedder.from_run(config.run_path)
    models = {
        SIDES[0]: trained,
        SIDES[1]: Embedder.load(work / f"theirs-{seed}"),
        "untrained": Embedder.load(work / f"initial-{seed}"),
    }
    half = options.steps // 2
    found: dict[str, Any] = {name: scored(options, work, model) for name, model in models.items()}
    for name, side in zip(SIDES, (ours, theirs), strict=True):
        found[name] |= {
            **{name: side[name] for name in ("process_s", "cpu_s", "others")},
            "step_s": statistics.mean(side["seconds"][half:]),
            "loss": statistics.mean(side["losses"][-10:]),
        }
    apart = np.abs(np.subtract(ours["losses"], theirs["losses"]))
    found["prepare_s"] = prepare_s
    return found | {"losses_apart": {"first": apart[0], "all": apart.max()}}


def scored(options: Options, work: Path, model: Any) -> dict[str, float]:
    """Held-out nDCG@10 and, where it is asked for, Spearman's correlation."""
    from jina_jax.evaluate.retrieval import load_task, rank_by_embedding, score
    from jina_jax.evaluate.sts import read_sts, score_sts
    from jina_jax.shards.manifest import load_manifest

    (source,) = load_manifest(work / "data").sources
    task = load_task("held out", work / "data" / str(source.eval_path))
    values = {NDCG: score(task, rank_by_embedding(task, model, 10), 10)[NDCG]}
    if options.sts is not None:
        values[STS] = score_sts(read_sts(sts_benchmark(options.sts)), model)[STS]
    return values


def sts_benchmark(path: Path) -> StsSet:
    """A file as the STS Benchmark distributes it."""
    return StsSet("STS Benchmark", (str(path),), "text", ("6", "7", "5"))


def main() -> None:
    """Runs the benchmark, or one side of it."""
    options = tyro.cli(Options, description=__doc__)
    if options.side:
        side = train_ours if options.side == SIDES[0] else train_theirs
        print(json.dumps(side(options, options.work)))
        return
    given = {k: str(v) for k, v in vars(options).items() if k not in ("seeds", "results")}
    if options.sts is not None:
        from jina_jax.evaluate.sts import read_sts

        read_sts(sts_benchmark(options.sts))  # what is wrong with it is told before the training
    kept: dict[str, Any] = {"options": given, "seeds": {}}
    if options.results is not None and options.results.is_file():
        kept = json.loads(options.results.read_text(encoding="utf-8"))
        if kept["options"] != given:
            sys.exit(f"{options.results} holds results of other options: {kept['options']}")
    with tempfile.TemporaryDirectory() as folder:
        prepare_s = prepare_both(options, Path(folder))
        for seed in options.seeds:
            kept["seeds"][str(seed)] = measured(options, Path(folder), seed, prepare_s)
            print(f"seed {seed}: {json.dumps(kept['seeds'][str(seed)])}", flush=True)
            if options.results is not None:
                options.results.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
    print(summary(kept["seeds"]))


if __name__ == "__main__":
    main()
