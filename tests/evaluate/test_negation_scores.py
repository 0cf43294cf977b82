import numpy as np
import pytest

from jina_jax.config import SourceConfig
from jina_jax.data.prepare import prepare
from jina_jax.errors import UserError
from jina_jax.evaluate.embedder import Embedder
from jina_jax.evaluate.negation import (
    NegationTask,
    held_out_tasks,
    negation_scores,
    read_task,
    score_negation,
)
from tests.pairs import config, triplet, write


def unit(*degrees):
    angles = np.deg2rad(degrees)
    return np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)


def test_by_hand():
    # Angles of anchor, entailment and negative on the circle; what is nearer has the higher cosine.
    anchor, entailment = unit(0, 0, 0, 0, 0), unit(20, 20, 20, 50, 0)
    negative = unit(50, 30, 10, 30, 0)
    # a-e, a-n, e-n:  20 50 30 | 20 30 10 | 20 10 10 | 50 30 20 | 0 0 0
    # easy:              yes       yes        no         no        no (equal)
    # hard:              yes       no         no         no        no (equal)
    found = negation_scores(anchor, entailment, negative)
    assert found == {"easy_negation": 2 / 5, "hard_negation": 1 / 5}
    # a-e 20, a-n -15, e-n 35: hard is passed without easy.
    found = negation_scores(unit(0), unit(20), unit(-15))
    assert found == {"easy_negation": 0, "hard_negation": 1}


class Angles(Embedder):
    """Reads the embedding off the text: any embedder will do."""

    def __init__(self):
        pass

    def encode(self, texts, *, progress=False):
        return unit(*map(float, texts))


def test_columns_go_where_they_belong():
    task = NegationTask("t", ["0", "0"], ["20", "20"], ["30", "-15"])
    assert score_negation(task, Angles()) == {"easy_negation": 0.5, "hard_negation": 0.5}
    assert score_negation(NegationTask("t", ["0"], ["20"], ["-15"]), Angles()) == {
        "easy_negation": 0, "hard_negation": 1,
    }  # fmt: skip


def test_the_held_out_triplets_of_a_prepared_folder(tmp_path):
    triplets = write(tmp_path / "triplets.jsonl", [triplet(i) for i in range(100)])
    pairs = write(tmp_path / "pairs.jsonl", [triplet(i) for i in range(500, 600)])
    settings = config(triplets, pairs, eval_pairs=7)
    manifest = prepare(settings, tmp_path / "out", progress=False)
    (task,) = held_out_tasks(manifest, tmp_path / "out")
    assert task.name == "triplets"
    rows = set(zip(*task[1:]))
    assert len(rows) == 7 and rows <= {tuple(triplet(i).values()) for i in range(100)}


def test_a_file_with_a_flaw_is_refused(tmp_path):
    path = write(tmp_path / "a.jsonl", [triplet(0), {"query": "a", "positive": "b"}])
    source = SourceConfig("a", paths=(str(path),), negative_field="negative")
    with pytest.raises(UserError, match=r"a\.jsonl:2: missing_field"):
        read_task(source)
