"""Semantic textual similarity: whether cosines rank pairs of texts as people do."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow.parquet as pq
from jaxtyping import Float

from jina_jax.config import StsSet
from jina_jax.errors import UserError
from jina_jax.inference.embedder import Embedder
from jina_jax.shards.manifest import Manifest
from jina_jax.sources.rows import Row, evaluation_rows
from jina_jax.system.terminal import say


class StsTask(NamedTuple):
    """Scored pairs, by column."""

    name: str
    left: Sequence[str]
    right: Sequence[str]
    score: Sequence[float]
    prompts: tuple[str, str] | None = None
    """Before the texts of the left and of the right; None for the model's of other texts."""


def held_out_sts(manifest: Manifest, folder: Path) -> list[StsTask]:
    """The held-out scored pairs of every source of a prepared folder that has two different scores.

    Raises: UserError naming the file that is not there.
    """
    tasks = []
    for source in manifest.sources:
        if source.record != "scored" or not source.eval_path:
            continue
        path = folder / source.eval_path
        if not path.is_file():
            raise UserError(f"no held-out pairs at {path}: prepare the data again")
        table = pq.read_table(path, columns=["query", "positive", "gold"])
        left, right, scores = (column.to_pylist() for column in table.columns)
        if len(set(scores)) > 1:
            tasks.append(StsTask(source.name, left, right, scores, source.prompts))
        else:
            say(f"{source.name}: its held-out pairs have one score, so that there is no order")
    return tasks


def read_sts(config: StsSet) -> StsTask:
    """Reads a set of scored pairs.

    Pairs with an empty text, which STS22 has, are left out, as MTEB's STS22.v2 does, and counted.

    Raises: UserError naming the file and row that cannot be read, has something else than a text or
      no finite score, and when all scores are equal: nothing can be correlated with them.
    """
    *texts, score = config.fields
    rows, empty = [], 0
    for row in evaluation_rows(config):
        if any(isinstance(text := row.field(name), str) and not text.strip() for name in texts):
            empty += 1
        else:
            rows.append((*map(row.text, texts), _number(row, score)))
    say(f"{config.name}: {empty:,} pairs with an empty text are left out", enabled=empty > 0)
    if len({row[-1] for row in rows}) < 2:
        raise UserError(
            f"evaluation set {config.name!r} has {len(rows)} pairs and less than two different "
            f"scores in field {score!r}: no ranks to compare with"
        )
    left, right, scores = (list(column) for column in zip(*rows, strict=True))
    return StsTask(config.name, left, right, scores)


def _number(row: Row, name: str) -> float:
    value: Any = row.field(name)
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise row.error(f"holds {value!r} in field {name!r}, not a finite number")
    return number


def spearman(x_N: Float[np.ndarray, "N"], y_N: Float[np.ndarray, "N"]) -> float:
    """Spearman's rank correlation; equal values share the mean of their ranks.

    Args:
      x_N: any scale.
      y_N: any scale.
    Returns: in -1..1; 0 where either has one value only, and so no order.
    Example: (1, 2, 2, 3) and (1, 3, 2, 4) have ranks (1, 2.5, 2.5, 4) and (1, 3, 2, 4): 0.9487.
    Source: Spearman 1904; ties as in Kendall 1945.
    """
    from scipy.stats import spearmanr  # A fifth of what training imports.

    if np.ptp(x_N) == 0 or np.ptp(y_N) == 0:
        return 0.0
    return float(spearmanr(x_N, y_N).statistic)


def score_sts(task: StsTask, embedder: Embedder) -> dict[str, float]:
    """Spearman's correlation of the cosines of the pairs with their scores."""
    prompts = task.prompts or (embedder.prompts.other,) * 2
    if prompts[0] == prompts[1]:
        z_2ND = embedder.encode([*task.left, *task.right], prompt=prompts[0])
        left_ND, right_ND = z_2ND.reshape(2, len(task.left), -1)
    else:
        left_ND, right_ND = (
            embedder.encode(texts, prompt=prompt)
            for texts, prompt in zip((task.left, task.right), prompts, strict=True)
        )
    cosine_N = np.einsum("nd,nd->n", left_ND, right_ND)
    return {"spearman": spearman(cosine_N, np.array(task.score, np.float64))}
