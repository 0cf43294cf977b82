"""How fields are declared: their bounds, and whether a resumption may change them."""

import dataclasses
from collections.abc import Iterator
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, Le

from jina_jax.system.untrusted import checked

PositiveInt = Annotated[int, Gt(0)]
PositiveFloat = Annotated[float, Gt(0)]
NonNegativeInt = Annotated[int, Ge(0)]
NonNegativeFloat = Annotated[float, Ge(0)]
Share = Annotated[float, Ge(0), Le(1)]
PositiveShare = Annotated[float, Gt(0), Le(1)]
ProductPrecision = Literal["highest", "high", "default"]
"""Of float32 products on TPUs and GPUs: float32's own, or three products of bfloat16 (or tf32), or
one. On CPU all are float32."""


def changeable(default: Any) -> Any:
    """A field that may differ between a run and its resumption, since no result depends on it."""
    return dataclasses.field(default=default, metadata={"changeable": True})


def leaves(config: Any, prefix: str = "") -> Iterator[tuple[str, dataclasses.Field[Any], Any]]:
    """The fields of a dataclass and of those within it: path, field and value of each."""
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            yield from leaves(value, f"{prefix}{field.name}.")
        else:
            yield prefix + field.name, field, value


def field_problems(config: Any) -> list[str]:
    """Fields whose value is of another type than declared, or out of bounds: a sentence each."""
    return checked(type(config), dataclasses.asdict(config))[1]
