import numpy as np
import pytest

from jina_jax.config import MineConfig
from jina_jax.mine.source import (
    MARGIN,
    NOT_LOOKED_AT,
    SAME_LABEL,
    SAME_TEXT,
    TAKEN,
    TOO_NEAR,
    counts,
    judge,
)

SCORES = np.array([[0.9, 0.8, 0.77, 0.74, 0.7, 0.6]], np.float32)
KNOWN = np.array([[False, True, False, False, False, False]])
NO_LABEL = np.zeros_like(KNOWN)
POSITIVE = np.array([0.8], np.float32)


def verdicts(positive=POSITIVE, **options):
    config = MineConfig(**({"last_rank": 5, "negatives_per_pair": 5} | options))
    return judge(SCORES, KNOWN, NO_LABEL, positive, config).verdict_NK[0].tolist()


def test_ranks_count_what_is_not_known():
    judged = judge(SCORES, KNOWN, NO_LABEL, POSITIVE, MineConfig())
    assert judged.rank_NK.tolist() == [[1, 1, 2, 3, 4, 5]]


def test_a_passage_with_the_pairs_label_is_no_candidate_and_has_no_rank():
    labelled = np.array([[False, True, False, True, False, False]])
    config = MineConfig(last_rank=3, negatives_per_pair=5)
    judged = judge(SCORES, KNOWN, labelled, POSITIVE, config)
    assert judged.rank_NK.tolist() == [[1, 1, 2, 2, 3, 4]]
    assert judged.verdict_NK.tolist() == [
        [MARGIN, SAME_TEXT, MARGIN, SAME_LABEL, TAKEN, NOT_LOOKED_AT]
    ]
    assert counts(judged.verdict_NK)["dropped"]["same_label"] == 1


def test_the_margin_is_relative_or_absolute():
    rest = [TAKEN, TAKEN, TAKEN]
    # 0.8 - 0.05·0.8 = 0.76 and 0.8 - 0.05 = 0.75.
    assert verdicts(margin=0.05) == [MARGIN, SAME_TEXT, MARGIN, *rest]
    assert verdicts(margin=0.02) == [MARGIN, SAME_TEXT, TAKEN, *rest]
    assert verdicts(margin=0.05, margin_kind="absolute") == [MARGIN, SAME_TEXT, MARGIN, *rest]
    assert verdicts(margin=0.07) == [MARGIN, SAME_TEXT, MARGIN, *rest]
    assert verdicts(margin=0.07, margin_kind="absolute") == [
        MARGIN, SAME_TEXT, MARGIN, MARGIN, TAKEN, TAKEN,
    ]  # fmt: skip


def test_a_relative_margin_lies_below_a_negative_cosine_too():
    scores = np.array([[-0.41, -0.45]], np.float32)
    none = np.zeros((1, 2), bool)
    config = MineConfig(margin=0.05, negatives_per_pair=2)
    judged = judge(scores, none, none, np.array([-0.4], np.float32), config)
    assert judged.verdict_NK.tolist() == [[MARGIN, TAKEN]]


def test_the_window_of_ranks():
    assert verdicts(margin=-1.0, first_rank=3, last_rank=4) == [
        TOO_NEAR, SAME_TEXT, TOO_NEAR, TAKEN, TAKEN, NOT_LOOKED_AT,
    ]  # fmt: skip


def test_no_more_are_looked_at_than_are_needed():
    assert verdicts(margin=0.05, negatives_per_pair=2) == [
        MARGIN, SAME_TEXT, MARGIN, TAKEN, TAKEN, NOT_LOOKED_AT,
    ]  # fmt: skip


@pytest.mark.parametrize(("positive", "without"), [(0.8, 0), (0.1, 1)])
def test_counts(positive, without):
    config = MineConfig(last_rank=5, negatives_per_pair=2)
    judged = judge(SCORES, KNOWN, NO_LABEL, np.array([positive], np.float32), config)
    found = counts(judged.verdict_NK)
    assert found["pairs_without_negative"] == without
    assert found["triplets"] == (0 if without else 2)
    assert found["dropped"] == {
        "same_text": 1,
        "same_label": 0,
        "first_rank": 0,
        "margin": 5 if without else 2,
    }
    assert found["candidates"] == found["triplets"] + sum(found["dropped"].values())
