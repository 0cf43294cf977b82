"""Verbs of the command line that use a model: `jina-jax encode`, `search` and `negation-score`."""

from pathlib import Path
from typing import Annotated

import tyro

from jina_jax.errors import UserError

# Heavy imports happen inside the verbs, so that --help and errors are quick.


def encode(
    model: tyro.conf.Positional[Path],
    texts: tyro.conf.Positional[Path],
    output: tyro.conf.Positional[Path],
    field: str = "text",
    batch_rows: int = 32,
) -> None:
    """Encode the texts of a file.

    Args:
      model: a run folder or an exported folder.
      texts: .txt (one text a line), .jsonl (.gz, .zst), .csv, .tsv or .parquet.
      output: .npy (float32 [texts, dimension]) or .parquet (columns text, embedding).
      field: field or column that holds the text.
      batch_rows: packed rows encoded at once; more is faster on large devices.
    """
    from jina_jax.evaluate.embedder import Embedder
    from jina_jax.evaluate.texts import check_output, read_texts, write_embeddings

    check_output(output)
    lines = read_texts(texts, field)
    embeddings = Embedder.load(model, batch_rows=batch_rows).encode(lines, progress=True)
    write_embeddings(output, lines, embeddings)
    print(f"{embeddings.shape[0]} embeddings of {embeddings.shape[1]} dimensions: {output}")


def search(
    model: tyro.conf.Positional[Path],
    corpus: tyro.conf.Positional[Path],
    queries: Annotated[tuple[str, ...], tyro.conf.Positional],
    field: str = "text",
    top_k: int = 5,
) -> None:
    """Find the passages of a file that are nearest to each query.

    Args:
      model: a run folder or an exported folder.
      corpus: .txt (one passage a line), .jsonl (.gz, .zst), .csv, .tsv or .parquet.
      queries: one or more.
      field: field or column that holds the passage.
      top_k: passages shown per query.
    """
    from jina_jax.evaluate import search as exact
    from jina_jax.evaluate.embedder import Embedder
    from jina_jax.evaluate.texts import read_texts
    from jina_jax.terminal import hits

    if not queries:
        raise UserError('`jina-jax search` needs a query: jina-jax search MODEL CORPUS "a query"')
    passages = read_texts(corpus, field)
    found = exact.search(Embedder.load(model), passages, queries, top_k)
    print(hits(found))


def negation_score(
    model: tyro.conf.Positional[Path],
    triplets: tyro.conf.Positional[Path],
    anchor_field: str = "query",
    entailment_field: str = "positive",
    negative_field: str = "negative",
    batch_rows: int = 32,
) -> None:
    """Measure whether a model tells sentences from their negations.

    Easy negation is the share of triplets with cos(anchor, entailment) > cos(anchor, negative),
    hard negation that with cos(anchor, entailment) > cos(entailment, negative).

    Args:
      model: a run folder or an exported folder.
      triplets: .jsonl (.gz, .zst), .csv, .tsv or .parquet.
      anchor_field: field or column that holds the anchor.
      entailment_field: that holds what follows from the anchor.
      negative_field: that holds what contradicts both.
      batch_rows: packed rows encoded at once.
    """
    from jina_jax.evaluate.embedder import Embedder
    from jina_jax.evaluate.negation import evaluate_negation, read_task
    from jina_jax.evaluate.texts import file_source
    from jina_jax.terminal import scores

    task = read_task(file_source(triplets, (anchor_field, entailment_field, negative_field)))
    embedder = Embedder.load(model, batch_rows=batch_rows)
    found = evaluate_negation([task._replace(name=triplets.name)], {"model": embedder})
    print(scores(found, f"{len(task.anchors):,} triplets"))
