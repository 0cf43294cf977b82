"""Grain pipeline from shards to packed batches.

Batch t is a function of (shards, feed config, mixture, seed, t) alone: neither the number of
hosts, devices or workers nor where a run was resumed changes it. So the state of the pipeline is
one number.
"""

import os
import signal
from collections.abc import Iterator, Mapping, Sequence
from functools import partial

import grain
import numpy as np
from absl import flags

from jina_jax.config import FeedConfig
from jina_jax.errors import DataLost, UserError
from jina_jax.feed.batch import Batch, pack_batch
from jina_jax.feed.mixture import Mixture
from jina_jax.feed.shuffle import permute
from jina_jax.shards.array_record import ShardSet
from jina_jax.system.processes import die_with_parent


class _ReadBatch(grain.transforms.Map):
    """Step number → Batch."""

    def __init__(
        self, sources: Sequence[ShardSet], mixture: Mixture, config: FeedConfig, seed: int
    ):
        self._sources = list(sources)
        self._config = config
        self._seed = seed
        self._source_T, self._ordinal_T = mixture.source_T, mixture.ordinal_T

    def map(self, element: int) -> Batch:
        source = int(self._source_T[element])
        shards = self._sources[source]
        size = self._config.global_batch_size
        position_B = int(self._ordinal_T[element]) * size + np.arange(size)
        record_B = np.empty(size, np.int64)
        epoch_B = position_B // len(shards)
        for epoch in np.unique(epoch_B).tolist():
            of_epoch = epoch_B == epoch
            record_B[of_epoch] = permute(
                position_B[of_epoch] % len(shards), len(shards), self._seed, source, epoch
            )
        packed = pack_batch(shards.read(record_B), self._config)
        return Batch(int(element), source, record_B, packed)


def _start_worker(parent: int, *_: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the trainer's to handle.
    # A worker must not outlive a trainer that was killed, holding its memory and its stdout.
    die_with_parent(parent)


def batches(
    sources: Mapping[str, ShardSet],
    mixture: Mixture,
    config: FeedConfig,
    *,
    seed: int,
    start: int = 0,
) -> Iterator[Batch]:
    """The batches of steps start, start + 1, ... to the end of the mixture.

    Args:
      sources: name → shards of pairs or of triplets; each batch comes from one source.
      mixture: which source each batch of the run comes from, numbered in the order of `sources`.
      config: batch size, lengths, packing, workers.
      seed: of the order of rows.
      start: first step wanted; resuming is starting here.
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
        _ReadBatch(list(sources.values()), mixture, config, seed)
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
        worker_init_fn=partial(_start_worker, os.getpid()),
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
