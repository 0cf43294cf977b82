"""Small files that unpack to far more than the memory: read in a process that may not have it."""

import gzip
import itertools
import json
import os
import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from jina_jax.config import SourceConfig
from jina_jax.errors import UserError
from jina_jax.sources.read import read_source
from jina_jax.types import Pair
from tests.marks import some_slow

LIMIT_MIB = 512
"""Beyond what the imports took: of anonymous memory, which the kernel refuses to exceed."""

CHILD = """
import collections, json, re, resource, sys
from jina_jax.config import SourceConfig
from jina_jax.sources.read import read_source
from jina_jax.types import BadRecord

status = open("/proc/self/status").read()
held = int(re.search(r"VmData:\\s+(\\d+)", status)[1]) * 1024
limit = held + {limit} * 2**20
resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
found = collections.Counter()
rows = []
for record in read_source(SourceConfig("s", sys.argv[2], (sys.argv[1],))):
    found[record.reason if isinstance(record, BadRecord) else "pair"] += 1
    rows = [*rows, record.origin.row][-1:]
print(json.dumps([found, rows]))
"""


def read(path, kind="jsonl"):
    """Kinds of records and how many, and the last one's row, from a process with little memory."""
    command = [sys.executable, "-c", CHILD.replace("{limit}", str(LIMIT_MIB))]
    done = subprocess.run(
        [*command, str(path), kind],
        capture_output=True,
        text=True,
        check=False,
        # Arrow's own allocator reserves a GiB ahead.
        env=os.environ | {"ARROW_DEFAULT_MEMORY_POOL": "system"},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


def pack(suffix, parts, path):
    """Packs parts one after another, without holding them."""
    with gzip.open(path, "wb", 1) if suffix == ".gz" else zstandard.open(path, "wb") as file:
        for part in parts:
            file.write(part)
    return path


@pytest.mark.parametrize(
    ("suffix", "byte"),
    some_slow(
        [(".gz", b"x"), (".zst", b"[")],
        itertools.product([".gz", ".zst"], [b" ", b"x", b"["]),
    ),
)
def test_a_line_of_768_mib_in_a_small_file(tmp_path, suffix, byte):
    parts = [byte * (1 << 26)] * 12 + [b"\n" + b'{"query": "q", "positive": "p"}\n']
    path = pack(suffix, parts, tmp_path / f"a.jsonl{suffix}")
    assert path.stat().st_size < 4 << 20
    assert read(path) == [{"too_long": 1, "pair": 1}, [2]]


@pytest.mark.parametrize("suffix", some_slow([".zst"], [".gz", ".zst"]))
def test_lines_that_are_each_short_enough_but_many(tmp_path, suffix):
    line = json.dumps({"query": "x" * (14 << 20), "positive": "p"}).encode() + b"\n"
    path = pack(suffix, [line] * 50, tmp_path / f"a.jsonl{suffix}")
    assert read(path) == [{"pair": 50}, [50]]


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_a_table_with_cells_that_are_each_short_enough(tmp_path, suffix):
    row = b"q," + b"x" * (14 << 20) + b"\n"
    path = pack(suffix, [b"query,positive\n", *[row] * 50], tmp_path / f"a.csv{suffix}")
    assert read(path, "csv") == [{"pair": 50}, [51]]


def test_a_quote_that_is_never_closed(tmp_path):
    path = pack(
        ".gz", [b'query,positive\n"', *[b"x" * 1000 + b"\n"] * 50_000], tmp_path / "a.csv.gz"
    )
    found, _ = read(path, "csv")
    assert found["malformed_row"] >= 1 and "pair" not in found


@pytest.mark.parametrize("is_dictionary", [True, False])
def test_a_column_that_names_one_long_text_in_every_row(tmp_path, is_dictionary):
    texts = pa.DictionaryArray.from_arrays(pa.array([0] * 100, pa.int32()), ["x" * (8 << 20)])
    path = tmp_path / "a.parquet"
    table = pa.table({"query": texts, "positive": ["p"] * 100})
    pq.write_table(table, path, compression="zstd", store_schema=is_dictionary)
    assert path.stat().st_size < 10_000
    assert read(path, "parquet") == [{"pair": 100}, [100]]


def test_cells_of_a_table_longer_than_a_line_may_be(tmp_path):
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"query": ["x" * (17 << 20), "q"], "positive": ["p", "p"]}), path)
    assert read(path, "parquet") == [{"too_long": 1, "pair": 1}, [2]]


def source(*paths, kind="jsonl", **more):
    return SourceConfig("s", kind, tuple(map(str, paths)), **more)


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.parquet", "a.jsonl.gz", "a.jsonl.zst"])
def test_an_empty_file_is_named(tmp_path, name):
    (tmp_path / name).write_bytes(b"")
    kind = name.split(".")[1]
    with pytest.raises(UserError, match=name.replace(".", r"\.")):
        list(read_source(source(tmp_path / name, kind=kind)))


def test_links_of_a_glob_may_not_lead_out_of_its_folder(tmp_path):
    """An unpacked archive can hold a link to any file of this machine."""
    folder = tmp_path / "raw"
    folder.mkdir()
    (tmp_path / "secret.jsonl").write_text('{"query": "q", "positive": "secret"}\n')
    (folder / "a.jsonl").write_text('{"query": "q", "positive": "p"}\n')
    (folder / "b.jsonl").symlink_to(folder / "a.jsonl")
    got = list(read_source(source(folder / "*.jsonl")))
    assert [type(r) for r in got] == [Pair, Pair]
    (folder / "c.jsonl").symlink_to(tmp_path / "secret.jsonl")
    with pytest.raises(UserError, match=r"c\.jsonl is a link that leads out of .*raw"):
        list(read_source(source(folder / "*.jsonl")))
    # Who names the link itself means it.
    assert next(iter(read_source(source(folder / "c.jsonl")))).positive == "secret"


def test_a_pipe_is_no_file(tmp_path):
    os.mkfifo(tmp_path / "a.jsonl")
    with pytest.raises(UserError, match="matches no file"):
        list(read_source(source(tmp_path / "a.jsonl")))
