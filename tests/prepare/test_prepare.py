import dataclasses
from collections import Counter
from itertools import pairwise

import numpy as np
import pyarrow.parquet as pq
import pytest

from jina_jax.config import TokenizerConfig
from jina_jax.errors import UserError
from jina_jax.prepare.ledger import ledger_counts, ledger_samples
from jina_jax.prepare.run import prepare
from jina_jax.prepare.split import held_out_pairs
from jina_jax.prepare.summary import length_stats
from jina_jax.shards.manifest import LengthStats, load_manifest
from jina_jax.shards.shard_set import ShardSet
from jina_jax.shards.verify import data_problems
from jina_jax.text.identity import text_hash
from jina_jax.text.tokenizer import load_tokenizer
from tests.pairs import config, files, pair, run, write


def trained_texts(folder, source):
    """(query, positive) of a source's training records, as the tokenizer decodes them."""
    tokenizer = load_tokenizer(folder / "tokenizer")
    paths = [folder / s.path for s in next(
        s for s in load_manifest(folder).sources if s.name == source
    ).shards]  # fmt: skip
    shards = ShardSet(paths)
    records = shards.read(range(len(shards)))
    return [
        tuple(tokenizer.decode(records.text(i, k)) for k in (0, 1)) for i in range(len(records))
    ]


def held_texts(folder, source):
    table = pq.read_table(folder / "eval" / f"{source}.parquet")
    return [(row["query"], row["positive"]) for row in table.to_pylist()]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """Two sources that share a hundred pairs, with some of every flaw."""
    folder = tmp_path_factory.mktemp("prepared")
    flaws = [
        "{not json",
        {"query": " \n", "positive": "x"},
        {"query": "x", "positive": ""},
        {"query": "Same  text", "positive": "same text"},
        {k: v.upper() for k, v in pair(7).items()},
    ]
    first = write(folder / "first.jsonl", [pair(i) for i in range(300)] + flaws)
    second = write(folder / "second.jsonl", [pair(i) for i in range(200, 500)])
    settings = config(first, second)
    return settings, folder / "data", run(settings, folder / "data")


def test_every_record_is_accounted_for(prepared):
    _, out, manifest = prepared
    first, second = manifest.sources
    assert first.read == 305 and second.read == 300
    assert first.bad == {"malformed_json": 1}
    assert first.dropped == {"empty_query": 1, "empty_positive": 1, "identical": 1, "duplicate": 1}
    # The source listed first keeps what both have.
    assert second.dropped == {"duplicate": 100}
    assert (first.train, first.eval, second.train, second.eval) == (280, 20, 180, 20)
    assert load_manifest(out) == manifest
    assert sorted(p.name for p in out.iterdir()) == [
        "eval", "ledger", "manifest.json", "tokenizer", "train",
    ]  # fmt: skip


def test_the_ledger_names_each_lost_record(prepared):
    _, out, manifest = prepared
    assert ledger_counts(out) == {
        (source.name, reason): count
        for source in manifest.sources
        for reason, count in {**source.bad, **source.dropped}.items()
    }
    for reason, row, stage in (
        ("malformed_json", 301, "read"),
        ("empty_query", 302, "clean"),
        ("empty_positive", 303, "clean"),
        ("identical", 304, "clean"),
        ("duplicate", 305, "dedup"),
    ):
        (lost,) = ledger_samples(out, source="first", reason=reason)
        assert (lost.row, lost.stage) == (row, stage)
    assert lost.detail.startswith("same as first ") and lost.detail.endswith("first.jsonl:8")
    assert lost.query == pair(7)["query"].upper()


def test_the_shards_hold_the_texts_that_are_not_held_out(prepared):
    _, out, manifest = prepared
    assert not list(data_problems(manifest, out, full=True))
    for name, numbers in (("first", range(300)), ("second", range(300, 500))):
        everything = Counter(tuple(pair(i).values()) for i in numbers)
        assert Counter(trained_texts(out, name) + held_texts(out, name)) == everything


def test_the_hashes_of_a_record_are_those_of_its_texts(prepared):
    _, out, manifest = prepared
    (shard, *_) = manifest.sources[0].shards
    records = ShardSet([out / shard.path]).read([3])
    texts = trained_texts(out, "first")[3]
    assert records.hashes_NSx2[0].tobytes() == b"".join(text_hash(t) for t in texts)


def test_records_are_shuffled_and_spread_over_shards(prepared):
    _, out, manifest = prepared
    # 280 and 180 records, at most 100 a shard: each source has the shards it needs.
    shards = [[shard.records for shard in source.shards] for source in manifest.sources]
    assert shards == [[93, 93, 94], [90, 90]]
    order = trained_texts(out, "first")
    # In file order nearly every number would be one more than the number before.
    numbers = [int(p.split()[2].rstrip(",")) for _, p in order]
    assert sum(b == a + 1 for a, b in pairwise(numbers)) < 10


def test_preparing_twice_gives_the_same_bytes(prepared, tmp_path):
    settings, out, _ = prepared
    run(settings, tmp_path / "again")
    assert files(tmp_path / "again") == files(out)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["again", "again.work"]


def test_the_records_do_not_depend_on_how_many_parts_there_are(prepared, tmp_path):
    settings, out, _ = prepared
    run(dataclasses.replace(settings, records_per_shard=1000), tmp_path / "one")
    for name in ("first", "second"):
        assert trained_texts(tmp_path / "one", name) == trained_texts(out, name)
        assert held_texts(tmp_path / "one", name) == held_texts(out, name)


def test_pairs_that_share_one_text_are_no_duplicates(tmp_path):
    one_query = [pair(i) | {"query": "Which number is it?"} for i in range(50)]
    one_positive = [pair(i) | {"positive": "It is a number."} for i in range(50)]
    a = write(tmp_path / "a.jsonl", one_query + one_positive)
    manifest = run(config(a, eval_pairs=0), tmp_path / "out")
    assert manifest.sources[0].train == 100


def test_another_seed_holds_out_and_orders_otherwise(prepared, tmp_path):
    settings, out, _ = prepared
    run(dataclasses.replace(settings, seed=1), tmp_path / "other")
    assert set(held_texts(tmp_path / "other", "first")) != set(held_texts(out, "first"))


def test_no_training_pair_shares_a_text_with_a_held_out_one(tmp_path):
    # Six positives are shared by many queries, over both sources.
    a = write(tmp_path / "a.jsonl", [pair(i) | {"positive": f"Answer {i}"} for i in range(100)])
    shared = [{"query": pair(i)["query"], "positive": f"answer  {i % 40}"} for i in range(50, 200)]
    b = write(tmp_path / "b.jsonl", shared)
    manifest = run(config(a, b, eval_pairs=10), tmp_path / "out")
    held = {text_hash(t) for s in "ab" for texts in held_texts(tmp_path / "out", s) for t in texts}
    rows = [r for s in "ab" for r in trained_texts(tmp_path / "out", s)]
    assert not held & {text_hash(t) for r in rows for t in r}
    lost = [s.dropped.get("held_out", 0) for s in manifest.sources]
    assert min(lost) > 0
    assert lost == [ledger_counts(tmp_path / "out")[(s, "held_out")] for s in "ab"]
    assert all(s.read == s.train + s.eval + sum(s.dropped.values()) for s in manifest.sources)


@pytest.mark.parametrize(
    "unique, wanted, held_out",
    [
        (2000, 1000, 1000),
        (1999, 1000, 199),
        (5, 1000, 1),
        (2, 1, 1),
        (1, 1, 0),
        (0, 9, 0),
        (9, 0, 0),
    ],
)
def test_how_many_pairs_are_held_out(unique, wanted, held_out):
    assert held_out_pairs(unique, wanted) == held_out


def test_texts_are_cut_with_the_end_of_sequence_kept(tmp_path):
    a = write(tmp_path / "a.jsonl", [pair(i) for i in range(100)])
    manifest = run(config(a, max_text_tokens=5, eval_pairs=0), tmp_path / "out")
    shards = ShardSet([tmp_path / "out" / s.path for s in manifest.sources[0].shards])
    records = shards.read(range(100))
    assert (records.lengths_NS <= 5).all()
    assert {int(records.text(i, k)[-1]) for i in range(100) for k in (0, 1)} == {1}
    assert manifest.sources[0].query_tokens == LengthStats(5.0, 5, 5, 5)


def test_length_statistics():
    # Lengths 1, 1, 2, 4.
    assert length_stats(np.array([0, 2, 1, 0, 1])) == LengthStats(2.0, 1, 4, 4)
    assert length_stats(np.array([0, 0])) == LengthStats(0.0, 0, 0, 0)


def test_a_given_vocabulary_is_used_and_a_missing_one_found_before_reading(prepared, tmp_path):
    settings, out, manifest = prepared
    given = TokenizerConfig(str(out / "tokenizer"))
    again = run(dataclasses.replace(settings, tokenizer=given), tmp_path / "out")
    assert again.tokenizer_sha256 == manifest.tokenizer_sha256
    assert again.sources == manifest.sources
    # Of the sources no more is read than their first records.
    bad = write(tmp_path / "bad.jsonl", [*(pair(i) for i in range(1000)), *["{"] * 5000])
    nowhere = dataclasses.replace(config(bad), tokenizer=TokenizerConfig("no/such/spiece.model"))
    with pytest.raises(UserError, match="tokenizer"):
        run(nowhere, tmp_path / "other")


class TestExistingFolder:
    def test_the_same_configuration_is_returned_at_once(self, prepared, capsys):
        settings, out, manifest = prepared
        before = {p: p.stat().st_mtime_ns for p in out.rglob("*")}
        assert prepare(settings, out) == manifest
        assert "already prepared" in capsys.readouterr().err
        assert {p: p.stat().st_mtime_ns for p in out.rglob("*")} == before

    def test_another_configuration_is_refused_with_its_fields(self, prepared):
        settings, out, _ = prepared
        before = files(out)
        with pytest.raises(
            UserError, match=r"0 → 5\ngive another .*--data-dir, or delete"
        ) as refused:
            run(dataclasses.replace(settings, seed=5), out)
        assert f"delete {out} to prepare it again" in str(refused.value)
        assert files(out) == before

    def test_a_folder_that_is_something_else_is_left_alone(self, prepared, tmp_path):
        (tmp_path / "thesis.txt").write_text("precious")
        with pytest.raises(UserError, match="is no prepared data"):
            run(prepared[0], tmp_path)
        assert (tmp_path / "thesis.txt").read_text() == "precious"
