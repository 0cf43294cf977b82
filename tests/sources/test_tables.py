import gzip
import random
import string

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jina_jax.config import SourceConfig
from jina_jax.errors import UserError
from jina_jax.sources.read import read_source
from jina_jax.types import Origin, Pair


def read(path, kind, **more):
    return list(read_source(SourceConfig("s", kind, (str(path),), **more)))


def outcome(records):
    return [(r.origin.row, r.query if isinstance(r, Pair) else r.reason) for r in records]


def test_csv_follows_rfc_4180(tmp_path):
    file = tmp_path / "a.csv"
    file.write_bytes(
        b'\xef\xbb\xbfid,positive,query\r\n1,"two\r\nlines","say ""hi"", all"\r\n\r\n2,b,a\r\n'
    )
    assert read(file, "csv") == [
        Pair('say "hi", all', "two\r\nlines", Origin(str(file), 2)),
        Pair("a", "b", Origin(str(file), 5)),
    ]


def test_bad_rows_are_reported_with_the_line_they_start_on(tmp_path):
    file = tmp_path / "a.csv"
    file.write_bytes(
        b"query,positive\n"
        b"one,p\n"
        b"too,many,cells\n"
        b"few\n"
        b'"bad" quote,p\n'
        b"six,\xff\n"
        b'seven,"a\nb"\n'
        b"nine,p\n"
        b'"open,p\n'
    )
    assert outcome(read(file, "csv")) == [
        (2, "one"),
        (3, "wrong_column_count"),
        (4, "wrong_column_count"),
        (5, "malformed_row"),
        (6, "invalid_utf8"),
        (7, "seven"),
        (9, "nine"),
        (10, "malformed_row"),
    ]


def test_tsv_is_split_at_tabs_and_may_be_compressed(tmp_path):
    file = tmp_path / "a.tsv.gz"
    file.write_bytes(gzip.compress(b"query\tpositive\na, b\tc 'd'\n"))
    assert read(file, "tsv") == [Pair("a, b", "c 'd'", Origin(str(file), 2))]


def test_half_a_table_is_refused(tmp_path):
    file = tmp_path / "a.csv.gz"
    # Random letters hardly pack, so that the cut falls into the second row.
    cell = "".join(random.Random(0).choices(string.ascii_letters + "\n", k=100_000))
    packed = gzip.compress(f'query,positive\none,p\n"{cell}",p\n'.encode())
    file.write_bytes(packed[: len(packed) // 2])
    with pytest.raises(UserError, match=r"a\.csv\.gz is damaged after line \d+: it ends in"):
        read(file, "csv")


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_a_missing_column_is_named_with_those_there(tmp_path, kind):
    file = tmp_path / f"a.{kind}"
    if kind == "csv":
        file.write_text("query,answer\na,b\n")
    else:
        pq.write_table(pa.table({"query": ["a"], "answer": ["b"]}), file)
    with pytest.raises(UserError, match=r"no column 'positive'.*query, answer"):
        read(file, kind, query_field="query", positive_field="positive")


def test_parquet_cells_of_every_kind(tmp_path):
    file = tmp_path / "a.parquet"
    not_utf8 = pa.Array.from_buffers(
        pa.string(), 1, pa.array([b"\xff"], pa.binary()).buffers()
    )  # fmt: skip
    queries = pa.chunked_array([pa.array(["a", None, "c"]), not_utf8, pa.array(["e"])])
    pq.write_table(pa.table({"query": queries, "positive": ["p", "p", None, "p", "p"]}), file)
    got = read(file, "parquet")
    assert outcome(got) == [
        (1, "a"),
        (2, "missing_field"),
        (3, "missing_field"),
        (4, "invalid_utf8"),
        (5, "e"),
    ]
    assert got[0] == Pair("a", "p", Origin(str(file), 1))


def test_parquet_rows_are_numbered_through_batches(tmp_path):
    file = tmp_path / "a.parquet"
    texts = [str(i) for i in range(3000)]
    table = pa.table({"query": pa.array(texts).dictionary_encode(), "positive": texts})
    pq.write_table(table, file, row_group_size=700)
    assert outcome(read(file, "parquet")) == [(i + 1, str(i)) for i in range(3000)]


def test_parquet_cells_that_are_no_text(tmp_path):
    file = tmp_path / "a.parquet"
    pq.write_table(pa.table({"query": [1, None], "positive": ["p", "p"]}), file)
    assert outcome(read(file, "parquet")) == [(1, "wrong_type"), (2, "missing_field")]


@pytest.mark.parametrize("damage", ["not parquet", "cut", "flipped"])
def test_damaged_parquet_names_the_file(tmp_path, damage):
    file = tmp_path / "a.parquet"
    pq.write_table(pa.table({"query": ["q"] * 5000, "positive": ["p"] * 5000}), file)
    content = bytearray(file.read_bytes())
    if damage == "cut":
        del content[len(content) // 2 :]
    elif damage == "flipped":
        content[4:60] = bytes(56)
    else:
        content = bytearray(b"no table at all")
    file.write_bytes(content)
    with pytest.raises(UserError, match=r"a\.parquet cannot be read as Parquet"):
        read(file, "parquet")
