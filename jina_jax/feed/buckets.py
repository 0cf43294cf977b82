"""How many rows the batches of a run have: few numbers, so that few programs are compiled."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from jina_jax.config import FeedConfig
from jina_jax.feed.packing import cut_lengths, place
from jina_jax.shards.array_record import TokenisedRecords

MOST_PROGRAMS = 6
"""Of a run: one for each number of rows and of texts a record."""
_GOOD_PADDING = 0.04
"""Share of empty rows below which no further program is worth its compilation."""
_DEVIATIONS = np.linspace(-2.5, 2.5, 11)
_FARTHEST = 5.0
"""Deviations above the mean that are planned for: one batch in millions has more rows."""


class Buckets(NamedTuple):
    """What is planned for a run."""

    rows: dict[int, tuple[int, ...]]
    """Texts of a record → the numbers of rows that a batch of such records may have, ascending."""
    empty_share: float
    """Of all rows, expected."""

    def __str__(self) -> str:
        programs = [f"{rows:,}" for of_texts in self.rows.values() for rows in of_texts]
        return (
            f"batches of {', '.join(programs)} rows, each a program; about "
            f"{100 * self.empty_share:.1f}% of the rows stay empty"
        )


class RowCount(NamedTuple):
    """Rows that batches of a source need."""

    texts: int
    """Of a record."""
    mean: float
    deviation: float


def count_rows(sample: TokenisedRecords, config: FeedConfig) -> RowCount:
    """Rows of a batch, from a sample of the records that batches are drawn from.

    Args:
      sample: any number of records.
      config: batch size, limits and packing.
    """
    records, texts = sample.lengths_NS.shape
    lengths_NS = cut_lengths(sample.lengths_NS, config)
    placement = place(
        lengths_NS[lengths_NS > 0], row_tokens=config.row_tokens, texts_per_row=config.texts_per_row
    )
    of_record_N = lengths_NS.sum(1)
    rows_per_token = placement.num_rows / of_record_N.sum()
    size = config.global_batch_size
    deviation = size**0.5 * of_record_N.std() * rows_per_token
    return RowCount(texts, size * placement.num_rows / records, deviation)


def plan_buckets(counts: Sequence[RowCount], shares: Sequence[float], multiple: int) -> Buckets:
    """The numbers of rows with the fewest empty ones, `MOST_PROGRAMS` of them at most.

    Row counts of each source are taken to be normal. Fewer numbers are taken where they leave no
    more than 4% of the rows empty, and one for each number of texts a record at least.

    Args:
      counts: of each source.
      shares: of the batches that come from it.
      multiple: that each number must be of.
    """
    weights = np.exp(-(_DEVIATIONS**2) / 2) / np.exp(-(_DEVIATIONS**2) / 2).sum()
    points = sorted(
        (count.texts, max(count.mean + z * count.deviation, 1.0), share * weight)
        for count, share in zip(counts, shares, strict=True)
        if share > 0
        for z, weight in zip([*_DEVIATIONS, _FARTHEST], [*weights, 0.0], strict=True)
    )
    texts_N, rows_N, weight_N = (np.array(column) for column in zip(*points, strict=True))
    bucket_N = np.ceil(rows_N / multiple) * multiple
    until_N = np.concatenate([[0.0], np.cumsum(weight_N)])
    # [i, j]: rows of a bucket that holds the points i to j, times their weight.
    cost_NN = bucket_N[None, :] * (until_N[None, 1:] - until_N[:-1, None])
    cost_NN[texts_N[:, None] != texts_N[None, :]] = np.inf
    cost_NN[np.tril_indices(len(points), -1)] = np.inf
    best_N, chosen = cost_NN[0], [np.zeros(len(points), int)]
    kinds = len(set(texts_N.tolist()))
    needed = float(weight_N @ rows_N)
    while len(chosen) < kinds or (
        len(chosen) < MOST_PROGRAMS and needed / best_N[-1] < 1 - _GOOD_PADDING
    ):
        with_one_more_NN = np.concatenate([[np.inf], best_N[:-1]])[:, None] + cost_NN
        chosen.append(with_one_more_NN.argmin(0))
        best_N = with_one_more_NN.min(0)
    rows: dict[int, list[int]] = {}
    last = len(points) - 1
    for first_N in reversed(chosen):
        if last < 0:
            break
        rows.setdefault(int(texts_N[last]), []).append(int(bucket_N[last]))
        last = int(first_N[last]) - 1
    found = {texts: tuple(sorted(set(of_texts))) for texts, of_texts in sorted(rows.items())}
    return Buckets(found, float(1 - needed / best_N[-1]))
