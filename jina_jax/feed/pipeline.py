"""Grain pipeline from shards to packed batches.

Batch t is a function of (shards, feed config, mixture, seed, t) alone: neither the number of
hosts, devices or workers nor where a run was resumed changes it. So the state of the pipeline is
one number.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import NamedTuple

import grain
import numpy as np
from absl import flags

from jina_jax.config import FeedConfig, RunConfig
from jina_jax.errors import DataLost, UserError
from jina_jax.feed.batch import Batch, pack_batch
from jina_jax.feed.buckets import Buckets, count_rows, plan_buckets
from jina_jax.feed.mixture import Mixture, plan_mixture
from jina_jax.feed.packing import mix
from jina_jax.shards.array_record import ShardSet, TokenisedRecords
from jina_jax.shards.manifest import Manifest
from jina_jax.system.processes import begin_worker

_ROUNDS = 6
_SAMPLE = 2048
"""Records of a source that tell how many rows its batches need."""


def permute(index_N: np.ndarray, size: int, *seeds: int) -> np.ndarray:
    """Maps positions to rows by a pseudo-random permutation of range(size).

    A Feistel network over the next power of four, walked until the value falls below `size`
    (Black & Rogaway 2002, "Ciphers with arbitrary finite domains").

    Args:
      index_N: integers in [0, size).
      size: rows of the epoch, below 2**62.
      *seeds: any integers; together they choose the permutation.
    Returns: int64 [N], the row at each position.
    """
    assert 0 < size < 2**62
    half_bits = np.uint64(max(1, ((size - 1).bit_length() + 1) // 2))
    half_mask = (np.uint64(1) << half_bits) - np.uint64(1)
    with np.errstate(over="ignore"):
        key = np.zeros(1, np.uint64)
        for seed in seeds:
            key = mix(key + np.uint64(seed % 2**64) + np.uint64(0x9E3779B97F4A7C15))
        value_N = np.asarray(index_N).astype(np.uint64)
        todo_N = np.ones(value_N.shape, bool)
        while todo_N.any():
            left, right = value_N[todo_N] >> half_bits, value_N[todo_N] & half_mask
            for r in range(_ROUNDS):
                round_key = key + np.uint64(r + 1) * np.uint64(0xD1B54A32D192ED03)
                left, right = right, left ^ (mix(right + round_key) & half_mask)
            value_N[todo_N] = (left << half_bits) | right
            todo_N = value_N >= np.uint64(size)
    return value_N.astype(np.int64)


@dataclass(frozen=True)
class _ReadBatch(grain.transforms.Map):
    """Step number → Batch."""

    sources: Sequence[ShardSet]
    mixture: Mixture
    config: FeedConfig
    seed: int
    unpooled: Sequence[tuple[int, int]] | None
    planned_rows: Mapping[int, Sequence[int]]

    def map(self, element: int) -> Batch:
        source = int(self.mixture.source_T[element])
        shards = self.sources[source]
        size = self.config.global_batch_size
        position_B = int(self.mixture.ordinal_T[element]) * size + np.arange(size)
        record_B = np.empty(size, np.int64)
        epoch_B = position_B // len(shards)
        for epoch in np.unique(epoch_B).tolist():
            of_epoch = epoch_B == epoch
            record_B[of_epoch] = permute(
                position_B[of_epoch] % len(shards), len(shards), self.seed, source, epoch
            )
        unpooled = None if self.unpooled is None else self.unpooled[source]
        records = shards.read(record_B)
        planned = self.planned_rows.get(records.lengths_NS.shape[1], ())
        packed = pack_batch(records, self.config, unpooled, planned)
        return Batch(int(element), source, record_B, packed)


def batches(
    sources: Mapping[str, ShardSet],
    mixture: Mixture,
    config: FeedConfig,
    *,
    seed: int,
    start: int = 0,
    unpooled: Sequence[tuple[int, int]] | None = None,
    planned_rows: Mapping[int, Sequence[int]] = MappingProxyType({}),
) -> Iterator[Batch]:
    """The batches of steps start, start + 1, ... to the end of the mixture.

    Args:
      sources: name → shards of pairs or of triplets; each batch comes from one source.
      mixture: which source each batch of the run comes from, numbered in the order of `sources`.
      config: batch size, lengths, packing, workers.
      seed: of the order of rows.
      start: first step wanted; resuming is starting here.
      unpooled: of each source, as for `pack_batch`.
      planned_rows: texts of a record → numbers of rows that a batch may have.
    Raises: UserError when a source has fewer records than a batch; DataLost, from the iterator,
      when a worker was killed.
    """
    for name, shards in sources.items():
        if len(shards) < config.global_batch_size:
            raise UserError(
                f"source {name!r} has {len(shards)} training records, fewer than "
                f"feed.global_batch_size={config.global_batch_size}; lower the batch size or "
                f"leave the source out"
            )
    dataset = grain.MapDataset.range(start, len(mixture.source_T)).map(
        _ReadBatch(list(sources.values()), mixture, config, seed, unpooled, planned_rows)
    )
    if config.workers == 0:
        read = grain.ReadOptions(num_threads=2, prefetch_buffer_size=config.prefetch_batches)
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
    return _or_lost(iter(from_workers))


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

    sources: dict[str, ShardSet]
    """In the order of the manifest, which `Batch.source` counts in."""
    records: dict[str, int]
    mixture: Mixture
    buckets: Buckets
    batches: Iterator[Batch]


def feed_of_run(config: RunConfig, manifest: Manifest, start: int = 0) -> RunFeed:
    """Opens the shards of `config.data_path` and plans the batches from step `start` on.

    Raises: UserError when a source is too small, or the mixture cannot be planned.
    """
    sources = {
        s.name: ShardSet([config.data_path / shard.path for shard in s.shards])
        for s in manifest.sources
    }
    records = {name: len(shards) for name, shards in sources.items()}
    mixture = plan_mixture(
        config.data.sources, records, config.mixture,
        batch_size=config.feed.global_batch_size, num_steps=config.train.num_steps,
    )  # fmt: skip
    unpooled = [s.prompt_tokens for s in manifest.sources] if config.pooling.skips_prompt else None
    counts = [count_rows(_first_records(shards), config.feed) for shards in sources.values()]
    shares = mixture.drawn(len(mixture.source_T)) / len(mixture.source_T)
    buckets = plan_buckets(counts, shares.tolist(), config.feed.rows_multiple)
    drawn = batches(
        sources, mixture, config.feed, seed=config.train.seed, start=start, unpooled=unpooled,
        planned_rows=buckets.rows,
    )  # fmt: skip
    return RunFeed(sources, records, mixture, buckets, drawn)


def _first_records(shards: ShardSet) -> TokenisedRecords:
    """Some records, which preparation has put in random order."""
    return shards.read(np.arange(min(len(shards), _SAMPLE)))
