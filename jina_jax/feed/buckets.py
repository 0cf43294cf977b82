"""How many rows the batches of each source have: few numbers, so that few programs are compiled."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from jina_jax.config import FeedConfig
from jina_jax.feed.batch import RecordKind, record_kind
from jina_jax.feed.order import strata, window_records
from jina_jax.feed.packing import cut_lengths, mix, place
from jina_jax.shards.array_record import TokenisedRecords

MOST_PROGRAMS = 6
"""Of a run: one for each number of rows and kind of records."""
_GOOD_PADDING = 0.04
"""Share of empty rows below which no further program is worth its compilation."""
_DEVIATIONS = 2.5
"""Above the mean, that a group's rows are planned for: of one in a hundred the longest texts are
cut by some tokens."""
_TRIED_WINDOWS, _TRIED_GROUPS, _TRIED_PAIRS = 16, 2, 1 << 16
"""As many windows, and groups of each, tell what a group needs, and no more pairs."""
_TRIED_BATCHES = 64
"""That a window lasts for, at most: a longer one is as good as the source."""


class Buckets(NamedTuple):
    """What is planned for a run."""

    rows_S: tuple[int, ...]
    """Rows of a batch of each source; 0 for one that isn't drawn."""
    kinds_S: tuple[RecordKind, ...]
    """Of each source's records."""
    empty_share: float
    """Of all rows, expected."""

    @property
    def rows(self) -> dict[RecordKind, tuple[int, ...]]:
        """Kind of records → the numbers of rows that batches of such have, ascending."""
        pairs = sorted({(k, r) for k, r in zip(self.kinds_S, self.rows_S, strict=True) if r})
        kinds = dict.fromkeys(kind for kind, _ in pairs)
        return {kind: tuple(rows for of, rows in pairs if of == kind) for kind in kinds}

    def __str__(self) -> str:
        programs = [f"{rows:,}" for of_kind in self.rows.values() for rows in of_kind]
        return (
            f"batches of {', '.join(programs)} rows, each a program; about "
            f"{100 * self.empty_share:.1f}% of the rows stay empty"
        )


class RowCount(NamedTuple):
    """Rows that batches of a source need, all groups together."""

    kind: RecordKind
    """Of its records."""
    mean: float
    most: int
    """Of nearly all batches."""


def count_rows(sample: TokenisedRecords, config: FeedConfig) -> RowCount:
    """Rows of a batch, from a sample of the records that batches are drawn from.

    Args:
      sample: any number of records.
      config: batch size, groups, limits and packing.
    """
    lengths_NS = cut_lengths(sample.lengths_NS, config)
    groups = config.num_groups
    pairs = config.global_batch_size // groups
    window = min(window_records(groups, pairs, config.mixed_records), pairs * _TRIED_BATCHES)
    tried = []
    for number in range(max(1, min(_TRIED_WINDOWS, _TRIED_PAIRS // (_TRIED_GROUPS * pairs)))):
        # Drawn from the sample and dealt, as windows are from the source.
        drawn_M, number_M = (
            mix(np.arange(1, window + 1, dtype=np.uint64) + np.uint64((2 * number + n) << 40))
            for n in (0, 1)
        )
        window_MS = lengths_NS[(drawn_M % np.uint64(len(lengths_NS))).astype(np.int64)]
        dealt_M = strata(window_MS.sum(1), pairs, number_M)
        tried += list(window_MS[dealt_M].reshape(-1, pairs, window_MS.shape[1])[:_TRIED_GROUPS])
    rows_G = np.array([
        place(
            length_NS[length_NS > 0], row_tokens=config.row_tokens,
            texts_per_row=config.texts_per_row,
        ).num_rows
        for length_NS in tried
    ])  # fmt: skip
    kind = record_kind(sample)
    most = max(
        math.ceil(rows_G.mean() + _DEVIATIONS * rows_G.std()),
        # However short all texts are cut, these rows hold them.
        -(-pairs * kind.texts // config.texts_per_row),
    )
    return RowCount(kind, float(rows_G.mean()) * groups, most * groups)


def plan_buckets(counts: Sequence[RowCount], shares: Sequence[float], multiple: int) -> Buckets:
    """The numbers of rows with the fewest empty ones, `MOST_PROGRAMS` of them at most.

    Fewer numbers are taken where they leave no more than 4% of the rows empty, and one for each
    kind of records at least.

    Args:
      counts: of each source.
      shares: of the batches that come from it.
      multiple: that each number must be of.
    """
    kinds = sorted({count.kind for count in counts})
    points = sorted(
        (kinds.index(count.kind), count.most, source)
        for source, count in enumerate(counts)
        if shares[source] > 0
    )
    kind_N, rows_N, source_N = (np.array(column) for column in zip(*points, strict=True))
    weight_N = np.array(shares)[source_N]
    bucket_N = -(-rows_N // multiple) * multiple
    until_N = np.concatenate([[0.0], np.cumsum(weight_N)])
    # [i, j]: rows of a bucket that holds the points i to j, times their weight.
    cost_NN = bucket_N[None, :] * (until_N[None, 1:] - until_N[:-1, None])
    cost_NN[kind_N[:, None] != kind_N[None, :]] = np.inf
    cost_NN[np.tril_indices(len(points), -1)] = np.inf
    best_N, chosen = cost_NN[0], [np.zeros(len(points), int)]
    drawn_kinds = len(set(kind_N.tolist()))
    needed = float(weight_N @ rows_N)
    while len(chosen) < drawn_kinds or (
        len(chosen) < min(MOST_PROGRAMS, len(points)) and needed / best_N[-1] < 1 - _GOOD_PADDING
    ):
        with_one_more_NN = np.concatenate([[np.inf], best_N[:-1]])[:, None] + cost_NN
        chosen.append(with_one_more_NN.argmin(0))
        best_N = with_one_more_NN.min(0)
    rows_S, last = [0] * len(counts), len(points) - 1
    for first_N in reversed(chosen):
        if last < 0:
            break
        first = int(first_N[last])
        for source in source_N[first : last + 1]:
            rows_S[source] = int(bucket_N[last])
        last = first - 1
    mean = sum(share * count.mean for share, count in zip(shares, counts, strict=True))
    return Buckets(
        tuple(rows_S), tuple(count.kind for count in counts), float(1 - mean / best_N[-1])
    )
