import random

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jina_jax.errors import UserError
from jina_jax.prepare import ledger as ledgers
from jina_jax.prepare.ledger import (
    SCHEMA,
    Dropped,
    LedgerPart,
    dropped_texts,
    dropped_with,
    gathered,
    ledger_batches,
    ledger_counts,
    ledger_samples,
    ledger_task,
    open_ledger,
)
from jina_jax.shards.manifest import LEDGER, OLD_LEDGER_FILE
from jina_jax.system.store import StoredFile

BAD = Dropped("s", "f", 3, "read", "malformed_json", "why")
SCORED = Dropped("s", "f", 4, "score", "margin", "", 0.25, "q", "p")
OTHER = Dropped("t", "g", 1, "dedup", "duplicate", "", None, "q", "p")


def part(path, rows, row_base=0):
    with open_ledger(StoredFile.at(path)) as writer:
        for row in rows:
            writer.write(row)
    return LedgerPart(StoredFile.at(path), len(rows), row_base)


def publish(folder, *parts):
    (folder / LEDGER).mkdir(exist_ok=True)
    for number, several in enumerate(gathered(parts)):
        ledger_task(several, StoredFile.at(folder / LEDGER / f"{number:05d}.parquet"))


def names(number):
    return f"query {number}", f"Passage  {number}"


def of_kind(source, reason, numbers):
    rows = [(n, *names(n)) for n in numbers]
    return [Dropped(source, "f", n, "stage", reason, "", None, q, p) for n, q, p in rows]


def test_rows_come_back_and_unread_texts_are_null(tmp_path):
    publish(tmp_path, part(tmp_path / "1", [BAD, SCORED]))
    assert list(ledger_samples(tmp_path)) == [BAD, SCORED]
    schema = pq.read_schema(tmp_path / LEDGER / "00000.parquet")
    assert schema.equals(SCHEMA)
    (row,) = pq.read_table(tmp_path / LEDGER).slice(0, 1).to_pylist()
    assert row["query"] is None and row["query_hash"] is None


def test_the_order_of_parts_changes_no_byte_and_parts_without_a_row_have_no_file(tmp_path):
    rows = of_kind("s", "a", range(50)) + of_kind("t", "b", range(50)) + [BAD, SCORED, OTHER]
    found = []
    for name, seed in (("one", 1), ("two", 2)):
        (tmp_path / name).mkdir()
        random.Random(seed).shuffle(rows)
        parts = [part(tmp_path / name / f"{seed}-{i}", rows[i::7]) for i in range(7)]
        empty = part(tmp_path / name / "empty", [])
        assert not empty.file.exists()
        publish(tmp_path / name, *parts, empty)
        (path,) = (tmp_path / name / LEDGER).iterdir()
        found.append(path.read_bytes())
    assert found[0] == found[1]


def test_rows_are_counted_from_the_start_of_the_file(tmp_path):
    publish(tmp_path, part(tmp_path / "1", [BAD]), part(tmp_path / "2", [BAD], row_base=100))
    assert [row.row for row in ledger_samples(tmp_path)] == [3, 103]


def test_a_ledger_without_a_row_is_a_ledger(tmp_path):
    publish(tmp_path)
    assert list(ledger_samples(tmp_path)) == []
    assert ledger_counts(tmp_path) == {}
    assert list(dropped_with(tmp_path, "q")) == []


def test_parts_are_gathered_in_order_until_there_are_enough_rows(monkeypatch, tmp_path):
    monkeypatch.setattr(ledgers, "FILE_ROWS", 100)
    sizes = (40, 0, 70, 300, 10)
    parts = [LedgerPart(StoredFile.at(tmp_path), n) for n in sizes]
    groups = [[p.rows for p in group] for group in gathered(parts)]
    assert groups == [[40, 70], [300], [10]]


@pytest.fixture
def several(tmp_path, monkeypatch):
    """Eight files of five row groups."""
    monkeypatch.setattr(ledgers, "FILE_ROWS", 250)
    monkeypatch.setattr(ledgers, "_GROUP_ROWS", 50)
    rows = of_kind("s", "a", range(900)) + of_kind("s", "b", range(300)) + of_kind("t", "a", [5])
    sevens = [r for r in of_kind("u", "c", range(799)) if r.row % 7 == 0]
    rows = [*rows, *sevens, *[BAD] * 785]
    parts = [part(tmp_path / str(i), rows[i * 250 : i * 250 + 250]) for i in range(8)]
    publish(tmp_path, *parts)
    assert len(list((tmp_path / LEDGER).iterdir())) == 8
    return tmp_path


def test_counts_are_those_of_the_rows_with_the_most_first(several):
    counts = {("s", "a"): 900, ("s", "malformed_json"): 684, ("s", "b"): 300}
    assert list(ledger_counts(several).items())[:3] == list(counts.items())
    table = pq.read_table(several / LEDGER, columns=["source", "reason"])
    groups = table.group_by(["source", "reason"]).aggregate([([], "count_all")]).to_pylist()
    expected = {(g["source"], g["reason"]): g["count_all"] for g in groups}
    assert ledger_counts(several) == expected


def test_counting_reads_no_rows(several):
    expected = ledger_counts(several)
    for path in (several / LEDGER).iterdir():
        data = bytearray(path.read_bytes())
        length = int.from_bytes(data[-8:-4], "little")
        data[4 : -8 - length] = bytes(len(data) - 12 - length)
        path.write_bytes(data)
    assert ledger_counts(several) == expected
    with pytest.raises(UserError, match="cannot be read"):
        list(ledger_batches(several))


def test_samples_are_the_first_of_their_kind(several):
    rows = ledger_samples(several, source="s", reason="b", most=4500)
    assert sorted(row.row for row in rows) == list(range(300))
    assert ledger_samples(several, source="s", reason="b", most=3) == rows[:3]
    assert list(ledger_samples(several, source="t", reason="b")) == []


@pytest.mark.parametrize("number", [0, 5, 777])
def test_a_dropped_text_is_found_in_any_spelling(several, number):
    query, positive = names(number)
    expected = {("s", "a")}
    expected |= {("s", "b")} if number < 300 else set()
    expected |= {("t", "a")} if number == 5 else set()
    expected |= {("u", "c")} if number % 7 == 0 else set()
    for text, what in ((query.upper(), "query"), (f" {positive.lower()} ", "positive")):
        found = list(dropped_with(several, text))
        assert {(row.source, row.reason) for _, row in found} == expected
        assert {row.row for _, row in found} == {number} and {w for w, _ in found} == {what}


def test_only_hashes_are_read_of_what_cannot_have_the_text(several):
    """All else of such row groups is damaged, hashes of queries that are out of range too."""
    query, _ = names(777)
    word, damaged, groups = ledgers.first_word(query), 0, 0
    for path in (several / LEDGER).iterdir():
        data, metadata = bytearray(path.read_bytes()), pq.read_metadata(path)
        for group in map(metadata.row_group, range(metadata.num_row_groups)):
            columns = {c.path_in_schema: c for c in map(group.column, range(group.num_columns))}
            stats = columns["query_hash"].statistics
            groups += 1
            if stats.has_min_max and stats.min <= word <= stats.max:
                continue
            damaged += 1
            for name in columns.keys() - {"positive_hash", "negative_hash"}:
                start = columns[name].dictionary_page_offset or columns[name].data_page_offset
                size_bytes = columns[name].total_compressed_size
                data[start : start + size_bytes] = b"x" * size_bytes
        path.write_bytes(data)
    assert groups / 2 < damaged < groups
    assert len(list(dropped_with(several, query))) == 2
    with pytest.raises(UserError, match="cannot be read"):
        list(ledger_batches(several))


def test_texts_of_a_stage_come_apart_as_pairs_and_triplets(tmp_path):
    triplet = SCORED._replace(negative="n")
    parts = [part(tmp_path / "1", [SCORED, triplet]), part(tmp_path / "2", [triplet])]
    found = [batch for batch in dropped_texts(parts) if len(batch)]
    assert [batch.to_pydict() for batch in found] == [
        {"query": ["q"], "positive": ["p"]},
        *[{"query": ["q"], "positive": ["p"], "negative": ["n"]}] * 2,
    ]


def test_the_ledger_of_an_earlier_version_is_read(tmp_path):
    rows = [BAD, SCORED, OTHER, *of_kind("s", "a", range(5000))]
    old = SCHEMA.names[:10]
    table = pa.Table.from_pylist([row._asdict() for row in rows], pa.schema(map(SCHEMA.field, old)))
    pq.write_table(table, tmp_path / OLD_LEDGER_FILE)
    assert ledger_counts(tmp_path)["s", "a"] == 5000
    assert ledger_samples(tmp_path, reason="margin") == [SCORED]
    assert list(dropped_with(tmp_path, "QUERY 17")) == [("query", rows[20])]
    assert np.sum([len(batch) for batch in ledger_batches(tmp_path)]) == 5003


def test_a_ledger_that_is_missing_or_damaged_is_named(tmp_path):
    with pytest.raises(UserError, match="jina-jax prepare"):
        ledger_counts(tmp_path)
    (tmp_path / LEDGER).mkdir()
    (tmp_path / LEDGER / "00000.parquet").write_text("no ledger")
    with pytest.raises(UserError, match=r"ledger/00000\.parquet cannot be read"):
        ledger_counts(tmp_path)
