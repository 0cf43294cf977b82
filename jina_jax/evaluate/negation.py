"""Whether a model tells a sentence from its negation (Günther et al. 2023, arXiv 2307.11224).

Of triplets (anchor, entailment, negative), where the negative contradicts both others in nearly
their words: EasyNegation is the share whose anchor is nearer to its entailment than to its
negative, HardNegation the share whose entailment is nearer to its anchor than to the negative.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow.parquet as pq
from jaxtyping import Float32

from jina_jax.config import NegationSet
from jina_jax.errors import UserError
from jina_jax.inference.embedder import Embedder
from jina_jax.shards.manifest import Manifest
from jina_jax.sources.rows import evaluation_rows

MEASURES = ("easy_negation", "hard_negation")


class NegationTask(NamedTuple):
    """Triplets, by column."""

    name: str
    anchors: Sequence[str]
    entailments: Sequence[str]
    negatives: Sequence[str]


def read_negation(config: NegationSet) -> NegationTask:
    """Reads a set of triplets.

    Raises: UserError naming the file and row that cannot be read or lacks a text, and when there
      is no triplet: none is passed over, so that figures of two models are of the same ones.
    """
    triplets = [tuple(map(row.text, config.fields)) for row in evaluation_rows(config)]
    if not triplets:
        raise UserError(f"evaluation set {config.name!r} has no triplet: check its paths")
    return NegationTask(config.name, *(list(column) for column in zip(*triplets, strict=True)))


def held_out_negation(manifest: Manifest, folder: Path) -> list[NegationTask]:
    """The held-out triplets of every source of triplets of a prepared folder."""
    tasks = []
    for source in manifest.sources:
        if source.record == "triplet" and source.eval_path:
            table = pq.read_table(folder / source.eval_path)
            columns = [table.column(n).to_pylist() for n in ("query", "positive", "negative")]
            triplets = [texts for texts in zip(*columns, strict=True) if texts[2]]
            if triplets:
                tasks.append(NegationTask(source.name, *map(list, zip(*triplets, strict=True))))
    return tasks


def negation_scores(
    a_ND: Float32[np.ndarray, "N D"],
    e_ND: Float32[np.ndarray, "N D"],
    n_ND: Float32[np.ndarray, "N D"],
) -> dict[str, float]:
    """EasyNegation and HardNegation of embedded triplets.

    Args:
      a_ND: unit vectors of the anchors; at least one.
      e_ND: of their entailments.
      n_ND: of their negatives.
    Returns: `easy_negation`, the share with cos(a, e) > cos(a, n), and `hard_negation`, the share
      with cos(a, e) > cos(e, n), both in 0..1; equal cosines do not count.
    Example: all three vectors the same give 0 and 0.
    Source: Günther et al. 2023 (arXiv 2307.11224), on the negation data set.
    """
    positive_N, easy_N, hard_N = (
        np.einsum("nd,nd->n", x, y) for x, y in ((a_ND, e_ND), (a_ND, n_ND), (e_ND, n_ND))
    )
    shares = (float(np.mean(positive_N > other_N)) for other_N in (easy_N, hard_N))
    return dict(zip(MEASURES, shares, strict=True))


def score_negation(task: NegationTask, embedder: Embedder) -> dict[str, float]:
    """Embeds the triplets of a task and gives `negation_scores`."""
    return negation_scores(*(embedder.encode(texts) for texts in task[1:]))
