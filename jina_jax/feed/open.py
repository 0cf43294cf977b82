"""From a run's configuration and its prepared folder to its batches."""

from collections.abc import Iterator
from typing import NamedTuple

from jina_jax.config import RunConfig
from jina_jax.feed.batch import Batch
from jina_jax.feed.mixture import Mixture, plan_mixture
from jina_jax.feed.pipeline import batches
from jina_jax.shards.array_record import ShardSet
from jina_jax.shards.manifest import Manifest


class RunFeed(NamedTuple):
    """What a run is fed."""

    sources: dict[str, ShardSet]
    """In the order of the manifest, which `Batch.source` counts in."""
    records: dict[str, int]
    mixture: Mixture
    batches: Iterator[Batch]


def feed_of_run(config: RunConfig, manifest: Manifest, start: int = 0) -> RunFeed:
    """Opens the shards of `config.data_path` and plans the batches from step `start` on.

    Raises: UserError when a source is too small, or the mixture cannot be had.
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
    drawn = batches(sources, mixture, config.feed, seed=config.train.seed, start=start)
    return RunFeed(sources, records, mixture, drawn)
