"""Sums up what the tasks did to each source, for the manifest."""

import functools
import operator
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest

import numpy as np

from jina_jax.config import DataConfig
from jina_jax.config.source import prompts_of
from jina_jax.errors import UnusableError
from jina_jax.prepare.dedup import DEDUP_VERSION, DedupResult
from jina_jax.prepare.ingest import CLEAN_VERSION
from jina_jax.prepare.pipeline import Reads
from jina_jax.prepare.split import SPLIT_VERSION, SplitResult
from jina_jax.prepare.stages import StageResult
from jina_jax.prepare.tokenise import EncodedShard
from jina_jax.shards.manifest import (
    InputFile,
    LengthStats,
    SourceSummary,
    StageCounts,
)
from jina_jax.text.identity import NORMALISE_VERSION

VERSIONS = {
    "normalise": NORMALISE_VERSION,
    "clean": CLEAN_VERSION,
    "dedup": DEDUP_VERSION,
    "held_out": SPLIT_VERSION,
}
"""Of everything that decides what is kept, beside the configured filters."""


def eval_path(source: str) -> str:
    """Of a source's held-out records, relative to the prepared folder."""
    return f"eval/{source}.parquet"


@dataclass
class Outcome:
    """What became of the records, stage by stage."""

    reads: Reads
    dedups: list[DedupResult]
    stages: dict[str, list[StageResult]] = field(default_factory=dict)
    """Filter → per partition."""
    taken: Sequence[tuple[int, ...]] = ()
    splits: list[SplitResult] = field(default_factory=list)

    def bad(self, source: int) -> dict[str, int]:
        """Reason → records of a source that could not be read."""
        return _sum(read.bad for read in self.reads.of_source(source))

    def left(self, source: int) -> int:
        """Records of a source that every filter kept."""
        unique = sum(part.unique[source] for part in self.dedups)
        return unique - sum(sum(counts.dropped.values()) for counts in self.stage_counts(source))

    def stage_counts(self, source: int) -> list[StageCounts]:
        """What each filter did to a source."""
        found = []
        for name, parts in self.stages.items():
            mine = [part[source] for part in parts]
            histograms = [part.scores for part in mine if part.scores is not None]
            found.append(
                StageCounts(
                    name,
                    sum(part.records for part in mine),
                    _sum(part.dropped for part in mine),
                    functools.reduce(operator.add, histograms) if histograms else None,
                )
            )
        return found

    def dropped(self, source: int) -> dict[str, int]:
        """Reason → records of a source that were left out."""
        counts = Counter(_sum(read.dropped for read in self.reads.of_source(source)))
        within_a_block = counts.pop("duplicate", 0)
        counts["duplicate"] = within_a_block + sum(p.duplicate[source] for p in self.dedups)
        for stage in self.stage_counts(source):
            counts.update(stage.dropped)
        counts["held_out"] = sum(part.shared[source] for part in self.splits)
        return {reason: count for reason, count in counts.items() if count}

    def check_not_empty(self, name: str, source: int) -> None:
        """Raises UnusableError when nothing of a source is left to train on."""
        if sum(part.train[source] for part in self.splits):
            return
        held = sum(part[source] for part in self.taken)
        lost = {**self.bad(source), **self.dropped(source), "held out for evaluation": held}
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in lost.items() if count)
        read = sum(result.read for result in self.reads.of_source(source))
        raise UnusableError(
            f"source {name!r}: nothing is left to train on of {read:,} records ({reasons}); "
            f"take the source out, give it more text, or lower data.eval_pairs"
        )


def _sum(counts: Iterable[dict[str, int]]) -> dict[str, int]:
    return dict(sum(map(Counter, counts), Counter[str]()))


def summaries(
    config: DataConfig, inputs: Sequence[tuple[InputFile, ...]], outcome: Outcome,
    encoded: Sequence[Sequence[EncodedShard]], prompt_tokens: Sequence[tuple[int, int]],
) -> tuple[SourceSummary, ...]:  # fmt: skip
    """The manifest's entry for each source.

    Args:
      config: the data section.
      inputs: files of each source.
      outcome: of all stages.
      encoded: shards of each source, in order.
      prompt_tokens: of each source, as `Vocabulary` has them.
    """
    found = []
    for index, source in enumerate(config.sources):
        shards = encoded[index]
        held = sum(part[index] for part in outcome.taken)
        lengths = zip(*(shard.lengths for shard in shards), strict=True)
        counts = ([sum(n) for n in zip_longest(*parts, fillvalue=0)] for parts in lengths)
        query, positive, *negative = (length_stats(np.array(count_L)) for count_L in counts)
        found.append(
            SourceSummary(
                name=source.name,
                licence=source.licence,
                record="triplet" if negative else "scored" if source.score_field else "pair",
                inputs=inputs[index],
                read=sum(result.read for result in outcome.reads.of_source(index)),
                bad=outcome.bad(index),
                dropped=outcome.dropped(index),
                stages=tuple(outcome.stage_counts(index)),
                train=sum(part.train[index] for part in outcome.splits),
                eval=held,
                query_tokens=query,
                positive_tokens=positive,
                negative_tokens=negative[0] if negative else None,
                shards=tuple(shard.file for shard in shards),
                eval_path=eval_path(source.name) if held else None,
                has_scores=all(shard.has_scores for shard in shards),
                prompts=prompts_of(source, config.prompts),
                prompt_tokens=prompt_tokens[index],
                has_labels=bool(source.label_field),
            )
        )
    return tuple(found)


def length_stats(count_L: np.ndarray) -> LengthStats:
    """Mean and percentiles of a histogram.

    Args:
      count_L: int64; how many texts have each length 0, 1, 2, ...
    Returns: percentile p is the least length that at least p % of the texts do not exceed.
    """
    total = int(count_L.sum())
    if total == 0:
        return LengthStats(0.0, 0, 0, 0)
    cumulative_L = np.cumsum(count_L)
    p50, p90, p99 = (int(np.argmax(cumulative_L * 100 >= p * total)) for p in (50, 90, 99))
    mean = int((count_L * np.arange(len(count_L))).sum()) / total
    return LengthStats(round(mean, 2), p50, p90, p99)
