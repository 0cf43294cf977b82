"""How Hugging Face's names of tensors and fields map onto ours, whatever the model."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import jax
import numpy as np
from flax import nnx

from jina_jax.errors import UserError

_C = TypeVar("_C")
_MOST = {"num_layers": 1000, "num_hidden_layers": 1000}
"""Of what each costs time before a weight is read."""
_MOST_OTHERS = 1 << 24
_LEAST = {"pad_token_id": 0}
_SHOWN_PROBLEMS = 20


Layout = Mapping[str, str]
"""Hugging Face's name of a tensor → path of ours, such as `blocks/0/attention/q/kernel`.

torch stores matrices [out, in]; ours, which are called `kernel`, are [in, out]. A tensor that is
several of ours, one after another on its first axis, has their paths joined by `+`.
"""


def all_layers(pattern: Layout, num_layers: int) -> Layout:
    """The layout of a stack of layers: `{}` in a name or path is the number of the layer."""
    return {
        name.replace("{}", str(i)): path.replace("{}", str(i))
        for i in range(num_layers)
        for name, path in pattern.items()
    }


def _flatten(params: nnx.State) -> dict[str, Any]:
    return {"/".join(map(str, path)): leaf for path, leaf in nnx.to_flat_state(params)}


def _theirs(array: Any, path: str) -> Any:
    """An array of ours as torch holds it, or the other way round."""
    return array.T if path.endswith("/kernel") else array


def of_encoder(
    tensors: Mapping[str, np.ndarray], prefix: str, unused: tuple[str, ...] = ()
) -> dict[str, np.ndarray]:
    """The tensors of an encoder, whatever model it is a part of.

    Args:
      tensors: of a folder.
      prefix: of the encoder's names within a larger model.
      unused: beginnings of the names of heads, and of buffers that old files store as weights.
    """
    bare = {name.removeprefix(prefix): array for name, array in tensors.items()}
    return {name: array for name, array in bare.items() if not name.startswith(unused)}


def fill_params(
    layout: Layout,
    tensors: Mapping[str, np.ndarray],
    init: Callable[[jax.Array], nnx.State],
    what: str,
) -> nnx.State:
    """Parameters from tensors under Hugging Face's names.

    Args:
      layout: of the model.
      tensors: name → array of any float dtype.
      init: draws random parameters from a key; called for shapes alone.
      what: names the model in errors.
    Returns: float32 parameters in host memory, in the structure that `init` gives.
    Raises: UserError naming each missing, unexpected and mis-shaped tensor.
    """
    shapes = jax.eval_shape(init, jax.random.key(0))
    flat = _flatten(shapes)
    problems = [f"missing: {name}" for name in layout if name not in tensors]
    problems += [f"unexpected: {name}" for name in sorted(tensors) if name not in layout]
    for name, path in layout.items():
        if name not in tensors:
            continue
        paths = path.split("+")
        shape = flat[paths[0]].shape
        first, *others = shape[::-1] if path.endswith("/kernel") else shape
        expected = (first * len(paths), *others)
        if tensors[name].shape != expected:
            problems.append(f"{name} has shape {tensors[name].shape}, expected {expected}")
            continue
        for one, part in zip(paths, np.split(tensors[name], len(paths)), strict=True):
            flat[one] = flat[one].replace(np.ascontiguousarray(_theirs(part, one), np.float32))
    if hidden := problems[_SHOWN_PROBLEMS:]:
        problems = [*problems[:_SHOWN_PROBLEMS], f"and {len(hidden):,} more"]
    if problems:
        raise UserError(
            "the weights do not fit the model's shape; check config.json, or that the file is a "
            f"{what}:\n  " + "\n  ".join(problems)
        )
    return nnx.from_flat_state(
        [(path, flat["/".join(map(str, path))]) for path, _ in nnx.to_flat_state(shapes)]
    )


def _joined(parts: list[np.ndarray]) -> np.ndarray:
    # Most tensors are one of ours, and the largest are not to be copied.
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def read_params(layout: Layout, params: nnx.State) -> dict[str, np.ndarray]:
    """The tensors of a model under Hugging Face's names, C-contiguous float32 on the host."""
    flat = _flatten(params)
    return {
        name: np.ascontiguousarray(
            _joined([
                _theirs(np.asarray(flat[one][...], np.float32), one) for one in path.split("+")
            ])
        )
        for name, path in layout.items()
    }  # fmt: skip


FOR_SERVERS = {"initializer_range": 0.02}
"""Of a `config.json`: says nothing of a trained model, and text-embeddings-inference reads none
without it."""
DTYPES = ("compute_dtype", "residual_dtype")
"""Fields of a shape that say how it is run, and are in no `config.json`."""


def read_shape(cls: type[_C], config_json: Mapping[str, Any]) -> _C:
    """A shape from the fields of a `config.json` that it shares with `cls`.

    Fields that old files leave out take the defaults of `cls`; those of `DTYPES` always do.

    Raises: UserError for a value of the wrong type or beyond all models.
    """
    values: dict[str, Any] = {}
    for field in dataclasses.fields(cls):  # type: ignore[arg-type]
        if field.name not in config_json or field.name in DTYPES:
            continue
        value, default = config_json[field.name], field.default
        # A number may be written without its decimals; nothing else may change its type.
        if isinstance(default, float) and type(value) is int:
            value = float(value)
        if type(value) is not type(default):
            raise UserError(
                f"{field.name}={value!r} in config.json is not of type {type(default).__name__}"
            )
        values[field.name] = value
    check_shape(values, "config.json")
    return cls(**values)


def require(config_json: Mapping[str, Any], supported: Mapping[str, Any]) -> None:
    """Refuses a model that computes otherwise than implemented.

    Args:
      config_json: the parsed `config.json`, which may leave fields out.
      supported: field → the value that it must have, or several in a tuple.
    Raises: UserError naming the first field with another value.
    """
    for name, values in supported.items():
        values = values if isinstance(values, tuple) else (values,)
        if (value := config_json.get(name, values[0])) not in values:
            raise UserError(
                f"{name}={value!r:.200} in config.json is not supported; expected {values[0]!r}"
            )


def require_divides(config: Any, name: str, divisor: str) -> None:
    """Raises UserError where a field of a shape does not divide by another."""
    if getattr(config, name) % getattr(config, divisor):
        raise UserError(
            f"{name}={getattr(config, name)} in config.json does not divide by "
            f"{divisor}={getattr(config, divisor)}"
        )


def shape_fields(config: Any) -> dict[str, Any]:
    """The fields of a shape that a `config.json` has."""
    return {k: v for k, v in dataclasses.asdict(config).items() if k not in DTYPES}


def check_shape(values: Mapping[str, Any], where: object) -> None:
    """Refuses what no model has, before memory or time is spent on it.

    Args:
      values: fields of a shape.
      where: named in the error.
    Raises: UserError.
    """
    for name, value in values.items():
        most = _MOST.get(name, _MOST_OTHERS)
        least = _LEAST.get(name, 1)
        if type(value) is int and not least <= value <= most:
            raise UserError(f"{name}={value} in {where} must lie in {least}..{most}")
        if isinstance(value, float) and name.endswith("_theta"):
            if not 1 < value < 1e9:
                raise UserError(f"{name}={value} in {where} must lie between 1 and 1e9")
        elif isinstance(value, float) and not 0 <= value <= 1:
            raise UserError(f"{name}={value} in {where} must lie in 0..1")
