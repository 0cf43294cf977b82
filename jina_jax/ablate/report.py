"""The figures of an ablation."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from jina_jax.ablate.detection import Detection

ABLATION_FILE = "ablation.json"
"""Of the work folder: an `AblationReport`."""


@dataclass(frozen=True)
class ArmReport:
    """One arm, over all seeds."""

    name: str
    changes: dict[str, Any]
    """Field → value, as in `Arm`."""
    read: int
    """Records of its sources."""
    trained_on: int
    """Records left to train on."""
    removed: dict[str, int]
    """Filter → records that it dropped."""
    measures: dict[str, tuple[float, ...]]
    """Measure → value in 0..1 of each seed."""
    found: dict[str, Detection]
    """Filter → what it found of planted noise; empty where none was planted."""


@dataclass(frozen=True)
class AblationReport:
    """All arms."""

    name: str
    seeds: tuple[int, ...]
    injected: dict[str, int]
    """Pairs by what they are; empty where nothing was planted."""
    references: dict[str, dict[str, float]]
    """`untrained` and `bm25` → measure → value in 0..1, on the same held-out pairs."""
    arms: tuple[ArmReport, ...]


def mean_and_spread(values: Sequence[float]) -> tuple[float, float]:
    """Mean and standard deviation (of a sample: n - 1) of the seeds; the latter 0 of one seed.

    Example: 1, 2 and 3 give (2.0, 1.0).
    """
    spread = statistics.stdev(values) if len(values) > 1 else 0.0
    return statistics.fmean(values), spread


def gains(arm: ArmReport, first: ArmReport, name: str) -> tuple[float, ...]:
    """By how much an arm is above the first in a measure, seed by seed.

    Both start a seed from the same weights, so that the differences vary less than the values.
    """
    pairs = zip(arm.measures[name], first.measures[name], strict=True)
    return tuple(value - of_first for value, of_first in pairs)
