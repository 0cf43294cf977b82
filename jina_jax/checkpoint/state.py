"""What training changes."""

from typing import Any, NamedTuple

from jaxtyping import Array

Params = Any


class Learned(NamedTuple):
    """What training learns beside the encoder, and no exported model needs."""

    log_temperature: Array
    """float32: natural logarithm of the loss's temperature."""
    opt_state: Any


class TrainState(NamedTuple):
    """Everything that a step changes."""

    step: Array
    """int32: steps done."""
    params: Params
    opt_state: Any
    learned: Learned | None = None
    """None where the temperature is fixed."""
