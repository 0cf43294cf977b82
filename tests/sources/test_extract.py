import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jina_jax.config import SourceConfig
from jina_jax.errors import UserError
from jina_jax.sources import extract
from jina_jax.sources.extract import read_extracted
from jina_jax.sources.read import read_source
from jina_jax.types import NO_PAIR, BadRecord, Origin, Pair, Triplet


def read(path, kind="jsonl", **more):
    return list(read_extracted(SourceConfig("s", kind, (str(path),), **more), [str(path)]))


def write(path, *rows):
    path.write_bytes(
        b"".join(r if isinstance(r, bytes) else json.dumps(r).encode() + b"\n" for r in rows)
    )
    return path


def nli(premise, hypothesis, label):
    return {"premise": premise, "hypothesis": hypothesis, "label": label}


def test_a_record_gives_as_many_pairs_as_it_holds_with_its_line(tmp_path):
    file = write(tmp_path / "a.jsonl", {"set": ["a", "b", "c"]}, {"set": ["d"]}, ["e", "f", "g"])
    pairs = [Pair("a", "b", Origin(str(file), 1)), Pair("a", "c", Origin(str(file), 1))]
    got = read(file, extractor="embedding_texts")
    assert got[:2] == pairs and [r.reason for r in got[2:]] == [NO_PAIR, "wrong_shape"]
    got = read(file, extractor="embedding_texts", negative_field="n")
    assert got[:2] == [Triplet(*pair[:2], "", pair.origin) for pair in pairs]
    assert got[2].reason == NO_PAIR and got[3] == Triplet("e", "f", "g", Origin(str(file), 3))


def test_bad_records_are_reported_and_passed_over(tmp_path):
    file = write(
        tmp_path / "a.jsonl",
        ["a", "b"], b"{\n", {"title": "x"}, ["a", 3], ["a", "\ud800"], b"\xff\n", ["c", "d"],
    )  # fmt: skip
    got = read(file, extractor="embedding_texts")
    assert [r.reason if isinstance(r, BadRecord) else r[0] for r in got] == [
        "a", "malformed_json", "wrong_shape", "wrong_type", "invalid_utf8", "invalid_utf8", "c",
    ]  # fmt: skip
    assert [r.origin.row for r in got] == [1, 2, 3, 4, 5, 6, 7]
    assert "KeyError: 'query'" in got[2].detail
    assert "a number, not a text" in got[3].detail


def test_groups_are_whole_whether_their_records_stand_together_or_apart(tmp_path):
    rows = [nli(p, f"{p} {label}", label) for p in "ab" for label in (0, 1, 2)]
    together = write(tmp_path / "together.jsonl", *rows)
    apart = write(tmp_path / "apart.jsonl", *rows[::2], *rows[1::2])
    expected = {("a", "a 0", "a 2"), ("b", "b 0", "b 2")}
    for file in (together, apart):
        got = read(file, extractor="nli_triplets", negative_field="n")
        assert {t[:3] for t in got} == expected and len(got) == 2


def test_a_group_has_the_place_of_its_first_record(tmp_path):
    rows = [
        nli("a", "x", 1),
        nli("b", "no", 2),
        nli("a", "yes", 0),
        nli("b", "yes", 0),
        nli("a", "no", 2),
    ]
    got = read(write(tmp_path / "a.jsonl", *rows), extractor="nli_triplets", negative_field="n")
    assert [(t.query, t.origin.row) for t in got] == [("a", 1), ("b", 2)]


def test_held_groups_are_bounded_and_the_oldest_goes_first(tmp_path, monkeypatch):
    monkeypatch.setattr(extract, "MAX_HELD_GROUPS", 2)
    rows = [row for p in "abc" for row in (nli(p, "yes", 0), nli(p, "no", 2))]
    # By the time "a" comes again its group has been given out, and this one has no contradiction.
    got = read(
        write(tmp_path / "a.jsonl", *rows, nli("a", "yes", 0)),
        extractor="nli_triplets",
        negative_field="n",
    )
    assert [t.query for t in got[:3]] == ["a", "b", "c"] and [t.reason for t in got[3:]] == [
        NO_PAIR
    ]


def test_a_group_without_end_is_cut(tmp_path, monkeypatch):
    monkeypatch.setattr(extract, "MAX_GROUP_RECORDS", 4)
    rows = [nli("a", f"{i}", 0 if i % 2 else 2) for i in range(10)]
    got = read(write(tmp_path / "a.jsonl", *rows), extractor="nli_triplets", negative_field="n")
    assert [t[1:3] for t in got] == [("1", "0"), ("3", "2"), ("5", "4"), ("7", "6"), ("9", "8")]
    assert [t.origin.row for t in got] == [1, 1, 5, 5, 9]


def test_lines_of_text_are_records(tmp_path):
    file = write(
        tmp_path / "animals",
        b"\n#Q One?\r\n^ Yes\nA No\n\n#Q Two\n^ Second\n#Q None\n\xff\n#Q 3\n^ Third",
    )  # fmt: skip
    got = read(file, "text", extractor="opentrivia")
    assert [(r[0], r[1]) if isinstance(r, Pair) else r.reason for r in got] == [
        "invalid_utf8", ("One?", "Yes"), ("Two", "Second"), "wrong_shape", ("3", "Third"),
    ]  # fmt: skip


def test_lines_end_with_or_without_a_carriage_return(tmp_path):
    (tmp_path / "a.tsv").write_bytes(b"a b\ta <::::> b\r\nc d\tc <::::> d\n")
    values = [record.value for record in extract.read_file_records(str(tmp_path / "a.tsv"), "text")]
    assert values == ["a b\ta <::::> b", "c d\tc <::::> d"]


def test_parquet_rows_may_be_nested(tmp_path):
    rows = [{"question": "q", "answer": ["a", "b"]}, {"question": "r", "answer": None}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    got = read(tmp_path / "a.parquet", "parquet", extractor="answer_list")
    assert [tuple(r[:2]) for r in got[:2]] == [("q", "a"), ("q", "b")]
    assert [r.reason for r in got[2:]] == ["wrong_shape"] and got[2].origin.row == 2


def test_without_an_extractor_fields_are_taken(monkeypatch):
    rows = [{"a": "1", "b": "2", "c": "3"}, {"a": "1", "b": None}, {"a": 1, "b": "2"}, ["a"]]
    records = [extract.Record(row, Origin("d", i)) for i, row in enumerate(rows, 1)]
    monkeypatch.setattr(extract, "read_hf", lambda source, start, end: iter(records))
    fields = {"dataset": "d", "query_field": "a", "positive_field": "b"}
    got = list(read_extracted(SourceConfig("s", "hf", **fields), ()))
    assert got[0] == Pair("1", "2", Origin("d", 1))
    assert [r.reason for r in got[1:]] == ["missing_field", "wrong_type", "wrong_type"]
    (triplet, *_) = read_extracted(SourceConfig("s", "hf", negative_field="c", **fields), ())
    assert triplet == Triplet("1", "2", "3", Origin("d", 1))


def test_read_source_takes_the_way_of_the_extractor(tmp_path):
    file = write(tmp_path / "a.jsonl", ["a", "b"], ["c", "d"])
    source = SourceConfig(
        "s", paths=(str(tmp_path / "*.jsonl"),), extractor="embedding_texts", limit=1
    )
    assert list(read_source(source)) == [Pair("a", "b", Origin(str(file), 1))]


def test_an_unknown_extractor_is_named_with_those_there(tmp_path):
    file = write(tmp_path / "a.jsonl", ["a", "b"])
    with pytest.raises(UserError, match=r"no extractor 'embeding_texts'.*embedding_texts"):
        read(file, extractor="embeding_texts")
