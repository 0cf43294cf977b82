"""Names of a module that are imported when they are asked for."""

import importlib
from collections.abc import Callable, Mapping
from typing import Any


def lazily(module: str, places: Mapping[str, str | None]) -> Callable[[str], Any]:
    """The `__getattr__` of a module.

    Args:
      module: its name, for errors.
      places: public name → the module that has it; none of a module of the module itself.
    """

    def find(name: str) -> Any:
        if name not in places:
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        if (place := places[name]) is None:
            return importlib.import_module(f"{module}.{name}")
        return getattr(importlib.import_module(place), name)

    return find
