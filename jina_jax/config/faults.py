"""How long a run waits, and how much it bears, before it ends itself."""

from collections.abc import Iterator
from dataclasses import dataclass, fields

from jina_jax.config.changeable import changeable


@dataclass(frozen=True)
class FaultConfig:
    """Limits of training. A run that exceeds one ends with an exit code of its own; none of them
    changes a result.
    """

    batch_timeout_s: float = changeable(300.0)
    """The run ends, and tells where it stands, when a batch takes longer to come; 0 waits for ever.
    The first may take four times as long."""
    step_timeout_s: float = changeable(1800.0)
    """The run ends, and tells where it stands, when a step takes longer; 0 waits for ever.
    Compiling, evaluating and waiting for a save may take four times as long."""
    heartbeat_s: float = changeable(60.0)
    """With several processes the others end when one gives no sign of life for so long."""
    max_skipped_steps: int = changeable(10)
    """A step whose loss or gradient is not finite changes nothing; so many in a row end the run,
    once the step after them has begun. skipped.jsonl in the run folder names their records."""
    save_retry_s: float = changeable(30.0)
    """Pause after a save that failed; the fifth failure in a row ends the run."""


def fault_problems(config: FaultConfig) -> Iterator[str]:
    """What is wrong with the values."""
    for each in fields(config):
        value = getattr(config, each.name)
        if value < 0:
            yield f"faults.{each.name}={value} must not be negative"
    for name in ("heartbeat_s", "max_skipped_steps"):
        if getattr(config, name) == 0:
            yield f"faults.{name}=0 must be above 0"
