"""The command line: `jina-jax VERB ...`. The only module that imports all the others."""

import difflib
import errno
import os
import sys
from collections.abc import Callable, Sequence

import tyro

from jina_jax.ablate.verb import ablate
from jina_jax.arguments import config_verb
from jina_jax.config_file import config_names, each_phase, reads_from, to_json
from jina_jax.credentials import masked
from jina_jax.doctor.verb import doctor
from jina_jax.errors import ExitCode, Interrupted, RunFailed, UserError
from jina_jax.launch.verb import launch
from jina_jax.look_verbs import inspect, plan
from jina_jax.model_verbs import encode, import_model, mteb, negation_score, report, search

# Heavy imports happen inside the verbs, so that --help and errors are quick.

USAGE = """\
usage: jina-jax VERB [arguments] [--help]

Train text-embedding models: from raw text to a model that sentence-transformers loads.

the main job, in this order (CONFIG is a Python file, the name of a shipped config or a run folder;
where it has several phases, a verb takes them in order, or one as CONFIG:PHASE; CONFIG@MACHINE
takes its settings for a machine)
  prepare CONFIG      read the sources, filter, deduplicate, tokenise, write shuffled shards
  train CONFIG        train on the shards; the same command resumes
  evaluate CONFIG     retrieval beside BM25, negation, STS, reranking: held out, and own sets
  export CONFIG       write a Hugging Face folder for sentence-transformers
  run CONFIG          all of these, phase by phase, with what a later phase reads in between
  negation CONFIG     triplets of a sentence, its entailment and its negation
  mine CONFIG         hard negatives for the training pairs, found with the trained model
  ablate CONFIG       arms of a run side by side: prepared, trained with several seeds, compared
  demo                prepare to export and a search, on documentation of installed packages

use a model (MODEL is a run folder or an exported folder)
  encode MODEL IN OUT texts of a file → embeddings (.npy, .safetensors or .parquet)
  search MODEL CORPUS QUERY ...   the passages of a file nearest to each query
  import MODEL RUN    a Hugging Face or sentence-transformers T5 → a run folder
  mteb MODEL          scores on tasks of MTEB: the paper's, a quick few, or one's own
  negation-score MODEL TRIPLETS   share of triplets whose negation is told apart

look ahead and inside
  plan CONFIG         compile the step for a TPU slice without having one: does it fit, time, cost
  launch TARGET CONFIG   the file that starts a run on GKE, SLURM, ...: names and sizes in one place
  inspect DIR         what is in a prepared folder or a run: counts, drops, scores and samples
  report RUN ...      one page: data, curves, scores, configuration; several runs side by side
  show-config CONFIG  every field with its value
  doctor [WHAT]       machine, packages, devices, disk; shards and checkpoints of a run: what helps

Any field of a config can be changed: jina-jax train demo --optim.learning-rate 3e-4
`jina-jax VERB --help` explains a verb and lists its fields. Shipped configs: {configs}
"""


def _prepare(args: Sequence[str]) -> None:
    """Read the sources, drop what must not be trained on, and write shuffled shards.

    Writes below the data folder: shards (ArrayRecord of token ids and text hashes), the held-out
    pairs (eval/), the tokenizer, manifest.json and ledger.parquet, which tells of every dropped
    record why. Running it twice gives the same bytes.

    Where --data-dir is a URL (gs:// with gcsfs, s3:// with s3fs), the folder is made in the cache
    of this machine (--cache-dir) and put there; what is there already is fetched instead.

    example: jina-jax prepare my_config.py --data.eval-pairs 500
    """
    config = config_verb("prepare", _prepare.__doc__ or "", args)
    from jina_jax.data.prepare import prepare
    from jina_jax.data.remote import fetch_if_there, upload_prepared
    from jina_jax.score.stages import configured_scorers
    from jina_jax.terminal import funnel

    fetch_if_there(config)
    manifest = prepare(config.data, config.data_path, scorers=configured_scorers(config.data))
    print(funnel(manifest))
    upload_prepared(config)
    print(f"prepared data: {config.data_dir or config.data_path}")


def _train(args: Sequence[str]) -> None:
    """Train on prepared shards.

    Metrics go to metrics.jsonl and tensorboard/ in the run folder (and to Weights & Biases with
    --train.wandb-project), states to checkpoints/. The same command again goes on from the newest
    checkpoint, with the same batches and losses as if nothing had happened; Ctrl-C saves first. A
    changed field is refused on resumption unless it cannot change the result; the mesh and the
    number of devices may change.

    Sources follow their weight and max_epochs and the fields of mixture; metrics tell of each as
    source/NAME/..., and ALARM on standard error names one whose figures show a collapse (alarms).

    On several hosts, run it on each with --distributed.coordinator auto, or with HOST:PORT of the
    first, --distributed.processes and --distributed.process-id. Where --data-dir is a URL, each
    machine fetches the shards into its cache (--cache-dir) first, and checks every byte.

    example: jina-jax train my_config.py --train.num-steps 5000
    """
    config = config_verb("train", _train.__doc__ or "", args)
    from jina_jax.data.remote import fetch_prepared
    from jina_jax.distributed import start
    from jina_jax.train.loop import train

    # Before the fetch, which takes one host longer than another.
    start(config.distributed, config.faults.heartbeat_s)
    fetch_prepared(config)
    train(config)
    print(f"trained: {config.run_path}")


def _evaluate(args: Sequence[str]) -> None:
    """Measure retrieval, negation, semantic similarity and reranking.

    Each held-out query must find its positive among all held-out positives of its source.
    Prints nDCG@10 and recall@10 of the trained model, the model before training and BM25, and
    writes evaluation.json in the run folder. Of held-out triplets (query, positive, negative) also
    the shares with cos(q, p) > cos(q, n), easy negation, and cos(q, p) > cos(p, n), hard negation,
    in negation.json.

    Sets of one's own join them: evaluate.retrieval (a folder in BEIR's layout, or files),
    evaluate.negation, evaluate.sts (Spearman's correlation of the cosines with the scores, in
    sts.json) and evaluate.reranking (MAP@10, in reranking.json). A row that cannot be read stops
    it, with file, line and field.
    """
    config = config_verb("evaluate", _evaluate.__doc__ or "", args)
    from jina_jax.data.remote import fetch_prepared
    from jina_jax.evaluate.run import evaluate
    from jina_jax.terminal import scores

    fetch_prepared(config)
    found = evaluate(config)
    of = ("retrieval", "negation", "semantic similarity", "reranking")
    tables = [scores(results, what) for results, what in zip(found, of, strict=True) if results]
    print(
        "\n\n".join(tables)
        or "nothing to evaluate: no record is held out (data.eval_pairs), and the config names no "
        "set of its own (evaluate.retrieval, .negation, .sts, .reranking)"
    )


def _export(args: Sequence[str]) -> None:
    """Write the newest checkpoint as a Hugging Face folder.

    The folder loads with SentenceTransformer(path). It is read back and compared with the
    checkpoint before this command ends. Its model card holds the sources with their licences, the
    recipe and what `evaluate` measured, also as the model-index that the hub reads.

    example: HF_TOKEN=... jina-jax export runs/mine --export.onnx --export.push-to me/mine
    """
    config = config_verb("export", _export.__doc__ or "", args)
    from jina_jax.data.remote import fetch_prepared
    from jina_jax.export.run import export

    if config.data.sources:  # which an imported model has not
        fetch_prepared(config)
    print(f"exported: {export(config)}")


def _negation(args: Sequence[str]) -> None:
    """Make triplets of a sentence, its entailment and its negation.

    Reads the sources of the config. Triplets, such as NLI data with the extractor nli_triplets,
    are only checked; the positives of pairs get negations, by rules for English or from a chat
    endpoint, whose cost is estimated before anything is sent and whose answers are kept. Writes
    SOURCE.jsonl, triplets that `prepare` reads with negative_field="negative",
    SOURCE.rejected.jsonl with reasons, and negation.json. The same command again goes on from
    what is done.

    example: jina-jax negation my_config.py --negation.method rules
    """
    config = config_verb("negation", _negation.__doc__ or "", args)
    from jina_jax.data.negation import build_negations
    from jina_jax.terminal import negations

    print(negations(build_negations(config.negation, config.data, config.negation_path)))
    print(f"negation triplets: {config.negation_path}")


def _mine(args: Sequence[str]) -> None:
    """Find hard negatives for the training pairs, with the newest checkpoint.

    Searches the passages of each source for its own queries, exactly, and takes the nearest that
    score below the positive by a margin. Writes SOURCE.jsonl, triplets that `prepare` reads
    with negative_field="negative", SOURCE.dropped.jsonl with what each rule dropped, and
    mined.json. The same command again goes on from what is done.

    example: jina-jax mine my_config.py --mine.negatives-per-pair 3 --mine.margin 0.05
    """
    config = config_verb("mine", _mine.__doc__ or "", args)
    from jina_jax.data.remote import fetch_prepared
    from jina_jax.mine.run import mine
    from jina_jax.terminal import mined

    fetch_prepared(config)
    report = mine(config)
    print(mined(report))
    print(f"mined triplets: {config.mine_path}")


def _run_all(args: Sequence[str]) -> None:
    """Prepare and train every phase of a config, then evaluate and export the last.

    Where a later phase reads triplets from the folder that `mine` or `negation` fills for a phase,
    these are made when the phase is trained: so hard negatives are mined anew between phases, each
    time with the newest model. What is done is not done again; a killed run goes on.

    example: jina-jax run my_phases.py
    """
    each = each_phase(args)
    phases = [config_verb("run", _run_all.__doc__ or "", phase_args) for phase_args in each]
    for number, (config, phase_args) in enumerate(zip(phases, each, strict=True)):
        _prepare(phase_args)
        _train(phase_args)
        for make, folder in ((_mine, config.mine_path), (_negation, config.negation_path)):
            if any(reads_from(later.data, folder) for later in phases[number + 1 :]):
                make(phase_args)
    _evaluate(each[-1])
    _export(each[-1])


def _show_config(args: Sequence[str]) -> None:
    """Print every field of a config with its value, as JSON."""
    print(to_json(config_verb("show-config", _show_config.__doc__ or "", args)))


def _demo(args: Sequence[str]) -> None:
    """Run the whole way on real text that is at hand everywhere.

    prepare → train → evaluate → export → search, on the documentation of the Python packages
    installed on this machine. Takes minutes on 2 CPU cores. Interrupted, it goes on where it was.
    """
    from jina_jax.demo import demo

    demo(config_verb("demo", _demo.__doc__ or "", ["demo", *args]))


_CONFIG_VERBS: dict[str, Callable[[Sequence[str]], None]] = {
    "demo": _demo,
    "prepare": _prepare,
    "train": _train,
    "evaluate": _evaluate,
    "export": _export,
    "negation": _negation,
    "mine": _mine,
    "run": _run_all,
    "show-config": _show_config,
    "plan": plan,
    "ablate": ablate,
    "launch": launch,
}
_OF_ALL_PHASES = ("demo", "ablate", "run", "launch")
_PLAIN_VERBS: dict[str, Callable[..., None]] = {
    "encode": encode,
    "import": import_model,
    "search": search,
    "negation-score": negation_score,
    "mteb": mteb,
    "inspect": inspect,
    "report": report,
    "doctor": doctor,
}


def _run(verb: str, args: list[str]) -> None:
    if verb in _CONFIG_VERBS:
        for phase_args in [args] if verb in _OF_ALL_PHASES else each_phase(args):
            _CONFIG_VERBS[verb](phase_args)
    elif verb in _PLAIN_VERBS:
        tyro.cli(_PLAIN_VERBS[verb], prog=f"jina-jax {verb}", args=args)
    else:
        verbs = [*_CONFIG_VERBS, *_PLAIN_VERBS]
        close = difflib.get_close_matches(verb, verbs, 1)
        hint = f"did you mean {close[0]!r}?" if close else f"verbs: {', '.join(verbs)}"
        raise UserError(f"no verb {verb!r}; {hint}")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command line.

    Returns: the exit code, as `errors.ExitCode` lists them.
    """
    args = list(sys.argv[1:] if argv is None else argv)
    if not args or args[0] in ("-h", "--help", "help"):
        print(USAGE.format(configs=", ".join(config_names())))
        return 0
    if args[0] == "--version":
        from jina_jax import __version__

        print(f"jina-jax {__version__}")
        return 0
    try:
        _run(args[0], args[1:])
    except UserError as error:
        print(f"jina-jax {args[0]}: {masked(str(error), args)}", file=sys.stderr)
        return ExitCode.USER_ERROR
    except RunFailed as failed:
        print(f"jina-jax {args[0]}: {masked(str(failed), args)}", file=sys.stderr)
        return failed.exit_code
    except Interrupted as interrupted:
        print(f"jina-jax {args[0]}: {interrupted}", file=sys.stderr)
        return interrupted.exit_code
    except KeyboardInterrupt:
        print("\nstopped; the same command goes on from what is written", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader of our output (`| head`) is gone: no error, and nothing left to say it to.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        print(f"jina-jax {args[0]}: {error}: make room; nothing finished is lost", file=sys.stderr)
        return ExitCode.SAVE_FAILED
    return 0


if __name__ == "__main__":
    sys.exit(main())
