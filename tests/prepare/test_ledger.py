import pyarrow.parquet as pq
import pytest

from jina_jax.errors import UserError
from jina_jax.prepare.ledger import (
    SCHEMA,
    Dropped,
    LedgerPart,
    ledger_counts,
    ledger_samples,
    merge_ledgers,
    open_ledger,
)
from jina_jax.shards.manifest import LEDGER_FILE

BAD = Dropped("s", "f", 3, "read", "malformed_json", "why")
SCORED = Dropped("s", "f", 4, "score", "margin", "", 0.25, "q", "p")
OTHER = Dropped("t", "g", 1, "dedup", "duplicate", "", None, "q", "p")


def write(path, rows):
    with open_ledger(path) as writer:
        for row in rows:
            writer.write(row)


def test_rows_come_back_and_unread_texts_are_null(tmp_path):
    write(tmp_path / LEDGER_FILE, [BAD, SCORED])
    assert list(ledger_samples(tmp_path)) == [BAD, SCORED]
    assert pq.read_schema(tmp_path / LEDGER_FILE).equals(SCHEMA)


def test_merging_keeps_the_order_and_passes_over_parts_that_had_no_row(tmp_path):
    write(tmp_path / "1", [BAD, SCORED])
    write(tmp_path / "2", [])
    write(tmp_path / "3", [OTHER])
    assert not (tmp_path / "2").exists()
    merge_ledgers([LedgerPart(tmp_path / n) for n in "123"], tmp_path / LEDGER_FILE)
    assert list(ledger_samples(tmp_path)) == [BAD, SCORED, OTHER]
    merge_ledgers([], tmp_path / LEDGER_FILE)
    assert list(ledger_samples(tmp_path)) == []


def test_counts_over_several_batches_with_the_most_first(tmp_path):
    write(tmp_path / LEDGER_FILE, [BAD] + [OTHER] * 10_000 + [SCORED] * 7000)
    assert list(ledger_counts(tmp_path).items()) == [
        (("t", "duplicate"), 10_000),
        (("s", "margin"), 7000),
        (("s", "malformed_json"), 1),
    ]


def test_samples_are_the_first_of_their_kind(tmp_path):
    rows = [OTHER] * 5000 + [SCORED._replace(row=i) for i in range(20)]
    write(tmp_path / LEDGER_FILE, rows)
    assert [d.row for d in ledger_samples(tmp_path, source="s", most=3)] == [0, 1, 2]
    assert len(ledger_samples(tmp_path, reason="duplicate", most=4500)) == 4500
    assert list(ledger_samples(tmp_path, source="s", reason="duplicate")) == []


def test_a_ledger_that_is_missing_or_damaged_is_named(tmp_path):
    with pytest.raises(UserError, match="jina-jax prepare"):
        ledger_counts(tmp_path)
    (tmp_path / LEDGER_FILE).write_text("no ledger")
    with pytest.raises(UserError, match=r"ledger\.parquet cannot be read"):
        ledger_counts(tmp_path)
