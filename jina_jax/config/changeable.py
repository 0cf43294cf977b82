"""Fields of a configuration that may differ between a run and its resumption."""

from dataclasses import field
from typing import Any


def changeable(default: Any) -> Any:
    """A dataclass field with a default, whose value decides no result."""
    return field(default=default, metadata={"changeable": True})
