import dataclasses
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pytest

from jina_jax.prepare import exchange as exchanges
from jina_jax.prepare.exchange import BUCKETS, Exchange, Given, gather_task
from jina_jax.prepare.sorted_runs import (
    KEYS,
    Columns,
    RunNote,
    RunWriter,
    key_ranges,
    partition_ranges,
    read_range,
    run_file,
    schema,
    shuffle_keys,
    write_rows,
)
from jina_jax.prepare.stages import Partition
from jina_jax.prepare.tokenise import partitions_needed, training_texts
from jina_jax.system.arrow import write_table
from jina_jax.system.store import Store, StoredFile
from jina_jax.text.identity import hash_words, text_hash
from tests.object_store import ObjectStore

SCHEMA = schema(Columns())


def no_duplicates(lost, kept):
    raise AssertionError(lost)


def write_runs(folder, numbers, run_bytes=1 << 30, *, name="run", columns=Columns(), bases=(0, 0)):
    """Runs of pairs, as an exchange knows them; a file for each hundred."""
    stem = Store(str(folder)).file(name)
    runs = RunWriter(stem, columns, 0, no_duplicates, run_bytes)
    for start in range(0, len(numbers), 10):
        some = numbers[start : start + 10]
        texts = [[f"{name} {i}" for i in some] for name in ("query", "positive")]
        hashes = [[text_hash(t) for t in column] for column in texts]
        runs.add(texts, hashes, [f"file{i // 100}" for i in some], [i + 1 for i in some])
    runs.flush()
    note = RunNote(3, *bases, columns)
    return [Given(run_file(stem, n), places, note) for n, places in enumerate(runs.places)]


def gathered(folder, given):
    index = Store(str(folder)).file("index")
    totals = gather_task(given, index)
    return Exchange(index, len(given), totals.index_bytes), totals


def test_many_small_runs_hold_what_one_run_does(tmp_path):
    one = write_runs(tmp_path, range(1000), name="one")
    many = write_runs(tmp_path, range(1000), 12_000)
    assert len(one) == 1 and 5 < len(many) < 20
    (tmp_path / "whole").mkdir()
    whole, totals = gathered(tmp_path / "whole", [one[0]._replace(file=one[0].file)])
    whole = dataclasses.replace(whole, index=Store(str(tmp_path)).file("whole/index"))
    parts, of_parts = gathered(tmp_path, many)
    assert sum(totals.rows) == sum(of_parts.rows) == 1000
    # Bounds in the middle of a bucket, too.
    for first, end in [*key_ranges(7), (0, KEYS), (KEYS // 2, KEYS // 2 + 1)]:
        expected = read_range(whole, first, end, SCHEMA)
        got = read_range(parts, first, end, SCHEMA)
        order = [("key", "ascending"), ("row", "ascending")]
        assert got.sort_by(order).to_pylist() == expected.sort_by(order).to_pylist()
        keys = expected.column("key").to_pylist()
        assert all(first <= k < end for k in keys)
    ranges = [read_range(parts, *r, SCHEMA) for r in key_ranges(7)]
    assert sum(len(r) for r in ranges) == 1000
    assert min(len(r) for r in ranges) > 80


def test_a_row_has_everything_of_its_pair_and_counts_from_the_start_of_the_source(tmp_path):
    (run,) = write_runs(tmp_path, [0], bases=(40, 30))
    exchange, _ = gathered(tmp_path, [run])
    assert read_range(exchange, 0, KEYS, SCHEMA).to_pylist() == [
        {
            "key": int(shuffle_keys([text_hash("query 0")], [text_hash("positive 0")], 0)[0]),
            "query_hash": text_hash("query 0"),
            "positive_hash": text_hash("positive 0"),
            "source": 3,
            "position": 30,
            "row": 41,
            "file": "file0",
            "query": "query 0",
            "positive": "positive 0",
        }
    ]
    assert read_range(gathered(tmp_path, [])[0], 0, KEYS, SCHEMA).num_rows == 0


def test_every_row_has_its_own_file_though_a_file_is_told_once(tmp_path):
    given = write_runs(tmp_path, range(1000))
    exchange, _ = gathered(tmp_path, given)
    rows = read_range(exchange, 0, KEYS, SCHEMA).to_pylist()
    assert len(rows) == 1000
    assert all(r["file"] == f"file{(r['row'] - 1) // 100}" for r in rows)
    (path,) = tmp_path.glob("*.run")
    one = write_runs(tmp_path, [i * 100 for i in range(10)] * 1, name="other")
    assert path.read_bytes().count(b"file") < 1000 and one


def test_records_of_several_kinds_come_as_one_table(tmp_path):
    kinds = [Columns(), Columns(3), Columns(3, labels=True), Columns(2, scores=True)]
    given = []
    for source, columns in enumerate(kinds):
        stem = Store(str(tmp_path)).file(f"run-{source}")
        runs = RunWriter(stem, columns, 0, no_duplicates)
        texts = [[f"{word}{source}"] for word in ("q", "p", "n")][: columns.texts]
        hashes = [[text_hash(text)] for (text,) in texts]
        labels = ["l"] if columns.labels else ()
        runs.add(texts, hashes, ["f"], [1], labels, [0.5] if columns.scores else ())
        runs.flush()
        note = RunNote(source, 0, 0, columns)
        given.append(Given(run_file(stem, 0), runs.places[0], note))
    wanted = schema(Columns(3, True, True))
    rows = read_range(gathered(tmp_path, given)[0], 0, KEYS, wanted).sort_by("source").to_pylist()
    names = ("query", "positive", "negative", "label", "gold")
    assert [[row[name] for name in names] for row in rows] == [
        ["q0", "p0", None, None, None],
        ["q1", "p1", "n1", None, None],
        ["q2", "p2", "n2", "l", None],
        ["q3", "p3", None, None, 0.5],
    ]
    assert [row["negative_hash"] is None for row in rows] == [True, False, False, True]


def test_duplicates_of_a_run_are_handed_out_with_what_stays(tmp_path):
    found = []
    stem = Store(str(tmp_path)).file("run")

    def keep(lost, kept):
        for a, b in zip(lost.to_pylist(), kept.to_pylist()):
            found.append((a["file"], a["row"], a["query"], b["file"], b["row"]))

    runs = RunWriter(stem, Columns(), 0, keep)
    for file, spellings in (("a", ("one", "two", "ONE")), ("b", ("two", "one", "three"))):
        hashes = [[text_hash(t) for t in spellings], [text_hash("p")] * 3]
        runs.add([spellings, ["p"] * 3], hashes, [file] * 3, [1, 2, 3])
    runs.flush()
    expected = [("a", 3, "ONE", "a", 1), ("b", 1, "two", "a", 2), ("b", 2, "one", "a", 1)]
    assert sorted(found) == expected
    exchange, totals = gathered(tmp_path, [Given(run_file(stem, 0), runs.places[0], RunNote(0, 0, 0, Columns()))])  # noqa: E501  # fmt: skip
    assert sum(totals.rows) == 3
    rows = read_range(exchange, 0, KEYS, SCHEMA).sort_by("position").to_pylist()
    assert [(r["file"], r["row"], r["query"]) for r in rows] == [
        ("a", 1, "one"),
        ("a", 2, "two"),
        ("b", 3, "three"),
    ]


def test_triplets_of_two_labels_are_no_duplicates(tmp_path):
    stem = Store(str(tmp_path)).file("run")
    runs = RunWriter(stem, Columns(3, labels=True), 0, no_duplicates)
    hashes = [[text_hash(word)] * 2 for word in "qpn"]
    runs.add([[word] * 2 for word in "qpn"], hashes, ["f"] * 2, [1, 2], ["a", "b"])
    runs.flush()


@pytest.mark.parametrize("window_bytes", [1, 5000])
def test_how_much_is_read_at_once_changes_nothing(tmp_path, monkeypatch, window_bytes):
    exchange, _ = gathered(tmp_path, write_runs(tmp_path, range(500), 12_000))
    expected = read_range(exchange, 0, KEYS, SCHEMA).to_pylist()
    monkeypatch.setattr(exchanges, "_WINDOW_BYTES", window_bytes)
    monkeypatch.setattr(exchanges, "_CHUNK_BYTES", window_bytes)
    monkeypatch.setattr(exchanges, "_INDEX_BYTES", 100_000)
    assert read_range(exchange, 0, KEYS, SCHEMA).to_pylist() == expected
    again, totals = gathered(tmp_path, write_runs(tmp_path, range(500), 12_000))
    assert len(totals.rows) == BUCKETS and sum(totals.rows) == 500
    assert read_range(again, 0, KEYS, SCHEMA).to_pylist() == expected


def test_ranges_are_read_from_an_object_store(tmp_path, monkeypatch):
    """Of many files at once, and each is that of its place."""
    (tmp_path / "s3" / "bucket").mkdir(parents=True)
    given = write_runs(tmp_path / "s3" / "bucket", range(400), 12_000)
    expected = read_range(gathered(tmp_path / "s3" / "bucket", given)[0], 0, KEYS, SCHEMA)
    server = ObjectStore(tmp_path / "s3")
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    server.start()
    try:
        store = Store("s3://bucket", str(tmp_path / "cache"))
        given = [one._replace(file=store.file(one.file.name)) for one in given]
        index = store.file("remote.index")
        exchange = Exchange(index, len(given), gather_task(given, index).index_bytes)
        assert len(given) > 3
        assert read_range(exchange, 0, KEYS, SCHEMA) == expected
        half = read_range(exchange, 0, KEYS // 2, SCHEMA)
        assert half["row"].to_pylist() == [
            row["row"] for row in expected.to_pylist() if row["key"] < KEYS // 2
        ]
    finally:
        server.kill()


def test_a_range_reads_its_own_bytes_alone(tmp_path, monkeypatch):
    exchange, totals = gathered(tmp_path, write_runs(tmp_path, range(2000), 40_000))
    read = []
    plain = exchanges.StoredFile.read

    def counted(file, ranges):
        if file.name.endswith(".run"):
            read.append(sum(end - start for start, end in ranges))
        return plain(file, ranges)

    monkeypatch.setattr(exchanges.StoredFile, "read", counted)
    for first in (0, 700):
        read.clear()
        width = KEYS // BUCKETS
        assert len(read_range(exchange, first * width, (first + 64) * width, SCHEMA)) > 20
        assert sum(read) == sum(totals.size_bytes[first : first + 64])
        assert len(read) <= exchange.files


@pytest.mark.parametrize("parts", [1, 3, 1000])
def test_key_ranges_cover_every_key_once(parts):
    ranges = key_ranges(parts)
    assert len(ranges) == parts
    assert ranges[0][0] == 0 and ranges[-1][1] == KEYS
    assert all(a[1] == b[0] for a, b in pairwise(ranges))


def test_a_partition_that_is_too_large_is_split(tmp_path):
    sizes = [0] * BUCKETS
    sizes[5], sizes[BUCKETS - 1] = 250, 101
    ranges = partition_ranges(sizes, 4, 100)
    assert len(ranges) == 3 + 1 + 1 + 2
    assert ranges[0][0] == 0 and ranges[-1][1] == KEYS
    assert all(a[1] == b[0] for a, b in pairwise(ranges))
    exchange, totals = gathered(tmp_path, write_runs(tmp_path, range(1000)))
    # A bucket of several records in pieces of the size of one.
    bucket = int(np.argmax(totals.size_bytes))
    assert totals.rows[bucket] > 2
    width = KEYS // BUCKETS
    ranges = partition_ranges(totals.size_bytes, BUCKETS, 100)
    pieces = [r for r in ranges if bucket * width <= r[0] < (bucket + 1) * width]
    assert len(pieces) == -(-totals.size_bytes[bucket] // 100) > 2
    rows = [r for keys in pieces for r in read_range(exchange, *keys, SCHEMA)["row"].to_pylist()]
    whole = read_range(exchange, bucket * width, (bucket + 1) * width, SCHEMA)
    assert sorted(rows) == sorted(whole["row"].to_pylist()) and len(rows) == totals.rows[bucket]


def test_the_key_depends_on_both_texts_their_order_and_the_seed():
    a, b = text_hash("a"), text_hash("b")
    keys = [shuffle_keys([q], [p], seed)[0] for q, p, seed in ((a, b, 0), (b, a, 0), (a, b, 1))]
    assert len({*keys, *shuffle_keys([a, a], [a, b], 0).tolist()}) == 4
    assert shuffle_keys([a], [b], -1) == shuffle_keys([a], [b], KEYS - 1)


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
        (5, "q0 p0 q1 p1 q2"),
        (1, "q0"),
    ],
)
def test_training_texts_are_the_first_of_the_shuffle(tmp_path, most, expected):
    partitions = []
    # The first row is no training record.
    for part, numbers in enumerate(((9, 0), (9, 1, 2, 3))):
        texts = {name: [f"{name[0]}{i}" for i in numbers] for name in ("query", "positive")}
        table = pa.table(texts | {f"{name}_hash": texts[name] for name in texts})
        made = [StoredFile.at(tmp_path / f"{part}.{ending}") for ending in ("arrow", "rows")]
        write_table(table, made[0])
        write_rows(np.arange(1, len(numbers)), made[1])
        partitions.append(Partition(*made))
    # The second is not opened where the first has enough.
    needed = partitions_needed([1, 3], most)
    assert needed == (1 if most == 1 else 2)
    assert list(training_texts(partitions[:needed], most)) == expected.split()
