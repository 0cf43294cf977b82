import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jina_jax.config import NegationSet, PromptConfig
from jina_jax.errors import UserError
from jina_jax.evaluate.negation import (
    NegationTask,
    held_out_negation,
    negation_scores,
    read_negation,
    score_negation,
)
from jina_jax.inference.embedder import Embedder
from jina_jax.prepare.run import prepare
from tests.pairs import config, pair, triplet, write


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

    prompts = PromptConfig()

    def __init__(self):
        pass

    def encode(self, texts, *, prompt=None, progress=False):
        return unit(*map(float, texts))


def test_columns_go_where_they_belong():
    task = NegationTask("t", ["0", "0"], ["20", "20"], ["30", "-15"])
    assert score_negation(task, Angles()) == {"easy_negation": 0.5, "hard_negation": 0.5}
    assert score_negation(NegationTask("t", ["0"], ["20"], ["-15"]), Angles()) == {
        "easy_negation": 0, "hard_negation": 1,
    }  # fmt: skip


def test_the_held_out_triplets_of_a_prepared_folder(tmp_path):
    triplets = write(tmp_path / "triplets.jsonl", [triplet(i) for i in range(100)])
    pairs = write(tmp_path / "pairs.jsonl", [pair(i) for i in range(500, 600)])
    settings = config(triplets, pairs, eval_pairs=7)
    manifest = prepare(settings, tmp_path / "out", progress=False)
    (task,) = held_out_negation(manifest, tmp_path / "out")
    assert task.name == "triplets"
    rows = set(zip(*task[1:]))
    assert len(rows) == 7 and rows <= {tuple(triplet(i).values()) for i in range(100)}


def test_every_kind_of_file_gives_the_same_triplets(tmp_path):
    rows = [("a man sleeps", "a person sleeps", "nobody sleeps"), ("x", 'y "z"', "not y")]
    names = ("query", "positive", "negative")
    write(tmp_path / "a.jsonl", [dict(zip(names, row)) for row in rows])
    pq.write_table(
        pa.Table.from_pylist([dict(zip(names, r)) for r in rows]), tmp_path / "a.parquet"
    )
    (tmp_path / "a.txt").write_text("".join("\t".join(row[::-1]) + "\n" for row in rows))
    (tmp_path / "a.csv").write_text(
        "anchor,entailment,negative\na man sleeps,a person sleeps,nobody sleeps\n"
        'x,"y ""z""",not y\n'
    )
    expected = NegationTask("own", *([row[i] for row in rows] for i in range(3)))
    csv_fields = ("anchor", "entailment", "negative")
    for file, options in {
        "a.jsonl": {},
        "a.parquet": {"kind": "parquet"},
        "a.txt": {"kind": "text", "fields": ("3", "2", "1")},
        "a.csv": {"kind": "csv", "fields": csv_fields},
    }.items():
        assert read_negation(NegationSet("own", (str(tmp_path / file),), **options)) == expected


@pytest.mark.parametrize(
    ("row", "what"),
    [
        ({"query": "a", "positive": "b"}, r"a\.jsonl:2 has no field 'negative'"),
        ({"query": "a", "positive": "", "negative": "c"}, r"a\.jsonl:2 holds '' in field 'posi"),
    ],
)
def test_a_file_with_a_flaw_is_refused(tmp_path, row, what):
    path = write(tmp_path / "a.jsonl", [triplet(0), row])
    with pytest.raises(UserError, match=what):
        read_negation(NegationSet("own", (str(path),)))
    (tmp_path / "b.jsonl").write_text("")
    with pytest.raises(UserError, match="'own' has no triplet"):
        read_negation(NegationSet("own", (str(tmp_path / "b.jsonl"),)))
