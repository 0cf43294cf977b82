"""When a run says that something goes wrong, and what it bears before it ends itself."""

from dataclasses import dataclass
from typing import Annotated

from annotated_types import Ge, Le

from jina_jax.config.fields import (
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    changeable,
)


@dataclass(frozen=True)
class FaultConfig:
    """Limits of training. A run that exceeds one ends with an exit code of its own; none of them
    changes a result.
    """

    batch_timeout_s: NonNegativeFloat = changeable(300.0)
    """The run ends, and tells where it stands, when a batch takes longer to come; 0 waits for ever.
    The first may take four times as long."""
    step_timeout_s: NonNegativeFloat = changeable(1800.0)
    """The run ends, and tells where it stands, when a step takes longer; 0 waits for ever.
    Compiling, evaluating and waiting for a save may take four times as long."""
    heartbeat_s: PositiveFloat = changeable(60.0)
    """With several processes the others end when one gives no sign of life for so long. So does
    another host's right to train in the run folder."""
    max_skipped_steps: PositiveInt = changeable(10)
    """A step whose loss or gradient is not finite changes nothing; so many in a row end the run,
    once the step after them has begun. skipped.jsonl in the run folder names their records."""
    save_retry_s: NonNegativeFloat = changeable(30.0)
    """Pause after a save that failed; the fifth failure in a row ends the run."""


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
    """Lines before this step are not judged, nor those of the warm-up."""
    alike: Annotated[float, Ge(-1), Le(1)] = changeable(0.95)
    """Sign: queries and the positives of others have a mean cosine above this."""
    min_gap: NonNegativeFloat = changeable(0.02)
    """Sign, judged where that is none: the mean cosine with the own positive is not this much
    higher."""
    guesses: NonNegativeFloat = changeable(2.0)
    """Sign: accuracy is at most the chance of finding the positive of a batch in so many guesses,
    1 - (1 - 1 / feed.global_batch_size) ** guesses."""
