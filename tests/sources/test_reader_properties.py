"""What is written is read, in the same order, however the file is packed, quoted or divided."""

import csv
import gzip
import io
import json
from pathlib import Path
from tempfile import TemporaryDirectory

import pyarrow as pa
import pyarrow.parquet as pq
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from jina_jax.config import SourceConfig
from jina_jax.errors import UserError
from jina_jax.sources.fields import Fields
from jina_jax.sources.lines import read_lines
from jina_jax.sources.read import read_source
from jina_jax.sources.records import read_jsonl
from jina_jax.types import BadRecord

FIELDS = ("query", "positive")
texts = st.text(max_size=12)
pairs = st.lists(st.tuples(texts, texts), min_size=1, max_size=12)
# A table's lines end with a newline alone in both directions.
cells = st.text(st.characters(codec="utf-8", exclude_characters="\r\0"), max_size=12)
quick = settings(deadline=None, max_examples=60)


def read(content, kind, ending):
    with TemporaryDirectory() as folder:
        path = Path(folder) / f"a{ending}"
        path.write_bytes(content)
        return list(read_source(SourceConfig("s", kind, (str(path),))))


def lines_of(rows, *, ascii_only=False):
    return b"".join(
        json.dumps(dict(zip(FIELDS, row)), ensure_ascii=ascii_only).encode() + b"\n" for row in rows
    )


@quick
@given(pairs, st.booleans(), st.sampled_from(["", ".gz", ".zst"]))
def test_json_lines(rows, ascii_only, suffix):
    pack = {"": bytes, ".gz": gzip.compress, ".zst": zstandard.compress}[suffix]
    got = read(pack(lines_of(rows, ascii_only=ascii_only)), "jsonl", f".jsonl{suffix}")
    assert [(r.query, r.positive, r.origin.row) for r in got] == [
        (*row, i) for i, row in enumerate(rows, 1)
    ]


@quick
@given(st.lists(st.tuples(cells, cells), min_size=1, max_size=12), st.sampled_from(",\t"))
def test_tables(rows, delimiter):
    out = io.StringIO(newline="")
    csv.writer(out, delimiter=delimiter, quoting=csv.QUOTE_ALL).writerows([FIELDS, *rows])
    kind = "csv" if delimiter == "," else "tsv"
    got = read(out.getvalue().encode(), kind, f".{kind}")
    assert [(r.query, r.positive) for r in got] == rows


@quick
@given(pairs, st.integers(1, 5))
def test_parquet(rows, group):
    out = io.BytesIO()
    table = pa.table({name: list(column) for name, column in zip(FIELDS, zip(*rows))})
    pq.write_table(table, out, row_group_size=group)
    got = read(out.getvalue(), "parquet", ".parquet")
    assert [(r.query, r.positive, r.origin.row) for r in got] == [
        (*row, i) for i, row in enumerate(rows, 1)
    ]


@quick
@given(pairs, st.lists(st.integers(0, 400), max_size=4))
def test_parts_of_a_file_hold_each_line_once(rows, cuts):
    with TemporaryDirectory() as folder:
        path = Path(folder) / "a.jsonl"
        path.write_bytes(lines_of(rows))
        ends = sorted({0, *(cut for cut in cuts if cut < path.stat().st_size)})
        parts = zip(ends, [*ends[1:], None])
        chunks = [chunk for part in parts for chunk in read_jsonl(str(path), Fields(FIELDS), *part)]
    found = [pair for chunk in chunks for pair in zip(*chunk.texts)]
    assert found == rows and not any(chunk.bad for chunk in chunks)


@quick
@given(st.lists(st.binary(max_size=40).filter(lambda b: b"\n" not in b), max_size=8), st.data())
def test_a_packed_file_cut_anywhere_gives_the_lines_before_the_cut(parts, data):
    whole = b"".join(part + b"\n" for part in parts)
    packed = gzip.compress(whole)
    cut = data.draw(st.integers(1, len(packed)))
    with TemporaryDirectory() as folder:
        path = Path(folder) / "a.gz"
        path.write_bytes(packed[:cut])
        got, whole = [], True
        try:
            got.extend(line for _, line in read_lines(str(path)))
        except UserError:
            whole = False
    expected = [p.removeprefix(b"\xef\xbb\xbf") if i == 0 else p for i, p in enumerate(parts)]
    assert whole == (cut == len(packed))
    assert got == expected[: len(got) if not whole else None]


@quick
@given(st.binary(max_size=200))
def test_any_bytes_are_records_or_counted(content):
    got = read(content + b'\n{"query": "q", "positive": "p"}\n', "jsonl", ".jsonl")
    assert got[-1][:2] == ("q", "p")
    assert all(isinstance(r, BadRecord) or all(isinstance(t, str) for t in r[:2]) for r in got)
