"""Values of hard-negative mining; part of `RunConfig`. None of them changes a training run."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from jina_jax.config.fields import NonNegativeInt, PositiveInt, changeable


@dataclass(frozen=True)
class MineConfig:
    """Hard negatives from a trained run: passages near a query that are none of its positives.

    A passage that scores nearly as high as the positive is often a second right answer. So is what
    is nearest of all, which `first_rank` passes over. Both rules follow Moreira et al. 2024
    (arXiv 2407.15831), whose best one is a relative margin of 0.05.
    """

    sources: tuple[str, ...] = changeable(())
    """Names of the sources of pairs to mine; empty takes all of them."""
    max_queries: NonNegativeInt = changeable(0)
    """Most queries of a source that are searched for, those with the lowest hashes; 0 takes all.
    Among all passages of the source in either case."""
    negatives_per_pair: PositiveInt = changeable(1)
    """Most triplets made of a pair: its nearest passages that every rule keeps."""
    first_rank: PositiveInt = changeable(1)
    """Nearest passage that is taken: 1 is the nearest that is no positive of the query."""
    last_rank: int = changeable(50)
    """Farthest passage that is looked at."""
    margin: float = changeable(0.05)
    """A passage is kept only with s(q, n) ≤ s(q, p) - margin, or, when relative, with
    s(q, n) ≤ s(q, p) - margin·|s(q, p)|: what scores higher may be a second positive."""
    margin_kind: Literal["relative", "absolute"] = changeable("relative")
    output_dir: str = changeable("")
    """Folder of the triplets; empty means `WORKDIR/mined`."""
    query_block: PositiveInt = changeable(4096)
    """Queries searched at once; a killed run repeats one such block."""
    corpus_block: PositiveInt = changeable(8192)
    """Passages compared at once on each device."""


def mine_problems(mine: MineConfig) -> Iterator[str]:
    """What is wrong with the values, one sentence each."""
    if mine.last_rank < mine.first_rank:
        yield (
            f"mine.last_rank={mine.last_rank} must not be below mine.first_rank={mine.first_rank}"
        )
