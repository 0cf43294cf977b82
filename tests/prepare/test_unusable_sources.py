"""Sources of which too much, or all, is lost: preparation ends and says why."""

import dataclasses

import pyarrow.parquet as pq
import pytest

from jina_jax.config import TokenizerConfig
from jina_jax.errors import UserError
from jina_jax.prepare import ingest
from jina_jax.prepare.ingest import plan_blocks
from jina_jax.prepare.run import prepare
from jina_jax.sources import lines
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
    ledger = tmp_path / "out.rejected"
    assert str(ledger) in message
    assert pq.read_table(ledger).column("row").to_pylist() == list(range(986, 1007))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.jsonl", ledger.name, "out.work"]


def test_few_records_are_judged_at_the_end(tmp_path):
    a = write(tmp_path / "a.jsonl", ["{"] * 3 + [pair(i) for i in range(97)])
    with pytest.raises(UserError, match="3 of the first 100 records"):
        run(config(a, max_bad_share=0.029), tmp_path / "out")
    run(config(a, max_bad_share=0.03), tmp_path / "out")
    assert not (tmp_path / "out.rejected").exists()


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


def test_a_long_line_among_the_first_is_one_of_all_that_follow(tmp_path, monkeypatch):
    # The block that holds it has few other records.
    monkeypatch.setattr(ingest, "BLOCK_BYTES", 1000)
    monkeypatch.setattr(lines, "_CHUNK_BYTES", 500)
    monkeypatch.setattr(lines, "MAX_LINE_BYTES", 2000)
    first = [pair(i) for i in range(3)]
    long = {"query": "long", "positive": "x" * 4000}
    a = write(tmp_path / "a.jsonl", [*first, long, *(pair(i) for i in range(3, 120))])
    assert len(plan_blocks(config(a).sources)) > 2
    run(config(a, max_bad_share=0.01), tmp_path / "out")
    with pytest.raises(UserError, match="1 of the first 121 records"):
        run(config(a, max_bad_share=0.008), tmp_path / "out2")


def test_what_is_lowered_is_said(tmp_path, capsys):
    a = write(tmp_path / "a.jsonl", [pair(i) for i in range(60)])
    tokenizer = TokenizerConfig("train", 5000)
    prepare(dataclasses.replace(config(a, eval_pairs=40), tokenizer=tokenizer), tmp_path / "out")
    told = capsys.readouterr().err
    assert "a: 6 of its 60 records are held out, less than data.eval_pairs=40" in told
    assert "which is all that this corpus fills of data.tokenizer.vocab_size=" in told
