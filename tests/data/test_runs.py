from itertools import pairwise

import numpy as np
import pyarrow as pa
import pytest

from jina_jax.data.encode import training_texts
from jina_jax.data.normalise import text_hash
from jina_jax.data.runs import (
    KEYS,
    SCHEMA,
    RunWriter,
    hash_words,
    key_ranges,
    read_range,
    shuffle_key,
    write_table,
)
from jina_jax.types import Origin, Pair


def write_runs(folder, count, run_bytes):
    runs = RunWriter(folder, 3, seed=0, run_bytes=run_bytes)
    for i in range(count):
        pair = Pair(f"query {i}", f"positive {i}", Origin("file", i + 1))
        runs.add(pair, text_hash(pair.query), text_hash(pair.positive), i)
    runs.flush()
    return runs.paths


def test_many_small_runs_hold_what_one_run_does(tmp_path):
    (tmp_path / "many").mkdir()
    (one,) = write_runs(tmp_path, 1000, 1 << 30)
    many = write_runs(tmp_path / "many", 1000, 50_000)
    # 50,000 bytes are 118 rows of 423 to 427.
    assert len(many) == 9
    for first, end in [*key_ranges(7), (0, KEYS)]:
        expected, got = read_range([one], first, end), read_range(many, first, end)
        assert got.sort_by("key") == expected
        keys = expected.column("key").to_pylist()
        assert keys == sorted(keys) and all(first <= k < end for k in keys)
    ranges = [read_range(many, *r) for r in key_ranges(7)]
    assert sum(len(r) for r in ranges) == 1000
    assert min(len(r) for r in ranges) > 80


def test_a_row_has_everything_of_its_pair(tmp_path):
    (path,) = write_runs(tmp_path, 1, 1)
    assert read_range([path], 0, KEYS).to_pylist() == [
        {
            "key": shuffle_key(text_hash("query 0"), text_hash("positive 0"), 0),
            "query_hash": text_hash("query 0"),
            "positive_hash": text_hash("positive 0"),
            "source": 3,
            "position": 0,
            "row": 1,
            "file": "file",
            "query": "query 0",
            "positive": "positive 0",
        }
    ]
    assert read_range([], 0, KEYS) == SCHEMA.empty_table()


@pytest.mark.parametrize("parts", [1, 3, 1000])
def test_key_ranges_cover_every_key_once(parts):
    ranges = key_ranges(parts)
    assert len(ranges) == parts
    assert ranges[0][0] == 0 and ranges[-1][1] == KEYS
    assert all(a[1] == b[0] for a, b in pairwise(ranges))


def test_the_bounds_of_a_range_are_first_inclusive_end_exclusive(tmp_path):
    row = {f.name: [0 if pa.types.is_integer(f.type) else b"\0" * 16] for f in SCHEMA}
    keys = [0, 5, 5, 9, KEYS - 1]
    columns = [keys if f.name == "key" else row[f.name] * len(keys) for f in SCHEMA]
    arrays = [pa.array(c, f.type) for c, f in zip(columns, SCHEMA, strict=True)]
    write_table(pa.Table.from_arrays(arrays, schema=SCHEMA), tmp_path / "run")
    for bounds, expected in (((5, 9), [5, 5]), ((0, 5), [0]), ((9, KEYS), [9, KEYS - 1])):
        got = read_range([tmp_path / "run"], *bounds)
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
    paths = []
    for part, numbers in enumerate(((0,), (1, 2, 3))):
        table = pa.table(
            {"query": [f"q{i}" for i in numbers], "positive": [f"p{i}" for i in numbers]}
        )
        paths.append(tmp_path / f"{part}")
        write_table(table, paths[-1])
    assert list(training_texts(paths, most)) == expected.split()
