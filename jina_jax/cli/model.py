"""Verbs of the command line that use a model: `jina-jax encode`, `search`, `import` ..."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Literal

import tyro

from jina_jax.config import DistributedConfig, FaultConfig, Precision
from jina_jax.config.validation import check_distributed
from jina_jax.errors import UserError
from jina_jax.system.atomic import write_json
from jina_jax.system.terminal import say
from jina_jax.system.workspace import check_writable

# Heavy imports happen inside the verbs, so that --help and errors are quick.

_Model = Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")]


def encode(
    model: _Model,
    texts: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="IN")],
    output: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="OUT")],
    field: str = "text",
    prompt_name: str | None = None,
    prompt: str | None = None,
    truncate_dim: int | None = None,
    compute_dtype: Literal["float32", "bfloat16"] = "float32",
    precision: Precision = "float32",
    ranges: Path | None = None,
    batch_rows: int = 32,
    distributed: DistributedConfig = DistributedConfig(),
) -> None:
    """Encode the texts of a file, of any size.

    The output appears when it is whole. After a kill, the same command goes on where it was.

    Several hosts that run the same command, each with --distributed.coordinator, share the texts;
    each reads IN, and the first writes OUT.

    example: jina-jax encode runs/demo/export passages.jsonl embeddings.npy --field body

    Args:
      model: a run folder or an exported folder.
      texts: .txt (one text a line) or .jsonl, both also .gz and .zst, .csv, .tsv or .parquet.
      output: .npy ([texts, dimensions]), .safetensors (the same as `embeddings`) or .parquet
        (columns text, embedding); what is there is replaced.
      field: field or column that holds the text.
      prompt_name: name of the model's prompt to put before each text, such as query or document;
        its default, which most models have none of, where nothing is given.
      prompt: any other text to put before each.
      truncate_dim: only the first dimensions, at unit length again; for models trained with
        loss.matryoshka_dims.
      compute_dtype: of the matrix products; bfloat16 is faster on TPU and GPU, and rounds.
      precision: of the numbers in the file. int8 and uint8 divide the range of each dimension into
        256; binary (int8) and ubinary (uint8) hold a bit a dimension, 8 to a byte, as
        sentence-transformers has them.
      ranges: for int8 and uint8, the ranges of other embeddings to be compared with: the file
        NAME.ranges.npy, which is written beside NAME where none is given.
      batch_rows: packed rows encoded at once; more is faster on large devices.
      distributed: the processes that share the texts.
    """
    from jina_jax.devices.distributed import is_first, joined, shared_problems
    from jina_jax.inference.embedder import Embedder, find_model
    from jina_jax.inference.encode_file import check_output, count_texts, encode_file, read_ranges

    check_distributed(distributed)
    if ranges is not None and precision not in ("int8", "uint8"):
        raise UserError(f"--ranges is for --precision int8 or uint8, not {precision}")
    if prompt is not None and prompt_name is not None:
        raise UserError("give --prompt-name or --prompt, not both")
    with joined(distributed, FaultConfig().heartbeat_s):
        with shared_problems():
            if is_first():
                check_output(output)
        count = count_texts(texts, field, progress=is_first())
        with shared_problems():
            find_model(model)
        embedder = Embedder.load(
            model, batch_rows=batch_rows, truncate_dim=truncate_dim, normalize=None,
            compute_dtype=compute_dtype,
        )  # fmt: skip
        if prompt_name is not None:
            prompt = embedder.prompts.find(prompt_name)
        elif prompt is None and embedder.prompts.named:
            names = " or ".join(f"--prompt-name {name}" for name, _ in embedder.prompts.named)
            default = f"encoded with the model's default prompt {embedder.prompts.other!r}"
            say(f"{default}; else {names}", enabled=is_first())
        with shared_problems():
            ranges_2D = None if ranges is None else read_ranges(ranges, embedder.dimensions)
        kept = encode_file(
            embedder, texts, count, output, field=field, prompt=prompt, precision=precision,
            ranges_2D=ranges_2D,
        )  # fmt: skip
        if is_first():
            print(f"{count:,} embeddings of {embedder.dimensions} dimensions: {output}")
        if kept is not None:
            print(f"ranges of their dimensions, for --ranges: {kept}")


def import_model(
    model: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")],
    run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")],
) -> None:
    """Import a model as a run, with its weights as the checkpoint of step 0.

    The run can be evaluated, exported, searched with, and started from
    (--train.initial-weights RUN).

    example: jina-jax import sentence-transformers/all-MiniLM-L6-v2 runs/theirs

    Args:
      model: a sentence-transformers or transformers folder with safetensors, of a T5, BERT,
        RoBERTa, XLM-R, MPNet, ModernBERT or Qwen3, or an id of the Hugging Face hub. Nothing in it
        is executed.
      run: folder to make.
    """
    from jina_jax.export.from_folder import import_folder

    config = import_folder(model, run)
    print(
        f"imported: {run} ({config.model.layers} layers, {config.model.dimensions} dimensions, "
        f"texts of up to {config.feed.query_tokens} tokens)"
    )


def merge(
    models: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="RUN ... OUT")],
    how: Literal["mean", "slerp"] = "mean",
    weights: tuple[float, ...] = (),
    last_steps: int | None = None,
) -> None:
    """Merge models of one shape into one: runs, steps of a run, or folders of models.

    Their parameters are averaged tensor by tensor, so that the result costs no more than one of
    them: of several seeds, of phases, of a model before and after its training, or of the newest
    steps of a run. Writes a run folder, as `import` does, which every verb takes. Its longest text,
    prompts and data are the first model's.

    example: jina-jax merge runs/seed-0 runs/seed-1 runs/merged --how slerp --weights 0.5 0.5

    Args:
      models: two or more, and last the folder to make. Each is a run folder (the checkpoint that it
        is used with), RUN@STEP, the folder of an exported or other model, or an id of the hub.
      how: mean, or slerp along the arc between two models, each tensor as one vector; more than two
        one after another.
      weights: of each model, in their order; only their proportions count. Equal by default.
      last_steps: merge so many of the newest steps of one run.
    """
    from jina_jax.export.merge import merge as merge_models

    if len(models) < 2:
        raise UserError("give models and, last, the folder to make: jina-jax merge RUN RUN ... OUT")
    *parts, run = models
    config = merge_models(parts, Path(run), how=how, weights=weights, last_steps=last_steps)
    print(f"merged: {run} ({config.model.layers} layers, {config.model.dimensions} dimensions)")


def search(
    model: _Model,
    corpus: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="CORPUS")],
    queries: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="QUERY ...")],
    field: str = "text",
    top_k: int = 5,
    precision: Precision = "float32",
) -> None:
    """Find the passages of a file that are nearest to each query.

    The search is exact, with the model's prompts for queries and documents. The file may be of
    any size: it is embedded and searched block by block.

    example: jina-jax search runs/demo/export passages.txt "read a file line by line"

    Args:
      model: a run folder or an exported folder.
      corpus: .txt (one passage a line), .jsonl (.gz, .zst), .csv, .tsv or .parquet.
      queries: one or more.
      field: field or column that holds the passage.
      top_k: passages shown per query.
      precision: that embeddings are rounded to before they are compared, as an index of them is.
    """
    from jina_jax.cli.tables import hits
    from jina_jax.inference import search as exact
    from jina_jax.inference.embedder import Embedder
    from jina_jax.inference.encode_file import stream_texts

    if not queries:
        raise UserError('`jina-jax search` needs a query: jina-jax search MODEL CORPUS "a query"')
    next(stream_texts(corpus, field), None)  # What cannot be read shall be known first.
    embedder = Embedder.load(model).at(precision)
    found = exact.search(embedder, lambda: stream_texts(corpus, field), queries, top_k)
    print(hits(found))


def negation_score(
    model: _Model,
    triplets: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="TRIPLETS")],
    anchor_field: str = "query",
    entailment_field: str = "positive",
    negative_field: str = "negative",
    batch_rows: int = 32,
) -> None:
    """Measure whether a model tells sentences from their negations.

    Easy negation is the share of triplets with cos(anchor, entailment) > cos(anchor, negative),
    hard negation that with cos(anchor, entailment) > cos(entailment, negative).

    example: jina-jax negation-score runs/demo/export triplets.jsonl

    Args:
      model: a run folder or an exported folder.
      triplets: .jsonl (.gz, .zst), .csv, .tsv or .parquet.
      anchor_field: field or column that holds the anchor.
      entailment_field: that holds what follows from the anchor.
      negative_field: that holds what contradicts both.
      batch_rows: packed rows encoded at once.
    """
    from jina_jax.cli.tables import scores
    from jina_jax.config import NegationSet
    from jina_jax.evaluate.negation import read_negation, score_negation
    from jina_jax.evaluate.results import score_all
    from jina_jax.inference.embedder import Embedder
    from jina_jax.inference.encode_file import file_kind

    fields = (anchor_field, entailment_field, negative_field)
    kind = file_kind(triplets)
    task = read_negation(NegationSet(triplets.name, (str(triplets),), kind, fields))
    embedder = Embedder.load(model, batch_rows=batch_rows)
    found = score_all([task], {"model": embedder}, score_negation)
    print(scores(found, f"{len(task.anchors):,} triplets"))


def mteb(
    model: _Model,
    suite: str = "quick",
    mirror: Path | None = None,
    output: Path | None = None,
    name: str = "",
    precision: Precision = "float32",
    compare: tuple[str, ...] = (
        "jina-embedding-s-en-v1",
        "jina-embedding-b-en-v1",
        "jina-embedding-l-en-v1",
        "all-MiniLM-L6-v2",
    ),
) -> None:
    """Measure a model on tasks of the Massive Text Embedding Benchmark (MTEB), and on own sets.

    Results are written task by task in mteb's own JSON; what is there is not run again. The table
    has published scores beside ours, and is written to comparison.json too. Needs
    pip install "jina-jax[mteb]".

    example: jina-jax mteb runs/demo/export --suite jina_v1

    Args:
      model: a run folder, an exported folder, or a BERT such as all-MiniLM-L6-v2.
      suite: quick, jina_v1 (the paper's tasks), or a Python file with get_suite(), whose groups
        hold tasks of MTEB and evaluation sets of one's own.
      mirror: folder with the data sets as OWNER/NAME, for a machine without a network.
      output: folder for the results; mteb/ in the model's folder by default.
      name: OWNER/NAME of the model in the results.
      precision: that embeddings are rounded to before they are compared, to know what that loses.
      compare: models whose published scores are shown: jina-embedding-s-en-v1 (-b-, -l-),
        sentence-t5-base (-large, -xl, -xxl), gtr-t5-base (-large, -xl, -xxl), all-MiniLM-L6-v2.
        Without any, ours stand alone.
    """
    from jina_jax.config.files import load_suite
    from jina_jax.mteb.published import COMPARISON_FILE, check_models
    from jina_jax.mteb.published import compare as beside

    chosen = load_suite(suite)
    check_models(compare)
    try:
        from jina_jax.mteb.model import open_model
        from jina_jax.mteb.run import run_suite
    except ImportError as error:
        raise UserError(
            f'`jina-jax mteb` needs {error.name}: pip install "jina-jax[mteb]"'
        ) from error
    from jina_jax.cli.tables import comparison

    output = output or model / "mteb"
    check_writable(output)
    found = run_suite(open_model(model, name, precision), chosen, output, mirror)
    shown = beside(found, compare)
    write_json(output / COMPARISON_FILE, asdict(shown))
    print(comparison(found, shown))
    print(f"results: {output / 'results'}")
