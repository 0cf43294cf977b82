"""How fields are declared: their bounds, and whether a resumption may change them."""

import dataclasses
import functools
import json
from collections.abc import Iterator
from typing import Annotated, Any

from annotated_types import Ge, Gt, Le

PositiveInt = Annotated[int, Gt(0)]
PositiveFloat = Annotated[float, Gt(0)]
NonNegativeInt = Annotated[int, Ge(0)]
NonNegativeFloat = Annotated[float, Ge(0)]
Share = Annotated[float, Ge(0), Le(1)]
PositiveShare = Annotated[float, Gt(0), Le(1)]


def changeable(default: Any) -> Any:
    """A field that may differ between a run and its resumption, since no result depends on it."""
    return dataclasses.field(default=default, metadata={"changeable": True})


@functools.cache
def _adapter(kind: type) -> Any:
    from pydantic import TypeAdapter

    return TypeAdapter(kind)


def field_problems(config: Any, path: str = "") -> Iterator[str]:
    """Fields whose value is of another type than declared, or out of bounds.

    Args:
      config: a dataclass that may hold others.
      path: of the config, such as `loss.`; begins the names of its fields.
    Returns: one sentence a field.
    """
    from pydantic import ValidationError

    try:
        # JSON, in which a strict check takes an object for a dataclass and an array for a tuple.
        text = json.dumps(dataclasses.asdict(config), default=repr)
        adapter = _adapter(type(config))  # type: ignore[arg-type]
        adapter.validate_json(text, strict=True)
    except ValidationError as error:
        for found in error.errors(include_url=False):
            name = path + ".".join(map(str, found["loc"]))
            must = found["msg"].replace("Input should be", "must be").replace("Input", "it")
            yield f"{name}={found['input']!r:.200} {must}"
