"""When a run says that it goes wrong: thresholds, and what may be wrong with them."""

from collections.abc import Iterator
from dataclasses import dataclass

from jina_jax.config.changeable import changeable


@dataclass(frozen=True)
class AlarmConfig:
    """Signs of collapse, judged for each source by its means since the line logged before.

    An alarm is a line on standard error and an `alarm` in metrics.jsonl, once when it is raised and
    once when it is cleared. It stops nothing. The defaults are ours.
    """

    lines: int = changeable(5)
    """Logged lines in a row, of those that tell of a source, that must show a sign to raise an
    alarm, and lack it to clear it; 0 raises none."""
    from_step: int = changeable(100)
    """Lines before this step are not judged, nor those of optim.warmup_steps."""
    alike: float = changeable(0.95)
    """Sign: queries and the positives of others have a mean cosine above this."""
    min_gap: float = changeable(0.02)
    """Sign, judged where that is none: the mean cosine with the own positive is not this much
    higher."""
    guesses: float = changeable(2.0)
    """Sign: accuracy is at most the chance of finding the positive of a batch in so many guesses,
    1 - (1 - 1 / feed.global_batch_size) ** guesses."""


def alarm_problems(alarms: AlarmConfig) -> Iterator[str]:
    """What is wrong with the thresholds, a sentence each."""
    for name in ("lines", "from_step", "min_gap", "guesses"):
        if getattr(alarms, name) < 0:
            yield f"alarms.{name}={getattr(alarms, name)} must not be negative"
    if not -1 <= alarms.alike <= 1:
        yield f"alarms.alike={alarms.alike} must lie in -1..1, as cosines do"
