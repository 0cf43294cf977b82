"""When a run says that it goes wrong."""

from dataclasses import dataclass
from typing import Annotated

from annotated_types import Ge, Le

from jina_jax.config.fields import NonNegativeFloat, NonNegativeInt, changeable


@dataclass(frozen=True)
class AlarmConfig:
    """Signs of collapse, judged for each source by its means since the line logged before.

    An alarm is a line on standard error and an `alarm` in metrics.jsonl, once when it is raised and
    once when it is cleared. It stops nothing. The defaults are ours.
    """

    lines: NonNegativeInt = changeable(5)
    """Logged lines in a row, of those that tell of a source, that must show a sign to raise an
    alarm, and lack it to clear it; 0 raises none."""
    from_step: NonNegativeInt = changeable(100)
    """Lines before this step are not judged, nor those of optim.warmup_steps."""
    alike: Annotated[float, Ge(-1), Le(1)] = changeable(0.95)
    """Sign: queries and the positives of others have a mean cosine above this."""
    min_gap: NonNegativeFloat = changeable(0.02)
    """Sign, judged where that is none: the mean cosine with the own positive is not this much
    higher."""
    guesses: NonNegativeFloat = changeable(2.0)
    """Sign: accuracy is at most the chance of finding the positive of a batch in so many guesses,
    1 - (1 - 1 / feed.global_batch_size) ** guesses."""
