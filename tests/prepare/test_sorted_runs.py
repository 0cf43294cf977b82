from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from jina_jax.prepare.sorted_runs import (
    KEYS,
    Run,
    RunWriter,
    key_ranges,
    load_runs,
    read_range,
    save_runs,
    schema,
    shuffle_key,
    write_rows,
)
from jina_jax.prepare.stages import Partition
from jina_jax.prepare.tokenise import training_texts
from jina_jax.system.arrow import map_table, write_table
from jina_jax.text.identity import hash_words, text_hash

SCHEMA = schema(2)


def write_runs(folder, count, run_bytes):
    runs = RunWriter(folder / "run", 3, SCHEMA, seed=0, run_bytes=run_bytes)
    for start in range(0, count, 10):
        numbers = range(start, min(start + 10, count))
        texts = [[f"{name} {i}" for i in numbers] for name in ("query", "positive")]
        hashes = [[text_hash(t) for t in column] for column in texts]
        runs.add(texts, hashes, ["file"] * len(numbers), [i + 1 for i in numbers])
    runs.flush()
    return [Run(path, 0, 0) for path in runs.paths]


def test_many_small_runs_hold_what_one_run_does(tmp_path):
    (tmp_path / "many").mkdir()
    (one,) = write_runs(tmp_path, 1000, 1 << 30)
    many = write_runs(tmp_path / "many", 1000, 12_000)
    assert 5 < len(many) < 20
    for first, end in [*key_ranges(7), (0, KEYS)]:
        expected = read_range([one], first, end, SCHEMA)
        got = read_range(many, first, end, SCHEMA)
        assert got.sort_by("key").to_pylist() == expected.to_pylist()
        keys = expected.column("key").to_pylist()
        assert keys == sorted(keys) and all(first <= k < end for k in keys)
    ranges = [read_range(many, *r, SCHEMA) for r in key_ranges(7)]
    assert sum(len(r) for r in ranges) == 1000
    assert min(len(r) for r in ranges) > 80


def test_a_row_has_everything_of_its_pair_and_counts_from_the_start_of_the_source(tmp_path):
    (run,) = write_runs(tmp_path, 1, 1)
    moved = Run(run.path, row_base=40, position_base=30)
    assert read_range([moved], 0, KEYS, SCHEMA).to_pylist() == [
        {
            "key": shuffle_key(text_hash("query 0"), text_hash("positive 0"), 0),
            "query_hash": text_hash("query 0"),
            "positive_hash": text_hash("positive 0"),
            "source": 3,
            "position": 30,
            "row": 41,
            "file": "file",
            "query": "query 0",
            "positive": "positive 0",
        }
    ]
    assert read_range([], 0, KEYS, SCHEMA).num_rows == 0


def test_pairs_beside_triplets_have_no_negative(tmp_path):
    runs = RunWriter(tmp_path / "run", 0, schema(3), seed=0)
    runs.add([["q"], ["p"]], [[b"a" * 16], [b"b" * 16]], ["f"], [1])
    runs.flush()
    (row,) = read_range([Run(runs.paths[0], 0, 0)], 0, KEYS, schema(3)).to_pylist()
    assert row["negative"] is None and row["negative_hash"] is None and row["positive"] == "p"


def test_a_list_of_runs_comes_back(tmp_path):
    runs = [Run("a", 1, 2), Run("b", 0, 3)]
    save_runs(runs, tmp_path / "runs.json")
    assert load_runs(tmp_path / "runs.json") == runs


@pytest.mark.parametrize("parts", [1, 3, 1000])
def test_key_ranges_cover_every_key_once(parts):
    ranges = key_ranges(parts)
    assert len(ranges) == parts
    assert ranges[0][0] == 0 and ranges[-1][1] == KEYS
    assert all(a[1] == b[0] for a, b in pairwise(ranges))


def test_the_bounds_of_a_range_are_first_inclusive_end_exclusive(tmp_path):
    (run,) = write_runs(tmp_path, 5, 1 << 30)
    keys = [0, 5, 5, 9, KEYS - 1]
    table = map_table(Path(run.path)).set_column(0, "key", pa.array(keys, pa.uint64()))
    write_table(table, tmp_path / "other")
    run = Run(str(tmp_path / "other"), 0, 0)
    for bounds, expected in (((5, 9), [5, 5]), ((0, 5), [0]), ((9, KEYS), [9, KEYS - 1])):
        got = read_range([run], *bounds, SCHEMA)
        assert got.column("key").to_pylist() == expected


def test_the_key_depends_on_both_texts_their_order_and_the_seed():
    a, b = text_hash("a"), text_hash("b")
    assert len({shuffle_key(*k) for k in ((a, b, 0), (b, a, 0), (a, a, 0), (a, b, 1))}) == 4
    assert shuffle_key(a, b, -1) == shuffle_key(a, b, KEYS - 1)


def test_hash_words_of_sliced_chunks():
    hashes = [bytes([i]) * 16 for i in range(5)]
    whole = pa.array(hashes, pa.binary(16))
    column = pa.chunked_array([whole[1:3], whole[:0], whole[4:]])
    words = hash_words(column)
    assert words.dtype == np.uint64
    assert [w.tobytes() for w in words] == [hashes[1], hashes[2], hashes[4]]


@pytest.mark.parametrize(
    "most, expected",
    [
        (100, "q0 p0 q1 p1 q2 p2 q3 p3"),
        (8, "q0 p0 q1 p1 q2 p2 q3 p3"),
        (4, "p0 p1 p2 p3"),
        (1, "p3"),
    ],
)
def test_training_texts_are_thinned_evenly(tmp_path, most, expected):
    partitions = []
    # The first row is no training record.
    for part, numbers in enumerate(((9, 0), (9, 1, 2, 3))):
        texts = {name: [f"{name[0]}{i}" for i in numbers] for name in ("query", "positive")}
        table = pa.table(texts | {f"{name}_hash": texts[name] for name in texts})
        write_table(table, tmp_path / f"{part}.arrow")
        write_rows(np.arange(1, len(numbers)), tmp_path / f"{part}.rows")
        partitions.append(Partition(*(str(tmp_path / f"{part}.{e}") for e in ("arrow", "rows"))))
    assert list(training_texts(partitions, most)) == expected.split()
