"""Which of the passages near a query may be its negatives."""

from typing import Any, NamedTuple

import numpy as np

from jina_jax.config import MineConfig

TAKEN, SAME_TEXT, TOO_NEAR, MARGIN, NOT_LOOKED_AT = range(5)
RULES = {SAME_TEXT: "same_text", TOO_NEAR: "first_rank", MARGIN: "margin"}
"""What drops a candidate: it is the query or one of its positives; it is nearer than `first_rank`;
it scores above the positive less the margin."""


class Judged(NamedTuple):
    """What became of the candidates of N pairs."""

    verdict_NK: np.ndarray
    """int8: TAKEN, a key of RULES, or NOT_LOOKED_AT where there were enough before, or it is
    farther than `last_rank`."""
    rank_NK: np.ndarray
    """int64, from 1, among candidates of another text than the query and its positives; of
    those the rank of the candidate before."""


def judge(
    score_NK: np.ndarray, is_known_NK: np.ndarray, positive_N: np.ndarray, config: MineConfig
) -> Judged:
    """Applies the rules in their order: same text, first rank, margin.

    Args:
      score_NK: float32 cosines of each pair's query with its nearest passages, best first.
      is_known_NK: bool; the passage is the query's own text or one of its positives.
      positive_N: float32 cosines of each query with its positive.
      config: ranks, margin and how many to take.
    Example: a positive at 0.8 and candidates at 0.9, 0.77 and 0.7, none known, with a relative
      margin of 0.05: the limit is 0.76, the first two are dropped by it and the third is taken.
    """
    positive_N1 = positive_N.astype(np.float64)[:, None]
    relative = config.margin_kind == "relative"
    limit_N1 = positive_N1 - config.margin * (np.abs(positive_N1) if relative else 1.0)
    rank_NK = np.cumsum(~is_known_NK, axis=1)
    verdict_NK = np.where(score_NK > limit_N1, MARGIN, TAKEN)
    verdict_NK[rank_NK < config.first_rank] = TOO_NEAR
    verdict_NK[is_known_NK] = SAME_TEXT
    is_taken_NK = (verdict_NK == TAKEN) & (rank_NK <= config.last_rank)
    taken_NK = np.cumsum(is_taken_NK, axis=1)
    is_over_NK = (taken_NK - is_taken_NK >= config.negatives_per_pair) | (
        rank_NK > config.last_rank
    )
    verdict_NK[is_over_NK] = NOT_LOOKED_AT
    return Judged(verdict_NK.astype(np.int8), rank_NK)


def counts(verdict_NK: np.ndarray) -> dict[str, Any]:
    """Candidates looked at, those taken, and those that each rule dropped."""
    by_verdict = np.bincount(verdict_NK.ravel(), minlength=NOT_LOOKED_AT + 1).tolist()
    return {
        "candidates": sum(by_verdict[:NOT_LOOKED_AT]),
        "triplets": by_verdict[TAKEN],
        "dropped": {name: by_verdict[number] for number, name in RULES.items()},
        "pairs_without_negative": int((~(verdict_NK == TAKEN).any(axis=1)).sum()),
    }
