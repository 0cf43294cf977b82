"""Training of adapters in place of the whole model; part of `RunConfig`."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Annotated

from annotated_types import Ge, Le

from jina_jax.config.fields import PositiveFloat


@dataclass(frozen=True)
class LoraConfig:
    """Low-rank adapters (LoRA): a frozen matrix W [in, out] becomes W + scale · A B, where
    A [in, rank] and B [rank, out] are trained. Besides them a Dense layer and a learned temperature
    train, and nothing else: the rest has neither gradients nor moments.

    Where the run is used as a model, and in its export, the products are added to their matrices.

    Source: Hu et al. 2021 (arXiv 2106.09685), section 4.
    """

    rank: Annotated[int, Ge(0), Le(4096)] = 0
    """Of A and B; 0 trains the whole model."""
    alpha: PositiveFloat = 16.0
    """The scale is alpha / rank."""
    targets: tuple[str, ...] = ()
    """Matrices of a layer that have an adapter: q, k, v, o of the attention, and wi, wo (Qwen3 and
    ModernBERT wg too; a gated T5 wi_0, wi_1, wo) of the feed-forward. Empty takes them all, as
    Dettmers et al. 2023 (arXiv 2305.14314), section 4, found best."""
    rank_stabilised: bool = False
    """The scale is alpha / sqrt(rank), so that a large rank learns as fast as a small one
    (Kalajdzievski 2023, arXiv 2312.03732)."""

    @property
    def scale(self) -> float:
        """Of the products A B."""
        return self.alpha / (math.sqrt(self.rank) if self.rank_stabilised else self.rank)


def lora_problems(lora: LoraConfig, matrices: Sequence[str], initial_weights: str) -> Iterator[str]:
    """What is wrong with the values, one sentence each.

    Args:
      lora: of the run.
      matrices: names of those of a layer of the model.
      initial_weights: that the run starts from; empty where they are drawn.
    """
    if not lora.rank:
        for field in fields(lora):
            if getattr(lora, field.name) != field.default:
                yield (
                    f"lora.{field.name}={getattr(lora, field.name)} and lora.rank=0, which trains "
                    f"the whole model: give a rank, such as 16, or leave lora.{field.name} out"
                )
        return
    for name in lora.targets:
        if name not in matrices:
            yield (
                f"lora.targets: a layer of this model has no matrix {name!r}; it has "
                f"{', '.join(matrices)}"
            )
    if len(set(lora.targets)) < len(lora.targets):
        yield f"lora.targets gives a name twice: {', '.join(lora.targets)}"
    if not initial_weights:
        yield (
            f"lora.rank={lora.rank} would freeze weights that are random: name the model to start "
            f"from, as model='ID or folder' or train.initial_weights"
        )
