"""all-MiniLM-L6-v2 before and after the config `negation_minilm`: negation, and what it costs.

A fifth of the premises is held out with all of its sentences; of both fifths `negation_triplets`
makes triplets. Of the held-out ones: Easy- and HardNegation of contradictions and of negations by
rule; of STS Benchmark's dev set: Spearman's correlation. For each seed, and their mean and spread.

python benchmarks/negation_minilm.py NLI STS

NLI holds .jsonl files (premise, hypothesis and label); STS is `sts-dev.csv`.
"""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro
import xxhash

from jina_jax.config import NegationSet, RunConfig, StsSet
from jina_jax.config.files import load_config
from jina_jax.evaluate.negation import read_negation, score_negation
from jina_jax.evaluate.results import score_all
from jina_jax.evaluate.sts import read_sts, score_sts
from jina_jax.inference.embedder import Embedder
from jina_jax.inference.initial import with_named_model
from jina_jax.negation.build import build_negations
from jina_jax.prepare.run import prepare
from jina_jax.system.atomic import write_atomically
from jina_jax.train.loop import train

_HELD_OUT = 5
"""One premise of so many."""


@dataclass(frozen=True)
class Options:
    """What to run."""

    nli: tyro.conf.Positional[Path]
    sts: tyro.conf.Positional[Path]
    workdir: Path = Path("runs/negation_minilm_benchmark")
    seeds: tuple[int, ...] = (0, 1, 2)
    more: tuple[str, ...] = ()
    """Other sets of triplets: .jsonl with query, positive and negative."""


def split(options: Options) -> None:
    """Writes the records of both parts, and their triplets."""
    lines: dict[str, list[str]] = {"train": [], "held_out": []}
    for path in sorted(options.nli.glob("*.jsonl")):
        for line in path.read_text(encoding="utf-8").splitlines():
            number = xxhash.xxh3_64_intdigest(json.loads(line)["premise"].encode())
            lines["held_out" if number % _HELD_OUT == 0 else "train"].append(line)
    maker = load_config("negation_triplets")
    for part, of_part in lines.items():
        folder = options.workdir / part
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / "nli.jsonl").exists():
            write_atomically(folder / "nli.jsonl", "".join(f"{x}\n" for x in of_part).encode())
        sources = tuple(
            dataclasses.replace(
                source, kind="jsonl", dataset="", paths=(str(folder.absolute() / "nli.jsonl"),)
            )
            for source in maker.data.sources
        )
        data = dataclasses.replace(maker.data, sources=sources)
        build_negations(maker.negation, data, folder / "triplets")


def run_config(options: Options, seed: int) -> RunConfig:
    """The shipped config on the first part."""
    config = with_named_model(load_config("negation_minilm"))
    triplets = options.workdir.absolute() / "train" / "triplets"
    sources = tuple(
        dataclasses.replace(source, paths=(str(triplets / Path(source.paths[0]).name),))
        for source in config.data.sources
    )
    return dataclasses.replace(
        config,
        workdir=str(options.workdir / f"seed-{seed}"),
        data_dir=str(options.workdir / "data"),
        data=dataclasses.replace(config.data, sources=sources),
        train=dataclasses.replace(config.train, seed=seed),
    )


def scores(options: Options, model: Embedder) -> dict[str, float]:
    """Each measure in percent."""
    names = [source.name for source in load_config("negation_triplets").data.sources]
    held_out = options.workdir / "held_out" / "triplets"
    paths = [*(held_out / f"{name}.jsonl" for name in names), *map(Path, options.more)]
    tasks = [
        read_negation(
            NegationSet(path.stem, (str(path),), "jsonl", ("query", "positive", "negative"))
        )
        for path in paths
    ]
    sts = read_sts(StsSet("sts", (str(options.sts),), "text", ("6", "7", "5")))
    found: dict[str, Any] = score_all(tasks, {"m": model}, score_negation)
    found |= score_all([sts], {"m": model}, score_sts)
    return {
        f"{task} {measure}": 100 * value
        for task, systems in found.items()
        if task != "average"
        for measure, value in systems["m"].items()
    }


def main() -> None:
    """Runs every seed, and prints the table."""
    options = tyro.cli(Annotated[Options, tyro.conf.arg(name="")], description=__doc__)
    split(options)
    after = []
    for seed in options.seeds:
        config = run_config(options, seed)
        prepare(config.data, config.data_path)
        train(config)
        after.append(scores(options, Embedder.load(config.run_path)))
    before = scores(options, Embedder.load(config.train.initial_weights))
    print(f"{'':38}{'before':>8}{'after':>14}")
    for name, value in before.items():
        of_seeds = np.array([found[name] for found in after])
        spread = of_seeds.std(ddof=1) if len(of_seeds) > 1 else 0.0
        print(f"{name:38}{value:8.1f}{f'{of_seeds.mean():.1f} ± {spread:.1f}':>14}")


if __name__ == "__main__":
    main()
