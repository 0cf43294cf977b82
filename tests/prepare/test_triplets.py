import json

import pyarrow.parquet as pq
import pytest

from jina_jax.config import LengthConfig
from jina_jax.prepare.explain import Fate, explain
from jina_jax.prepare.ledger import ledger_counts, ledger_samples
from jina_jax.shards.manifest import load_manifest
from jina_jax.shards.shard_set import ShardSet
from jina_jax.text.identity import text_hash
from jina_jax.text.tokenizer import load_tokenizer
from tests.pairs import config, pair, run, triplet, write

ALONE = ("What is the number?", "It is.", "")


def trained(out, index):
    source = load_manifest(out).sources[index]
    tokenizer = load_tokenizer(out / "tokenizer")
    shards = ShardSet([out / shard.path for shard in source.shards])
    records = shards.read(range(len(shards)))
    texts = range(records.lengths_NS.shape[1])
    return [tuple(tokenizer.decode(records.text(i, t)) for t in texts) for i in range(len(records))]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("triplets")
    flaws = [
        {"query": "q", "positive": "", "negative": "n"},
        {"query": "q", "positive": "p", "negative": "P"},
        {"query": "q", "positive": "p", "negative": " Q"},
        {"query": "q", "positive": "Q", "negative": "n"},
        {"query": "What is the number?", "positive": "It is.", "negative": " "},
    ]
    # The first triplet twice; of the last, the pair alone is kept.
    triplets = write(
        folder / "triplets.jsonl", [triplet(i) for i in range(200)] + [triplet(0)] + flaws
    )
    pairs = write(folder / "pairs.jsonl", [pair(i) for i in range(500, 700)])
    settings = config(triplets, pairs, lengths=LengthConfig(max_characters=40), max_bad_share=0.2)
    return run(settings, folder / "out"), folder / "out"


def test_triplets_travel_with_three_texts_and_skip_what_is_for_pairs(prepared):
    manifest, out = prepared
    triplets, pairs = manifest.sources
    assert (triplets.record, pairs.record) == ("triplet", "pair")
    unclean = {
        "empty_positive", "negative_is_positive", "negative_is_query", "identical", "duplicate",
    }  # fmt: skip
    assert {reason: triplets.dropped[reason] for reason in unclean} == dict.fromkeys(unclean, 1)
    assert set(triplets.dropped) <= {*unclean, "held_out"}
    assert triplets.bad == {}
    lost = sum(triplets.dropped.values())
    assert triplets.read == 206 == triplets.train + triplets.eval + lost
    assert triplets.negative_tokens is not None and pairs.negative_tokens is None
    rows = trained(out, 0)
    expected = {tuple(triplet(i).values()) for i in range(200)} | {ALONE}
    assert all(row in expected for row in rows)
    assert len(rows) == len(set(rows)) == triplets.train
    assert {len(row) for row in trained(out, 1)} == {2}
    held = [tuple(r[k] for k in ("query", "positive", "negative"))
            for r in pq.read_table(out / "eval" / "triplets.parquet").to_pylist()]  # fmt: skip
    assert len(held) == triplets.eval == 20
    assert ALONE in rows + held
    assert pq.read_schema(out / "eval" / "pairs.parquet").names == [
        "query", "positive", "query_hash", "positive_hash",
    ]  # fmt: skip


def test_no_text_of_a_held_out_triplet_is_trained_on(prepared):
    _, out = prepared
    table = pq.read_table(out / "eval" / "triplets.parquet").to_pylist()
    held = {row[k] for row in table for k in ("query_hash", "positive_hash", "negative_hash")}
    texts = {t for i in (0, 1) for row in trained(out, i) for t in row if t}
    assert not held & {text_hash(t) for t in texts}


def test_the_ledger_holds_the_negative_of_a_triplet_only(prepared):
    _, out = prepared
    (lost,) = ledger_samples(out, reason="negative_is_positive")
    assert (lost.query, lost.positive, lost.negative) == ("q", "p", "P")
    assert (lost.row, lost.stage) == (203, "clean")
    assert ledger_counts(out)["triplets", "duplicate"] == 1


def test_the_fate_of_a_text(prepared):
    _, out = prepared
    fates = list(explain(out, "  P "))
    assert {(f.fate, f.text, f.number, f.dropped.reason) for f in fates} == {
        ("dropped", "positive", 203, "negative_is_positive"),
        ("dropped", "negative", 203, "negative_is_positive"),
        ("dropped", "positive", 204, "negative_is_query"),
    }
    text = trained(out, 0)[3][2]
    found = [f for f in explain(out, text.upper()) if f.text == "negative"]
    assert found[0] == Fate(
        "trained", "triplets", "negative", "train/triplets-00000.arrayrecord", 3
    )
    held = pq.read_table(out / "eval" / "pairs.parquet").column("query")[2].as_py()
    assert list(explain(out, held)) == [Fate("held_out", "pairs", "query", "eval/pairs.parquet", 2)]
    assert list(explain(out, "never heard of")) == []


def test_which_source_keeps_what_several_hold_is_configured(tmp_path):
    files = [write(tmp_path / f"{n}.jsonl", [pair(i) for i in range(100)]) for n in "abc"]
    extra = {"eval_pairs": 0, "records_per_shard": 30}
    write(files[0], [pair(i) for i in range(150)])
    write(files[1], [pair(i) for i in range(100)] + [pair(i) for i in range(200, 220)])
    manifest = run(config(*files, source_priority=("c",), **extra), tmp_path / "out")
    assert [s.train for s in manifest.sources] == [50, 20, 100]
    (lost, *_) = ledger_samples(tmp_path / "out", source="a")
    assert json.dumps(lost.detail).startswith('"same as c ')
