"""What a checkpoint tells of the models that it was merged from."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class MergedPart:
    """One of the models that another was merged from."""

    model: str
    """Absolute path of a folder, or an id."""
    step: int | None
    """Of a run."""
    weight: float
    """Those of all parts add up to 1."""


@dataclass(frozen=True)
class Merged:
    """How a model was merged from others."""

    how: Literal["mean", "slerp"]
    parts: tuple[MergedPart, ...]

    def __str__(self) -> str:
        """In words, on one line."""
        of = (
            f"{part.model}{'' if part.step is None else f'@{part.step}'} ({part.weight:.4g})"
            for part in self.parts
        )
        return f"merged by {self.how} from {', '.join(of)}"
