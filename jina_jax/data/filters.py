"""What a filter says of records."""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np

Records = Literal["pair", "triplet"]
"""Kinds of records."""


class Verdict(NamedTuple):
    """What a filter says of N records."""

    reason_N: np.ndarray
    """str objects; an empty one keeps the record, another is the word it is counted under."""
    detail_N: np.ndarray
    """str objects: a sentence for a person, read where the record is dropped."""
    score_N: np.ndarray | None
    """float32, for the ledger and the histogram; None where the filter has none."""


def verdict(
    reasons: Sequence[str] | np.ndarray,
    details: Sequence[str] | np.ndarray | None = None,
    scores: np.ndarray | None = None,
) -> Verdict:
    """A Verdict of plain lists.

    Args:
      reasons: N words, empty to keep.
      details: N sentences; None for none.
      scores: float32 [N]; None for none.
    """
    reason_N = np.array(reasons, object)
    detail_N = np.full(len(reason_N), "", object) if details is None else np.array(details, object)
    return Verdict(reason_N, detail_N, scores)
