"""Which source batch t comes from: a fixed interleave that follows the sources' shares."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from jina_jax.config import MixtureConfig, SourceConfig
from jina_jax.errors import UserError

Stages = Sequence[tuple[int, np.ndarray]]
"""(first step, weights of the N sources) by ascending step, the first of step 0."""


@dataclass(frozen=True)
class Mixture:
    """The source of every batch of a run, and the shares that were asked for.

    Shares are constant on pieces of the run; `asked` is their integral.
    """

    source_T: np.ndarray
    """int32: index of the source of batch t."""
    ordinal_T: np.ndarray
    """int32: how many batches of that source came before."""
    start_K: np.ndarray
    """float64: where piece k begins, in batches; 0 first."""
    share_KN: np.ndarray
    """float64: share of each source in it."""
    asked_KN: np.ndarray
    """float64: batches asked of each source before it."""

    def drawn(self, batches: int) -> np.ndarray:
        """int64 [N]: how many of the first batches come from each source."""
        return np.bincount(self.source_T[:batches], minlength=self.share_KN.shape[1])

    def asked(self, batches: int) -> np.ndarray:
        """float64 [N]: how many of them should, by the shares; the sum is `batches`."""
        piece = int(np.searchsorted(self.start_K, batches, side="right")) - 1
        return self.asked_KN[piece] + (batches - self.start_K[piece]) * self.share_KN[piece]


def plan_mixture(
    sources: Sequence[SourceConfig],
    records: Mapping[str, int],
    config: MixtureConfig,
    *,
    batch_size: int,
    num_steps: int,
) -> Mixture:
    """The mixture of a run.

    Args:
      sources: how much is asked of each, by name.
      records: name of each source → its training records. Sources are numbered in this order.
      config: temperature and stages.
      batch_size: records in a batch.
      num_steps: batches of the run.
    Raises: UserError where the sources' epochs do not last for the run, or the records are those of
      other sources.
    """
    by_name = {source.name: source for source in sources}
    staged = [name for stage in config.stages for name, _ in stage.weights]
    if records.keys() - by_name.keys() or set(staged) - records.keys():
        raise UserError(
            f"the prepared data hold the sources {', '.join(records)} and the configuration "
            f"{', '.join(by_name)}: prepare again"
        )
    size_N = np.array(list(records.values()))
    weight_N = own_weights([by_name[name].weight for name in records], size_N, config)
    stages: list[tuple[int, np.ndarray]] = [(0, weight_N)]
    names = list(records)
    for stage in config.stages:
        weight_N = stages[-1][1].copy()
        for name, weight in stage.weights:
            weight_N[names.index(name)] = weight
        stages.append((stage.from_step, weight_N))
    epochs = [by_name[name].max_epochs for name in records]
    limit_N = np.array([
        math.inf if n is None else int(n * size) // batch_size
        for n, size in zip(epochs, size_N.tolist(), strict=True)
    ])  # fmt: skip
    for name, limit, size in zip(names, limit_N, size_N, strict=True):
        if limit == 0:
            raise UserError(
                f"source {name!r}: max_epochs={by_name[name].max_epochs} of {size} records is less "
                f"than one batch of {batch_size}; raise it or leave the source out"
            )
    mixture = interleave(stages, num_steps, limit_N=limit_N, linear=config.change == "linear")
    lasts = len(mixture.source_T)
    if lasts < num_steps:
        spent = [
            n for n, left in zip(names, mixture.drawn(lasts) < limit_N, strict=True) if not left
        ]
        raise UserError(
            f"the mixture lasts for {lasts} batches, fewer than train.num_steps={num_steps}: "
            f"{', '.join(spent)} had max_epochs and no other source has a weight then; raise "
            f"max_epochs, add sources, or lower train.num_steps"
        )
    return mixture


def own_weights(
    weights: Sequence[float | None], records_N: np.ndarray, config: MixtureConfig
) -> np.ndarray:
    """The weights at the beginning of a run.

    Args:
      weights: of each source; None where it has none of its own.
      records_N: training records of each.
      config: for the sources without, in proportion to min(records, size_limit) ** (1 /
        temperature), with a mean of 1; just 1 without a temperature.
    Returns: float64 [N].
    Example: 100 and 400 records at temperature 2 give 2/3 and 4/3.
    """
    is_open_N = np.array([weight is None for weight in weights])
    weight_N = np.array([1.0 if weight is None else weight for weight in weights])
    if config.temperature is not None and is_open_N.any():
        size_N = records_N[is_open_N].astype(np.float64)
        if config.size_limit is not None:
            size_N = np.minimum(size_N, config.size_limit)
        # Relative to the largest, so that no power overflows.
        by_size_N = (size_N / size_N.max()) ** (1 / config.temperature)
        weight_N[is_open_N] = by_size_N / by_size_N.mean()
    return weight_N


def interleave(
    stages: Stages, num_batches: int, *, limit_N: np.ndarray | None = None, linear: bool = False
) -> Mixture:
    """Spreads the sources evenly over the batches.

    Where W(t) is the integral of a source's share over the first t batches, its batch j is due at
    the t of W(t) = j + 1/2; the batches run in the order in which they are due. A longer run begins
    with the same batches as a shorter one. After any t batches a source has had W(t) of them, give
    or take 1/2 + w (N - 2) / 2, for N sources and w its mean share about there: when the next
    batch is due at T, every source is within 1/2 of W(T), so that t is within N / 2 of T.

    Args:
      stages: shares are the weights over their sum.
      num_batches: length of the run.
      limit_N: most batches of each source, 1 or more, or infinity. When W(t) gets there the share
        becomes 0, and those of the others grow in proportion.
      linear: shares go on straight lines from a stage to the next, in stairs so short that W(t)
        is within 1/8 of the lines'; else they stay until the next.
    Returns: a Mixture of num_batches batches, of fewer where the limits leave no source.
    Example: weights (2, 1) give sources 0, 1, 0, 0, 1, 0, ...
    """
    sources = len(stages[0][1])
    limit_N = np.full(sources, math.inf) if limit_N is None else limit_N
    # Batches due within N / 2 of the end may be among the last.
    pieces = _pieces(stages, float(num_batches + sources + 1), linear)
    start_K, share_KN, asked_KN = _limited(pieces, limit_N)
    due, source, ordinal = [], [], []
    for s in range(sources):
        target = np.arange(math.ceil(asked_KN[-1, s]), dtype=np.int32) + 0.5
        target = target[target <= asked_KN[-1, s]]
        piece = np.searchsorted(asked_KN[:, s], target) - 1
        due.append(start_K[piece] + (target - asked_KN[piece, s]) / share_KN[piece, s])
        source.append(np.full(len(target), s, np.int32))
        ordinal.append(np.arange(len(target), dtype=np.int32))
    source_T = np.concatenate(source)
    order = np.lexsort((source_T, np.concatenate(due)))[:num_batches]
    return Mixture(
        source_T[order], np.concatenate(ordinal)[order], start_K[:-1], share_KN, asked_KN[:-1]
    )


def _pieces(stages: Stages, end: float, linear: bool) -> Iterator[tuple[float, np.ndarray]]:
    """Yields (where a piece ends, weights in it), from 0 to `end` or beyond."""
    for (start, weight_N), (stop, next_N) in pairwise(stages):
        stairs = math.ceil(math.sqrt(stop - start)) if linear else 1
        # Straight lines are those of shares, which sum up to 1 all along.
        share_N, next_N = weight_N / weight_N.sum(), next_N / next_N.sum()
        for i in range(stairs):
            if start + (stop - start) * i / stairs >= end:
                return
            middle = (i + 0.5) / stairs
            yield (
                start + (stop - start) * (i + 1) / stairs,
                share_N + middle * (next_N - share_N) if linear else weight_N,
            )
    yield end, stages[-1][1]


def _limited(
    pieces: Iterator[tuple[float, np.ndarray]], limit_N: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Takes each source's share away where its limit is reached.

    Returns: (start_K + end, share_KN, asked_KN + at the end): K pieces, and where the last ends.
    """
    time, asked_N = 0.0, np.zeros(len(limit_N))
    starts, asked = [time], [asked_N]
    shares: list[np.ndarray] = []
    for stop, weight_N in pieces:
        while time < stop:
            is_open_N = (asked_N < limit_N) & (weight_N > 0)
            if not is_open_N.any():
                return np.array(starts), np.array(shares), np.array(asked)
            share_N = np.where(is_open_N, weight_N, 0.0)
            share_N /= share_N.sum()
            lasts_N = np.full(len(limit_N), math.inf)
            lasts_N[is_open_N] = (limit_N - asked_N)[is_open_N] / share_N[is_open_N]
            first = int(np.argmin(lasts_N))
            asked_N = asked_N + min(stop - time, lasts_N[first]) * share_N
            if lasts_N[first] <= stop - time:
                time += lasts_N[first]
                asked_N[first] = limit_N[first]
            else:
                time = stop
            starts.append(time)
            shares.append(share_N)
            asked.append(asked_N)
    return np.array(starts), np.array(shares), np.array(asked)
