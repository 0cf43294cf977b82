"""Grain pipeline from shards to packed batches.

Group g of batch t is a function of (shards, feed config, mixture, seed, t, g) alone: neither the
number of hosts, devices or workers nor where a run was resumed changes it, and each process makes
only its own groups. So the state of the pipeline is one number.
"""

import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple, TypeVar

import grain
import numpy as np
from absl import flags

from jina_jax.config import FeedConfig, RunConfig
from jina_jax.errors import DataLost, UserError
from jina_jax.feed.batch import TEXTS_ALONE, Batch, BatchFields, PackedBatch, pack_batch
from jina_jax.feed.buckets import Buckets, count_rows, plan_buckets
from jina_jax.feed.mixture import Mixture, plan_mixture
from jina_jax.feed.order import Order
from jina_jax.feed.packing import cut_lengths
from jina_jax.feed.windows import Dealt, Windows, read_window
from jina_jax.shards.array_record import TokenisedRecords
from jina_jax.shards.manifest import Manifest
from jina_jax.shards.remote import open_shards
from jina_jax.shards.shard_set import ShardSet
from jina_jax.system.processes import begin_worker

T = TypeVar("T")

_SAMPLE_RUNS, _SAMPLE_RUN = 8, 1024
"""Records of a source that tell how many rows its batches need: runs of them, evenly spaced."""
_SAMPLERS = 32
"""Runs that are sampled at once, which is waiting where they are in a bucket."""
_AHEAD = 8
"""Batches before it is wanted, a window is asked for."""


@dataclass(frozen=True)
class Feed:
    """What the batches of a run are drawn from, and how."""

    sources: Mapping[str, ShardSet]
    """Name → shards of pairs or of triplets, in the order that the mixture numbers them in; each
    batch comes from one."""
    mixture: Mixture
    """Which source each batch of the run comes from."""
    config: FeedConfig
    seed: int
    """Of the order of records."""
    rows: Sequence[int] = ()
    """Of a batch of each source; none given, as many as the largest group needs."""
    unpooled: Sequence[tuple[int, int]] | None = None
    """Of each source, as for `pack_batch`."""
    fields: BatchFields = TEXTS_ALONE
    """That every batch of the run has."""
    in_batch: Sequence[bool] | None = None
    """Of each source, as for `pack_batch`; None where they all have in-batch negatives."""

    def order(self, source: int) -> Order:
        """Of a source's records."""
        groups = self.config.num_groups
        return Order(
            len(list(self.sources.values())[source]), groups,
            self.config.global_batch_size // groups, self.config.mixed_records, self.seed, source,
        )  # fmt: skip

    def windows(self) -> Windows:
        """The windows of a process that makes batches."""
        from_store = any(shards.is_in_store for shards in self.sources.values())
        return Windows(self._window, from_store=from_store)

    def _window(self, source: int, group: int, epoch: int, window: int) -> Dealt:
        shards = list(self.sources.values())[source]
        return read_window(shards, self.order(source), group, epoch, window, self.config)

    def read_ahead(self, windows: Windows, step: int, groups: Sequence[int]) -> None:
        """Asks for the windows of the batches behind a step, where that was not done before."""
        for coming in windows.coming(step, min(step + _AHEAD + 1, len(self.mixture.source_T))):
            self._pieces(coming, groups, windows.ask)

    def records(self, windows: Windows, step: int, groups: Sequence[int]) -> Dealt:
        """The records of some groups of a batch."""
        pieces = self._pieces(step, groups, windows.take)
        return Dealt.joined([part for of_group in pieces for part in of_group])

    def _pieces(
        self, step: int, groups: Sequence[int], use: Callable[..., list[T]]
    ) -> list[list[T]]:
        source, ordinal = (int(x[step]) for x in (self.mixture.source_T, self.mixture.ordinal_T))
        order = self.order(source)
        return [use(source, group, order.pieces(group, ordinal)) for group in groups]

    def packed(self, dealt: Dealt, step: int, groups: int) -> tuple[PackedBatch, int]:
        """The groups' texts in their rows, and the tokens that were cut for want of these."""
        source = int(self.mixture.source_T[step])
        batch = pack_batch(
            dealt.records, self.config, None if self.unpooled is None else self.unpooled[source],
            groups=groups, rows=self.rows[source] // self.config.num_groups if self.rows else 0,
            fields=self.fields, in_batch=self.in_batch is None or self.in_batch[source],
        )  # fmt: skip
        wanted = int(cut_lengths(dealt.records.lengths_NS, self.config).sum())
        return batch, wanted - int(np.count_nonzero(batch.segments_RL))


@dataclass(frozen=True)
class _ReadGroups(grain.transforms.Map):
    """Number of an element → some groups of a batch: all of this process's, or a worker's part."""

    feed: Feed
    windows: Windows
    groups: Sequence[Sequence[int]]
    """Of each part."""
    start: int

    def map(self, element: int) -> Batch:
        step, part = divmod(int(element), len(self.groups))
        step, groups = step + self.start, self.groups[part]
        self.feed.read_ahead(self.windows, step, groups)
        dealt = self.feed.records(self.windows, step, groups)
        packed, cut = self.feed.packed(dealt, step, len(groups))
        parts = self.feed.config.num_groups / len(groups)
        source = int(self.feed.mixture.source_T[step])
        return Batch(step, source, dealt.number_N, packed, parts, cut)


def batches(feed: Feed, *, start: int = 0, groups: Sequence[int] | None = None) -> Iterator[Batch]:
    """The batches of steps start, start + 1, ... to the end of the mixture.

    Args:
      feed: of the run.
      start: first step wanted; resuming is starting here.
      groups: of each batch, that this process makes, ascending; None for all.
    Raises: UserError when a source that is drawn has fewer records than a batch; DataLost, from the
      iterator, when a worker was killed.
    """
    config, mixture = feed.config, feed.mixture
    drawn = set(np.unique(mixture.source_T).tolist())
    for number, (name, shards) in enumerate(feed.sources.items()):
        if number in drawn and len(shards) < config.global_batch_size:
            raise UserError(
                f"source {name!r} has {len(shards)} training records, fewer than "
                f"feed.global_batch_size={config.global_batch_size}; lower the batch size or "
                f"leave the source out"
            )
    own = list(range(config.num_groups)) if groups is None else list(groups)
    # Each worker has groups of its own, where there are as many, and reads nothing else.
    parts = config.workers if 1 < config.workers <= len(own) else 1
    of_parts = [own[p * len(own) // parts : (p + 1) * len(own) // parts] for p in range(parts)]
    windows = feed.windows()
    elements = (len(mixture.source_T) - start) * parts
    dataset = grain.MapDataset.range(elements).map(_ReadGroups(feed, windows, of_parts, start))
    if config.workers == 0:
        # Several threads would pack no more, and wait for each other.
        read = grain.ReadOptions(num_threads=1, prefetch_buffer_size=config.prefetch_batches)
        return iter(dataset.to_iter_dataset(read))
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()  # Grain's workers read absl flags
    from_workers = dataset.to_iter_dataset(
        grain.ReadOptions(num_threads=1, prefetch_buffer_size=1)
    ).mp_prefetch(
        grain.MultiprocessingOptions(
            num_workers=config.workers, per_worker_buffer_size=config.prefetch_batches
        ),
        worker_init_fn=partial(begin_worker, os.getpid()),
    )
    return _joined(_or_lost(iter(from_workers)), parts)


def _joined(parts_of_batches: Iterator[Batch], parts: int) -> Iterator[Batch]:
    """Puts the parts of each batch side by side."""
    for of_batch in zip(*[parts_of_batches] * parts, strict=True):
        first = of_batch[0]
        arrays = [
            None if columns[0] is None
            else columns[0] if columns[0].ndim == 0
            else np.concatenate(columns)
            for columns in zip(*(part.arrays for part in of_batch), strict=True)
        ]  # fmt: skip
        yield Batch(
            first.step, first.source, np.concatenate([part.record_B for part in of_batch]),
            PackedBatch(*arrays), 1 / sum(1 / part.parts for part in of_batch),
            sum(part.cut_tokens for part in of_batch),
        )  # fmt: skip


def _or_lost(from_workers: Iterator[Batch]) -> Iterator[Batch]:
    try:
        yield from from_workers
    except RuntimeError as error:
        if "Worker process was terminated" not in str(error):
            raise
        raise DataLost(
            f"a data worker was killed, perhaps for want of memory ({error}). The same command "
            f"goes on from the newest checkpoint; lower feed.workers or feed.prefetch_batches if "
            f"it recurs"
        ) from error


class RunFeed(NamedTuple):
    """Data of a run."""

    feed: Feed
    records: dict[str, int]
    """Of each source."""
    buckets: Buckets
    batches: Iterator[Batch]

    def records_of(self, step: int) -> Dealt:
        """The records of all groups of a batch, in their order."""
        every = range(self.feed.config.num_groups)
        return self.feed.records(self.feed.windows(), step, every)


def feed_of_run(
    config: RunConfig, manifest: Manifest, start: int = 0, groups: Sequence[int] | None = None
) -> RunFeed:
    """Opens the shards of a run and plans the batches from step `start` on.

    Args:
      config: of the run.
      manifest: of its data.
      start: first step.
      groups: as for `batches`.
    Raises: UserError when a source is too small, or the mixture cannot be planned.
    """
    sources = open_shards(config, manifest)
    records = {name: len(shards) for name, shards in sources.items()}
    mixture = plan_mixture(
        config.data.sources, records, config.mixture,
        batch_size=config.feed.global_batch_size, num_steps=config.train.num_steps,
    )  # fmt: skip
    unpooled = [s.prompt_tokens for s in manifest.sources] if config.pooling.skips_prompt else None
    samples = samples_of(sources)
    buckets = plan_rows(samples, mixture, config.feed)
    in_batch_of = {source.name: source.in_batch for source in config.data.sources}
    in_batch = [in_batch_of[name] for name in sources]
    fields = BatchFields(
        labels=any(sample.labels_N is not None for sample in samples),
        own_only=not all(in_batch),
        guide_dims=_guide_dims(samples) if config.loss.wants_guide else 0,
    )
    feed = Feed(
        sources, mixture, config.feed, config.train.seed, buckets.rows_S, unpooled, fields, in_batch
    )
    return RunFeed(feed, records, buckets, batches(feed, start=start, groups=groups))


def plan_rows(samples: Sequence[TokenisedRecords], mixture: Mixture, config: FeedConfig) -> Buckets:
    """Rows of the batches of each source of a mixture, from some of its records."""
    counts = [count_rows(sample, config) for sample in samples]
    shares = mixture.drawn(len(mixture.source_T)) / len(mixture.source_T)
    return plan_buckets(counts, shares.tolist(), math.lcm(config.rows_multiple, config.num_groups))


def _guide_dims(samples: Sequence[TokenisedRecords]) -> int:
    """Of the guide that embedded the texts of all sources; 0 where there was none."""
    dims = {0 if s.guide_NSG is None else s.guide_NSG.shape[2] for s in samples}
    assert len(dims) <= 1, f"guides of {dims} dimensions in one prepared folder"
    return max(dims, default=0)


def samples_of(sources: Mapping[str, ShardSet]) -> list[TokenisedRecords]:
    """Some records from all over each source."""
    with ThreadPoolExecutor(_SAMPLERS) as threads:
        runs = [
            [threads.submit(shards.read_run, *run) for run in _sampled(len(shards))]
            for shards in sources.values()
        ]
        return [TokenisedRecords.joined([run.result() for run in of_source]) for of_source in runs]


def _sampled(records: int) -> list[tuple[int, int]]:
    """[first, end) of runs of a source's records, evenly spaced."""
    size = min(_SAMPLE_RUN, -(-records // _SAMPLE_RUNS))
    firsts = {n * (records - size) // max(_SAMPLE_RUNS - 1, 1) for n in range(_SAMPLE_RUNS)}
    return [(first, first + size) for first in sorted(firsts)]
