import json
import random
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jina_jax.config import SourceConfig
from jina_jax.errors import UserError
from jina_jax.prepare import ingest as blocks
from jina_jax.prepare.ingest import plan_blocks, read_block
from jina_jax.shards.manifest import LEDGER
from jina_jax.sources import lines
from jina_jax.sources.chunks import flattened
from jina_jax.sources.lines import Damage, read_lines
from jina_jax.sources.read import read_source
from jina_jax.types import BadRecord
from tests.pairs import config, files, pair, run, write


def cut(monkeypatch, size_bytes):
    monkeypatch.setattr(blocks, "BLOCK_BYTES", size_bytes)


def test_every_line_belongs_to_the_part_in_which_it_begins(tmp_path, monkeypatch):
    monkeypatch.setattr(lines, "_CHUNK_BYTES", 7)
    text = b"\xef\xbb\xbfone\n\ntwo\nthree is longer than a chunk\nfour\n\n\nfive"
    file = tmp_path / "a.txt"
    for content in (text, text + b"\n"):
        file.write_bytes(content)
        whole = [line for _, line in read_lines(str(file))]
        assert whole[0] == b"one"
        for size in range(1, len(content) + 3):
            parts = [
                list(read_lines(str(file), start, start + size))
                for start in range(0, len(content), size)
            ]
            assert [line for part in parts for _, line in part] == whole
            assert all([n for n, _ in part] == list(range(1, len(part) + 1)) for part in parts)


def test_a_line_that_is_too_long_is_reported_by_its_part_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(lines, "MAX_LINE_BYTES", 100_000)
    file = tmp_path / "a.txt"
    file.write_bytes(b"one\n" + b"x" * 1_000_000 + b"\nthree\n")
    parts = [list(read_lines(str(file), s, s + 300_000)) for s in range(0, 1_000_010, 300_000)]
    assert [len(part) for part in parts] == [2, 0, 0, 1]
    assert isinstance(parts[0][1][1], Damage) and parts[3] == [(1, b"three")]


@pytest.mark.parametrize("size_bytes", [1, 50, 333, 10_000])
def test_the_blocks_of_a_file_hold_its_records(tmp_path, monkeypatch, size_bytes):
    cut(monkeypatch, size_bytes)
    chance = random.Random(size_bytes)
    flaws = ["{", "", "  ", '{"query": "\\ud800", "positive": "p"}', '["query"]']
    records = [chance.choice([pair(i), pair(i), *flaws]) for i in range(100)]
    source = SourceConfig("s", paths=(str(write(tmp_path / "a.jsonl", records)),))
    got, row = [], 0
    for block in plan_blocks([source]):
        last = 0
        for chunk in read_block(source, block):
            moved = [r._replace(origin=r.origin._replace(row=r.origin.row + row)) for r in flattened(chunk)]  # noqa: E501  # fmt: skip
            got += moved
            last = chunk.last_row
        row += last
    assert row == 100
    assert got == list(read_source(source))
    assert any(isinstance(record, BadRecord) for record in got)


def test_parquet_is_cut_at_row_groups(tmp_path, monkeypatch):
    cut(monkeypatch, 3000)
    table = pa.Table.from_pylist([pair(i) for i in range(1000)])
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=30, compression="none")
    source = SourceConfig("s", "parquet", (str(tmp_path / "a.parquet"),))
    found = plan_blocks([source])
    assert 5 < len(found) < 34
    assert [b.start for b in found[1:]] == [b.end for b in found[:-1]]
    assert (found[0].start, found[-1].end) == (0, 34)


def test_what_cannot_be_cut_is_one_block_and_so_is_a_source_with_a_limit(tmp_path, monkeypatch):
    cut(monkeypatch, 10)
    csv = write(tmp_path / "a.csv", ["query,positive", *["a,b"] * 10])
    packed = tmp_path / "a.jsonl.gz"
    packed.write_bytes(b"x" * 100)
    plain = write(tmp_path / "a.jsonl", [pair(i) for i in range(9)])
    for kind, path, limit in (("csv", csv, None), ("jsonl", packed, None), ("jsonl", plain, 3)):
        assert len(plan_blocks([SourceConfig("s", kind, (str(path),), limit=limit)])) == 1
    assert len(plan_blocks([SourceConfig("s", paths=(str(plain),))])) > 9


def results(folder):
    """Every file but the ledger, and its rows. Which of its copies a duplicate names follows the
    blocks, since those of a block are found first.
    """
    found = files(folder)
    rows = pq.read_table(folder / LEDGER).to_pylist()
    return {name: found[name] for name in found if name.parts[0] != LEDGER}, sorted(
        str(r | {"detail": ""} if r["stage"] == "dedup" else r) for r in rows
    )


def test_how_the_input_is_cut_changes_no_byte(tmp_path, monkeypatch):
    """What the ledger lists, which copy stays and what is held out are those of the whole file."""
    records = [pair(i % 150) for i in range(400)] + ["{", "", {"query": "", "positive": "x"}]
    random.Random(0).shuffle(records)
    source = write(tmp_path / "a.jsonl", records)
    run(config(source), tmp_path / "whole")
    for size_bytes in (100, 2000):
        cut(monkeypatch, size_bytes)
        assert len(plan_blocks(config(source).sources)) > 10
        run(config(source), tmp_path / f"cut{size_bytes}")
        same, lost = results(tmp_path / f"cut{size_bytes}")
        assert (same, lost) == results(tmp_path / "whole")
        assert len(lost) == 252


def test_a_duplicate_names_a_copy_however_far_its_block_is_from_the_start(tmp_path, monkeypatch):
    cut(monkeypatch, 2000)
    # Of 100 records some blocks hold a copy of one of their own, all hold one of another's.
    numbers = [i % 30 for i in range(90)] + [7] * 10
    source = write(tmp_path / "a.jsonl", [pair(i) for i in numbers])
    run(config(source), tmp_path / "out")
    lost = pq.read_table(tmp_path / "out" / LEDGER).to_pylist()
    lost = [row for row in lost if row["reason"] == "duplicate"]
    assert len(lost) == 70
    for row in lost:
        about, _, where = row["detail"].partition(str(source))
        assert about == "same as a "
        twin = row["row"] - int(where.split()[1]) if where[0] == "," else int(where[1:])
        assert twin < row["row"] and numbers[twin - 1] == numbers[row["row"] - 1]
    assert {row["detail"].partition(str(source))[2][0] for row in lost} == {",", ":"}


def test_copies_of_a_pair_are_left_out_before_the_exchange(tmp_path, monkeypatch):
    """No task gets more of them than there are blocks."""
    cut(monkeypatch, 4000)
    source = write(tmp_path / "a.jsonl", [pair(7)] * 300 + [pair(i) for i in range(100, 200)])
    blocks_of_copies = len(plan_blocks(config(source).sources))
    assert blocks_of_copies > 5
    manifest = run(config(source), tmp_path / "out")
    assert manifest.sources[0].dropped["duplicate"] == 299
    (marker,) = (tmp_path / "out.work" / "done" / "runs").rglob("*.json")
    rows = sum(json.loads(marker.read_bytes())["result"][0])
    assert 101 < rows <= 100 + blocks_of_copies


def test_small_files_are_read_together(tmp_path, monkeypatch):
    cut(monkeypatch, 2000)
    monkeypatch.setattr(blocks, "_FILES_PER_BLOCK", 7)
    (tmp_path / "many").mkdir()
    for i in range(20):
        write(tmp_path / "many" / f"{i:02d}.jsonl", [pair(i), {"query": "", "positive": "x"}])
    write(tmp_path / "many" / "10.jsonl", [pair(i) for i in range(100, 140)])
    source = SourceConfig("s", paths=(str(tmp_path / "many"),))
    found = plan_blocks([source])
    assert [len(block.paths) for block in found if block.end is None] == [7, 3, 7, 2]
    large = [block for block in found if block.end is not None]
    assert len(large) > 1 and {*large[0].paths} == {str(tmp_path / "many" / "10.jsonl")}
    assert [Path(p).name for b in found for p in b.paths if b.start == 0] == [
        f"{i:02d}.jsonl" for i in range(20)
    ]
    run(config(tmp_path / "many"), tmp_path / "out")
    lost = pq.read_table(tmp_path / "out" / LEDGER).to_pylist()
    # Rows count from the start of their own file.
    empty = [(Path(r["file"]).name, r["row"]) for r in lost if r["reason"] == "empty_query"]
    assert empty == [(f"{i:02d}.jsonl", 2) for i in range(20) if i != 10]


def test_the_blocks_of_a_source_do_not_depend_on_others(tmp_path):
    one = SourceConfig("one", paths=(str(write(tmp_path / "a.jsonl", [pair(1)])),))
    two = SourceConfig("two", paths=(str(write(tmp_path / "b.jsonl", [pair(2)] * 100)),))
    assert plan_blocks([one, two])[:1] == plan_blocks([one])
    assert blocks._block_bytes(0) == blocks._block_bytes(900 << 20) == 16 << 20
    assert blocks._block_bytes(1 << 30) == 32 << 20
    assert blocks._block_bytes(1 << 40) == 512 << 20


def test_too_many_bad_records_in_a_later_block_stop_with_their_rows(tmp_path, monkeypatch):
    cut(monkeypatch, 4000)
    source = write(tmp_path / "a.jsonl", [pair(i) for i in range(200)] + ["{"] * 40)
    rows = [json.loads(line) for line in source.read_text().splitlines()[:200]]
    assert len(rows) == 200 and len(plan_blocks(config(source).sources)) > 2
    with pytest.raises(UserError, match=r"a\.jsonl:201 malformed_json"):
        run(config(source, max_bad_share=0.1), tmp_path / "out")
    lost = pq.read_table(tmp_path / "out.rejected").column("row").to_pylist()
    assert lost == list(range(201, 241))
