"""What training changes."""

from typing import Any, NamedTuple

from jaxtyping import Array

Params = Any


class TemperatureState(NamedTuple):
    """A learned temperature of the loss, and its optimizer state."""

    log_temperature: Array
    """float32: natural logarithm of the loss's temperature."""
    opt_state: Any


class TrainState(NamedTuple):
    """Everything that a step changes."""

    step: Array
    """int32: steps done."""
    params: Params
    opt_state: Any
    temperature: TemperatureState | None = None
    """None if the temperature is fixed."""
