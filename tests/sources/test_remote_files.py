"""Sources on file systems of fsspec, and what is fetched of a large file there."""

import dataclasses
import gzip
import itertools
import json

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from fsspec.implementations.memory import MemoryFileSystem
from fsspec.spec import AbstractBufferedFile

from jina_jax.config import SourceConfig
from jina_jax.errors import UserError
from jina_jax.prepare.ingest import BLOCK_BYTES, plan_blocks, read_block
from jina_jax.sources.read import read_source, with_fields
from jina_jax.system.files import file_state, find_files
from jina_jax.types import Origin, Pair
from tests.pairs import config, files, pair, run

PACKERS = {"": bytes, ".gz": gzip.compress, ".zst": zstandard.compress}
_FOLDERS = itertools.count()


def _jsonl(queries):
    return "".join(json.dumps({"query": q, "positive": "p"}) + "\n" for q in queries).encode()


def _delimited(delimiter):
    return lambda queries: "".join(
        f"{delimiter.join(row)}\n" for row in [("query", "positive"), *((q, "p") for q in queries)]
    ).encode()


def _parquet(queries):
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"query": queries, "positive": ["p"] * len(queries)}), sink)
    return sink.getvalue().to_pybytes()


def _text(queries):
    return "".join(f"#Q {q}\n^ p\n\n" for q in queries).encode()


WRITERS = {
    "jsonl": _jsonl,
    "csv": _delimited(","),
    "tsv": _delimited("\t"),
    "parquet": _parquet,
    "text": _text,
}
FIRST_ROW = {"jsonl": 1, "csv": 2, "tsv": 2, "parquet": 1, "text": 1}


@pytest.fixture(params=["file", "local", "memory"])
def folder(request, tmp_path):
    """URL of an empty folder."""
    if request.param == "memory":
        yield f"memory://folder-{next(_FOLDERS)}"
        MemoryFileSystem.store.clear()
    else:
        yield f"{request.param}://{tmp_path}"


def _put(url, content):
    with fsspec.open(url, "wb") as file:
        file.write(content)


@pytest.mark.parametrize(
    ("kind", "suffix"),
    [
        *[(kind, suffix) for kind in ("jsonl", "csv", "tsv", "text") for suffix in PACKERS],
        ("parquet", ""),
    ],
)
def test_a_glob_of_files_of_every_kind(folder, kind, suffix):
    for name, queries in (("b", ["three", "four"]), ("a", ["one", "two"]), ("other", ["no"])):
        _put(f"{folder}/{name}.{kind}{suffix}", PACKERS[suffix](WRITERS[kind](queries)))
    extractor = "opentrivia" if kind == "text" else ""
    source = SourceConfig("s", kind, (f"{folder}/[ab].{kind}{suffix}",), extractor=extractor)
    got = list(read_source(source))
    assert [r.query for r in got] == ["one", "two", "three", "four"]
    assert all(isinstance(r, Pair) and r.positive == "p" for r in got)
    # The name that the records bear can be read again, alone.
    (again, *_) = read_source(dataclasses.replace(source, paths=(got[2].origin.file,)))
    assert again == Pair("three", "p", Origin(got[2].origin.file, FIRST_ROW[kind]))


def test_sources_of_urls_give_the_shards_of_local_files(folder, tmp_path):
    local = tmp_path / "here"
    local.mkdir()
    for name, numbers in (("a", range(200)), ("b", range(150, 400))):
        content = "".join(json.dumps(pair(i)) + "\n" for i in numbers).encode()
        (local / f"{name}.jsonl").write_bytes(content)
        _put(f"{folder}/remote/{name}.jsonl", content)
    settings = config(local / "a.jsonl", local / "b.jsonl")
    run(settings, tmp_path / "expected")
    sources = tuple(
        dataclasses.replace(s, paths=(f"{folder}/remote/{s.name}.json*",)) for s in settings.sources
    )
    run(dataclasses.replace(settings, sources=sources), tmp_path / "out")
    for part in ("train", "eval", "tokenizer"):
        assert files(tmp_path / "out" / part) == files(tmp_path / "expected" / part) != {}


def test_a_changed_file_has_another_stamp(folder):
    url = f"{folder}/a.jsonl"
    _put(url, b"1\n")
    (path,) = find_files(url)
    before = file_state(path)
    assert before.size_bytes == 2 and before == file_state(path)
    _put(url, b"2\n")
    assert file_state(path) != before


class _RangeFile(AbstractBufferedFile):
    """Reads as files of s3fs and gcsfs do: through the cache of fsspec."""

    DEFAULT_BLOCK_SIZE = 50 << 20

    def _fetch_range(self, start, end):
        self.fs.fetched.append((start, end))
        return self.fs.store[self.path].getvalue()[start:end]


class RangeStore(MemoryFileSystem):
    """A store that hands out ranges and writes down which."""

    protocol = "ranges"
    store: dict = {}  # noqa: RUF012
    fetched: list = []  # noqa: RUF012

    def _open(self, path, mode="rb", block_size=None, **options):
        if mode != "rb":
            return super()._open(path, mode, **options)
        return _RangeFile(self, path, mode, block_size or "default", size=self.info(path)["size"])


def test_a_large_remote_file_is_fetched_in_the_parts_that_tasks_read(monkeypatch):
    fsspec.register_implementation("ranges", RangeStore, clobber=True)
    monkeypatch.setattr(RangeStore, "store", {})
    padding = "x" * 10_000
    content = "".join(
        json.dumps({"query": f"{i}", "positive": padding}) + "\n" for i in range(4500)
    )
    _put("ranges://bucket/a.jsonl", content.encode())
    source = with_fields(SourceConfig("s", "jsonl", ("ranges://bucket/*.jsonl",)))
    blocks = plan_blocks([source])
    assert [block.start for block in blocks] == [0, BLOCK_BYTES, 2 * BLOCK_BYTES]
    queries = []
    for block in blocks:
        monkeypatch.setattr(RangeStore, "fetched", fetched := [])
        for chunk in read_block(source, block):
            queries += chunk.texts[0]
        # The line that goes on after the block, the end of the one before, and what is read ahead.
        size_bytes, spare_bytes = block.end - block.start, 3 << 20
        assert size_bytes - 20_000 < sum(end - start for start, end in fetched)
        assert sum(end - start for start, end in fetched) < size_bytes + spare_bytes
        assert max(end - start for start, end in fetched) < spare_bytes
        assert fetched[0][0] == max(block.start - 1, 0)
    assert queries == [f"{i}" for i in range(4500)]


class _NoCredentialsError(Exception):
    """As botocore raises it: no OSError."""


def test_a_store_that_refuses_is_named_with_its_reason(monkeypatch):
    def refuse(*_, **__):
        raise _NoCredentialsError("Unable to locate credentials")

    fsspec.register_implementation("ranges", RangeStore, clobber=True)
    _put("ranges://bucket/a.jsonl", b'{"query": "a", "positive": "b"}\n')
    monkeypatch.setattr(RangeStore, "_open", refuse)
    source = SourceConfig("s", "jsonl", ("ranges://bucket/a.jsonl",))
    with pytest.raises(UserError, match=r"cannot read ranges://.*Error: Unable to locate cred"):
        list(read_source(source))
    monkeypatch.setattr(RangeStore, "info", refuse)
    with pytest.raises(UserError, match=r"ranges://bucket/a.jsonl cannot be read: _NoCred"):
        file_state("ranges://bucket/a.jsonl")
    monkeypatch.setattr(RangeStore, "glob", refuse)
    with pytest.raises(UserError, match=r"ranges://bucket/\* cannot be listed: _NoCred"):
        find_files("ranges://bucket/*")


def test_what_no_library_reads_is_refused():
    with pytest.raises(UserError, match="nowhere://bucket/a cannot be read: Protocol not known"):
        find_files("nowhere://bucket/a")
