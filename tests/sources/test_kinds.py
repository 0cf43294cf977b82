"""The formats of files: by their endings, packed or not, as folders, and when they don't fit."""

import gzip
import json

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from jina_jax.config import SourceConfig, StsSet
from jina_jax.errors import UserError
from jina_jax.evaluate.sts import read_sts
from jina_jax.prepare.ingest import plan_blocks, read_block
from jina_jax.sources import kinds
from jina_jax.sources.chunks import flattened
from jina_jax.sources.kinds import looks_like
from jina_jax.sources.read import read_source
from jina_jax.types import BadRecord, Pair, Triplet
from tests.pairs import config, run

ROWS = [{"query": f"q {i}", "positive": f'the "{i}"\nÄ'} for i in range(5)]
TEXTS = [(row["query"], row["positive"]) for row in ROWS]


def arrow(rows, kind=pa.ipc.new_stream):
    table, sink = pa.Table.from_pylist(rows), pa.BufferOutputStream()
    with kind(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=2)
    return sink.getvalue().to_pybytes()


def parquet(rows):
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rows), sink, row_group_size=2)
    return sink.getvalue().to_pybytes()


def delimited(rows, delimiter):
    quoted = ((cell.replace('"', '""') for cell in row.values()) for row in rows)
    lines = [delimiter.join(rows[0])] + [delimiter.join(f'"{c}"' for c in row) for row in quoted]
    return "\n".join(lines).encode()


def lines(rows):
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


WRITTEN = {
    "a.jsonl": lines(ROWS),
    "a.ndjson": lines(ROWS),
    "lines.json": lines(ROWS),
    "array.json": json.dumps(ROWS, indent=2).encode(),
    "dense.JSON": b"\xef\xbb\xbf" + json.dumps(ROWS).encode(),
    "a.csv": delimited(ROWS, ","),
    "a.tsv": delimited(ROWS, "\t"),
    "a.parquet": parquet(ROWS),
    "stream.arrow": arrow(ROWS),
    "file.arrow": arrow(ROWS, pa.ipc.new_file),
}
PACKED = {"": bytes, ".gz": gzip.compress, ".zst": zstandard.compress}


def pairs(*paths, **more):
    source = SourceConfig("s", paths=tuple(map(str, paths)), **more)
    found = list(read_source(source))
    # Preparation reads it by blocks.
    by_block = [
        item
        for block in plan_blocks([source])
        for chunk in read_block(source, block)
        for item in flattened(chunk)
    ]
    assert list(map(without_origin, by_block)) == list(map(without_origin, found))
    return found


def without_origin(item):
    return tuple(item._replace(origin=None))


@pytest.mark.parametrize("packing", PACKED)
@pytest.mark.parametrize("name", WRITTEN)
def test_the_format_follows_the_ending(tmp_path, name, packing):
    path = tmp_path / f"{name}{packing}"
    path.write_bytes(PACKED[packing](WRITTEN[name]))
    assert [item.texts for item in pairs(path)] == TEXTS
    rows = pairs(path)
    assert all(isinstance(row, Pair) and row.origin.file == str(path) for row in rows)
    assert len({row.origin.row for row in rows}) == len(rows)


def test_a_file_of_another_ending_says_what_it_looks_like(tmp_path):
    for content, what in {
        lines(ROWS): "JSON, a record a line (kind jsonl)",
        json.dumps(ROWS).encode(): "a JSON array (kind json)",
        parquet(ROWS): "Parquet (kind parquet)",
        arrow(ROWS): "Arrow (kind arrow)",
        arrow(ROWS, pa.ipc.new_file): "Arrow (kind arrow)",
        b"query\tpositive\n": "a table parted by tabs (kind tsv)",
        b"query,positive\n": "a table parted by commas (kind csv)",
        b"a line\n": "lines of text (kind text)",
        b"\x7fELF\x00": "no text",
    }.items():
        (tmp_path / "a.dat.gz").write_bytes(gzip.compress(content))
        with pytest.raises(UserError, match=r"a\.dat\.gz: its ending says nothing") as error:
            pairs(tmp_path / "a.dat.gz")
        assert what in str(error.value) and "Set `kind` to one of jsonl, json" in str(error.value)
    (tmp_path / "a.dat").write_bytes(lines(ROWS))
    assert len(pairs(tmp_path / "a.dat", kind="jsonl")) == 5


def test_a_format_that_does_not_fit_says_what_the_content_looks_like(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(json.dumps(ROWS, indent=1).encode())
    message = r"It was read as jsonl, and its content looks like a JSON array \(kind json\)"
    with pytest.raises(UserError, match=message):
        run(config(path), tmp_path / "out")


@pytest.mark.parametrize(
    ("name", "content", "what"),
    [
        ("a.json", b'[{"query": "q", "positive": "p"}, {"que', "as a JSON array after record 1"),
        ("a.json", b'[{"query": "\xff"}]', "as a JSON array after record 0"),
        ("a.arrow", arrow(ROWS)[:-200], "as Arrow after row"),
        ("a.arrow", b"no table", "as Arrow after row 0"),
        ("a.parquet", parquet(ROWS)[:-9], "as Parquet after row 0"),
        ("a.parquet.gz", gzip.compress(parquet(ROWS))[:-60], "is damaged: it ends in the middle"),
    ],
)
def test_a_damaged_file_is_named(tmp_path, name, content, what):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=rf"{name}.*{what}"):
        pairs(tmp_path / name)


def test_what_would_fill_a_disk_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(kinds, "_SMALL_BYTES", 1 << 20)
    path = tmp_path / "a.json.gz"
    path.write_bytes(gzip.compress(b'[{"query": "' + b" " * (1 << 25) + b'"}]'))
    with pytest.raises(UserError, match=r"a\.json\.gz unpacks to more than [\d,]+ bytes"):
        pairs(path)


def test_records_of_an_array_are_judged_one_by_one(tmp_path):
    rows = [ROWS[0], {"query": 3, "positive": "p"}, "text", {"query": "q"}, ROWS[1]]
    (tmp_path / "a.json").write_text(json.dumps(rows))
    found = pairs(tmp_path / "a.json")
    reasons = [item.reason if isinstance(item, BadRecord) else "" for item in found]
    assert reasons == ["", "wrong_type", "wrong_type", "missing_field", ""]
    assert [item.origin.row for item in found] == [1, 2, 3, 4, 5]


def test_a_table_without_a_header_is_read_by_the_numbers_of_its_columns(tmp_path):
    # As the triples of MS MARCO: a quote is a character like any other.
    (tmp_path / "a.tsv").write_text('what\'s "this\tit is "that\tno\nnext\tone "\tother\n')
    found = pairs(
        tmp_path / "a.tsv", query_field="1", positive_field="2", negative_field="3"
    )  # fmt: skip
    assert [item.texts for item in found] == [
        ('what\'s "this', 'it is "that', "no"), ("next", 'one "', "other")
    ]  # fmt: skip
    assert all(isinstance(item, Triplet) for item in found)
    assert [item.origin.row for item in found] == [1, 2]
    with pytest.raises(UserError, match="has no column '4'; its columns are: 1, 2, 3"):
        pairs(tmp_path / "a.tsv", query_field="1", positive_field="4")
    (tmp_path / "a.csv").write_text('x,"two, of them"\n')
    (row,) = pairs(tmp_path / "a.csv", query_field="2", positive_field="1")
    assert row.texts == ("two, of them", "x")


def test_of_a_folder_all_files_of_data_are_read(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "b.csv").write_bytes(delimited(ROWS[:2], ","))
    (tmp_path / "README.md").write_text("# Pairs")
    (tmp_path / "sub" / "c.jsonl.gz").write_bytes(gzip.compress(lines(ROWS[2:])))
    assert [item.texts for item in pairs(tmp_path)] == TEXTS
    (tmp_path / "sub" / "d.csv").symlink_to("/etc/passwd")
    with pytest.raises(UserError, match=r"d\.csv"):
        pairs(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"source 's': '.*empty' matches no file of data"):
        pairs(tmp_path / "empty")


def test_folders_that_datasets_saved_are_read(tmp_path):
    whole = datasets.Dataset.from_list(ROWS)
    whole.save_to_disk(str(tmp_path / "one"), num_shards=2)
    parts = datasets.DatasetDict(train=whole.select([0, 1, 2]), test=whole.select([3, 4]))
    parts.save_to_disk(str(tmp_path / "parts"))
    assert [item.texts for item in pairs(tmp_path / "one")] == TEXTS
    assert [item.texts for item in pairs(tmp_path / "parts")] == TEXTS[:3]
    assert [item.texts for item in pairs(tmp_path / "parts", split="test")] == TEXTS[3:]


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "a.tsv", "a.parquet", "a.arrow"])
def test_evaluation_sets_follow_the_ending_too(tmp_path, name):
    rows = [{"sentence1": "a", "sentence2": "b", "score": "1"},
            {"sentence1": "c", "sentence2": "d", "score": "2.5"}]  # fmt: skip
    content = {
        "a.jsonl": lines, "a.json": lambda rows: json.dumps(rows).encode(), "a.parquet": parquet,
        "a.csv": lambda rows: delimited(rows, ","), "a.tsv": lambda rows: delimited(rows, "\t"),
        "a.arrow": arrow,
    }[name](rows)  # fmt: skip
    (tmp_path / name).write_bytes(content)
    task = read_sts(StsSet("dev", (str(tmp_path / name),)))
    assert (task.left, task.right, task.score) == (["a", "c"], ["b", "d"], [1.0, 2.5])


def test_scored_pairs_of_a_table_without_a_header(tmp_path):
    (tmp_path / "a.tsv").write_text('1.0\ta "\tb\n2.5\tc\td\n')
    task = read_sts(StsSet("dev", (str(tmp_path / "a.tsv"),), fields=("2", "3", "1")))
    assert (task.left, task.right, task.score) == (['a "', "c"], ["b", "d"], [1.0, 2.5])


def test_an_empty_file_looks_like_something(tmp_path):
    (tmp_path / "a").write_bytes(b"")
    assert looks_like(str(tmp_path / "a")) == "its content looks like lines of text (kind text)"
