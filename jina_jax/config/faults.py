"""How long a run waits, and how much it bears, before it ends itself."""

from dataclasses import dataclass

from jina_jax.config.fields import NonNegativeFloat, PositiveFloat, PositiveInt, changeable


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
    """With several processes the others end when one gives no sign of life for so long."""
    max_skipped_steps: PositiveInt = changeable(10)
    """A step whose loss or gradient is not finite changes nothing; so many in a row end the run,
    once the step after them has begun. skipped.jsonl in the run folder names their records."""
    save_retry_s: NonNegativeFloat = changeable(30.0)
    """Pause after a save that failed; the fifth failure in a row ends the run."""
