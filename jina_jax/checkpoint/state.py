"""What training changes."""

from typing import Any, NamedTuple

import jax
from jaxtyping import Array

Params = Any


class TemperatureState(NamedTuple):
    """A learned temperature of the loss, and its optimizer state."""

    log_temperature: Array
    """float32: natural logarithm of the loss's temperature."""
    opt_state: Any


class ProjectionState(NamedTuple):
    """A learned projection into the space of a teacher's embeddings, and its optimizer state."""

    projection_DG: Array
    """float32: dimensions of the model × those of the teacher."""
    opt_state: Any


class TrainState(NamedTuple):
    """Everything that a step changes."""

    step: Array
    """int32: steps done."""
    params: Params
    """Of the encoder and its Dense layer, with adapters where these are trained."""
    opt_state: Any
    """Of what is trained."""
    temperature: TemperatureState | None = None
    """None if the temperature is fixed."""
    projection: ProjectionState | None = None
    """None if no teacher's embeddings are learned from."""
    average: Params | None = None
    """float32: the average over the steps of those of `params` that are trained, at the same paths;
    None if none is kept."""

    @property
    def model_params(self) -> Params:
        """What the run is used as a model with: the average, where there is one."""
        if self.average is None:
            return self.params
        averaged = dict(jax.tree_util.tree_leaves_with_path(self.average))
        return jax.tree_util.tree_map_with_path(lambda p, x: averaged.get(p, x), self.params)
