"""Sources of which too much, or all, is lost: preparation ends and says why."""

import pyarrow.parquet as pq
import pytest

from jina_jax.errors import UserError
from tests.pairs import config, pair, run, write


def test_too_many_bad_records_stop_early_and_are_shown_and_kept(tmp_path):
    records = [pair(i) for i in range(985)] + ["{"] * 100
    a = write(tmp_path / "a.jsonl", records)
    with pytest.raises(UserError) as error:
        run(config(a, max_bad_share=0.02), tmp_path / "out")
    message = str(error.value)
    # 21 of 1,006 is the first share above 2 %.
    assert "21 of the first 1,006 records cannot be read" in message
    assert "a.jsonl:986 malformed_json" in message and "a.jsonl:991" not in message
    ledger = tmp_path / "out.rejected.parquet"
    assert str(ledger) in message
    assert pq.read_table(ledger).column("row").to_pylist() == list(range(986, 1007))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.jsonl", ledger.name]


def test_few_records_are_judged_at_the_end(tmp_path):
    a = write(tmp_path / "a.jsonl", ["{"] * 3 + [pair(i) for i in range(97)])
    with pytest.raises(UserError, match="3 of the first 100 records"):
        run(config(a, max_bad_share=0.029), tmp_path / "out")
    run(config(a, max_bad_share=0.03), tmp_path / "out")
    assert not (tmp_path / "out.rejected.parquet").exists()


def test_a_source_with_nothing_left_says_why(tmp_path):
    a = write(tmp_path / "a.jsonl", [pair(i) for i in range(200)])
    b = write(tmp_path / "b.jsonl", [pair(3), {"query": "", "positive": "x"}])
    with pytest.raises(UserError, match=r"'b': nothing is left.*1 empty_query, 1 duplicate"):
        run(config(a, b), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_corpus_with_nothing_at_all_says_why(tmp_path):
    a = write(tmp_path / "a.jsonl", [{"query": "x", "positive": "X"}] * 3)
    with pytest.raises(UserError, match=r"'a': nothing is left.*3 identical"):
        run(config(a), tmp_path / "out")


def test_no_source(tmp_path):
    with pytest.raises(UserError, match=r"data\.sources is empty"):
        run(config(), tmp_path / "out")
