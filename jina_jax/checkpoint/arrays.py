"""Arrays of a state by flat path, and whether a step holds those that are wanted."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from jina_jax.checkpoint.state import TrainState
from jina_jax.errors import UserError


def flatten(tree: Any) -> dict[str, Any]:
    """The leaves of a tree by their path, such as `encoder/layer_0/wi`."""
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def unflatten(like: Any, flat: dict[str, Any]) -> Any:
    """A tree of the structure of `like`, with the leaves of `flatten`."""
    return jax.tree.unflatten(jax.tree.structure(like), [flat[name] for name in flatten(like)])


def beside_params(state: TrainState) -> dict[str, Any]:
    """What a state holds beside the model's parameters."""
    params = flatten(state.params)
    return {
        "step": state.step,
        "opt_state": state.opt_state,
        "learned": state.temperature,
        "projection": state.projection,
        "params": {name: params[name] for name in flatten(state.average)},
    }


def shapes_of(arrays: Mapping[str, Any]) -> dict[str, jax.ShapeDtypeStruct]:
    """What a seal says of arrays (`dtype`, `shape`), by name."""
    return {
        name: jax.ShapeDtypeStruct(tuple(array["shape"]), np.dtype(array["dtype"]))
        for name, array in arrays.items()
    }


def check_arrays(place: str, wanted: dict[str, dict[str, Any]], held: Mapping[str, Any]) -> None:
    """Compares arrays by part and name, in shape and dtype.

    Args:
      place: of the step, named in errors.
      wanted: by part and name.
      held: the same of the step.
    Raises: UserError naming each that differs.
    """
    for part, arrays in wanted.items():
        if lines := _unlike(arrays, held[part]):
            raise UserError(
                f"{place}/{part} holds other arrays than this version and this "
                f"configuration want (held → wanted):\n  " + "\n  ".join(lines)
            )


def _unlike(wanted: Mapping[str, Any], held: Mapping[str, Any]) -> list[str]:
    """One line for each array that is not held as it is wanted."""

    def words(array: Any) -> str:
        if array is None:
            return "(absent)"
        return f"{np.dtype(array.dtype).name}{list(array.shape)}"

    names = sorted({*wanted, *held})
    each = [(name, words(held.get(name)), words(wanted.get(name))) for name in names]
    return [f"{name}: {before} → {now}" for name, before, now in each if before != now]
