import gzip
import json
import os
import re
import tracemalloc
from dataclasses import replace

import pytest
import zstandard

from jina_jax.config import SourceConfig
from jina_jax.errors import UserError
from jina_jax.sources import lines
from jina_jax.sources.read import read_source
from jina_jax.types import BadRecord, Origin, Pair


def line(query, positive="p") -> bytes:
    return json.dumps({"query": query, "positive": positive}).encode() + b"\n"


def source(*paths, kind="jsonl", **more):
    return SourceConfig("s", kind, tuple(str(p) for p in paths), **more)


def outcome(records):
    """(row, query) of a pair, (row, reason) of a bad record."""
    return [(r.origin.row, r.query if isinstance(r, Pair) else r.reason) for r in records]


def test_a_pair_has_the_texts_as_given_and_its_line(tmp_path):
    file = tmp_path / "a.jsonl"
    file.write_bytes(b'\n{"q": " A\\n", "p": "\xc3\xa9", "more": 1}\r\n')
    got = list(read_source(source(file, query_field="q", positive_field="p")))
    assert got == [Pair(" A\n", "é", Origin(str(file), 2))]


def test_every_kind_of_bad_line_is_reported_with_its_number_and_passed_over(tmp_path):
    file = tmp_path / "a.jsonl"
    file.write_bytes(
        b"\xef\xbb\xbf" + line("one")
        + b'{"query": "x", \n'
        + b'{"query": "x"}\n'
        + b'{"query": null, "positive": "p"}\n'
        + b"   \n"
        + b'{"query": 3, "positive": "p"}\n'
        + b'["query"]\n'
        + b'{"query": "\xff", "positive": "p"}\n'
        + b'{"query": "\\ud800", "positive": "p"}\n'
        + b"[" * 100_000 + b"\n"
        + line("last").rstrip()
    )  # fmt: skip
    assert outcome(read_source(source(file))) == [
        (1, "one"),
        (2, "malformed_json"),
        (3, "missing_field"),
        (4, "missing_field"),
        (6, "wrong_type"),
        (7, "wrong_type"),
        (8, "invalid_utf8"),
        (9, "invalid_utf8"),
        (10, "malformed_json"),
        (11, "last"),
    ]


def test_a_missing_field_is_named_with_those_there(tmp_path):
    file = tmp_path / "a.jsonl"
    file.write_bytes(b'{"query": "x", "answer": "y"}\n')
    (bad,) = read_source(replace(source(file), query_field="query", positive_field="positive"))
    assert isinstance(bad, BadRecord)
    assert "'positive'" in bad.detail and "query, answer" in bad.detail


@pytest.mark.parametrize(
    "name, pack",
    [("a.jsonl.gz", gzip.compress), ("a.jsonl.zst", zstandard.compress)],
    ids=["gzip", "zstd"],
)
class TestCompressed:
    def test_members_follow_one_another(self, tmp_path, name, pack):
        file = tmp_path / name
        # The newline of "two" comes with the second member.
        file.write_bytes(pack(line("one") + line("two")[:-1]) + pack(b"\n" + line("three")))
        assert outcome(read_source(source(file))) == [(1, "one"), (2, "two"), (3, "three")]

    def test_half_a_file_is_refused_by_the_line_where_it_ends(self, tmp_path, name, pack):
        file = tmp_path / name
        # Random text, so that the cut falls inside the data of the second half.
        text = b"".join(line(os.urandom(100).hex()) for _ in range(5000))
        file.write_bytes(pack(text)[: len(pack(text)) * 3 // 4])
        with pytest.raises(UserError, match="it ends in the middle of what is compressed") as found:
            list(read_source(source(file)))
        (last,) = re.findall(rf"{file} is damaged after line ([\d,]+): ", str(found.value))
        assert 2000 < int(last.replace(",", "")) < 5000

    def test_what_is_not_packed_is_refused_by_name(self, tmp_path, name, pack):
        (tmp_path / f"0{name}").write_bytes(pack(line("good")))
        (tmp_path / f"1{name}").write_bytes(b"this is not packed")
        with pytest.raises(UserError, match=rf"1{name} is damaged after line 0: .* unpacked"):
            list(read_source(source(tmp_path / f"*{name}")))


def test_gzip_may_be_padded_with_zeros(tmp_path):
    file = tmp_path / "a.jsonl.gz"
    file.write_bytes(gzip.compress(line("one")) + bytes(600))
    assert outcome(read_source(source(file))) == [(1, "one")]


def test_a_line_without_end_is_passed_over(tmp_path, monkeypatch):
    monkeypatch.setattr(lines, "MAX_LINE_BYTES", 100_000)
    file = tmp_path / "a.jsonl"
    file.write_bytes(line("one") + b"x" * 1_000_000 + b"\n" + line("three"))
    assert outcome(read_source(source(file))) == [(1, "one"), (2, "too_long"), (3, "three")]


def test_a_line_without_end_is_not_held(tmp_path, monkeypatch):
    monkeypatch.setattr(lines, "MAX_LINE_BYTES", 100_000)
    (tmp_path / "a.jsonl").write_bytes(b"x" * 10_000_000)
    tracemalloc.start()
    assert outcome(read_source(source(tmp_path / "a.jsonl"))) == [(1, "too_long")]
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak_bytes < 2_000_000


def test_lines_longer_than_a_chunk_are_whole(tmp_path):
    file = tmp_path / "a.jsonl"
    file.write_bytes(line("x" * 200_000) + line("y" * 65_536))
    assert outcome(read_source(source(file))) == [(1, "x" * 200_000), (2, "y" * 65_536)]


def test_globs_are_sorted_and_no_file_is_read_twice(tmp_path):
    for name in ("b", "a", "c"):
        (tmp_path / f"{name}.jsonl").write_bytes(line(name))
    (tmp_path / "[1].jsonl").write_bytes(line("bracket"))
    (tmp_path / "folder.jsonl").mkdir()
    got = read_source(source(tmp_path / "[1].jsonl", tmp_path / "c.jsonl", tmp_path / "?.jsonl"))
    assert [r.query for r in got] == ["bracket", "c", "a", "b"]


def test_limit_counts_bad_records_too(tmp_path):
    file = tmp_path / "a.jsonl"
    file.write_bytes(line("one") + b"{\n" + line("three"))
    assert outcome(read_source(source(file, limit=2))) == [(1, "one"), (2, "malformed_json")]


@pytest.mark.parametrize("missing", ["none.jsonl", "none-*.jsonl"])
def test_a_path_that_matches_nothing_is_named(tmp_path, missing):
    (tmp_path / "a.jsonl").write_bytes(line("one"))
    with pytest.raises(UserError, match=r"'s'.*none.*matches no file"):
        list(read_source(source(tmp_path / "a.jsonl", tmp_path / missing)))


def test_a_source_without_a_record_is_an_error(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b"\n  \n")
    with pytest.raises(UserError, match=r"'s' is empty.*a\.jsonl"):
        list(read_source(source(tmp_path / "a.jsonl")))
