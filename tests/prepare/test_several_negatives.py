"""Triplets of one pair become one record of several hard negatives."""

import dataclasses
from collections import defaultdict

import numpy as np
import pyarrow.parquet as pq
import pytest

from jina_jax.config import FeedConfig, SourceConfig
from jina_jax.errors import UnusableError
from jina_jax.feed.batch import pack_batch
from jina_jax.prepare import tokenise as encode
from jina_jax.prepare.explain import explain
from jina_jax.prepare.run import prepare
from jina_jax.shards.manifest import load_manifest
from jina_jax.shards.shard_set import ShardSet
from jina_jax.text.tokenizer import load_tokenizer
from tests.identities import numbers
from tests.pairs import config, pair, run, write

MOST = 3


def negatives_of(i):
    """One to seven, with a number of their own."""
    return [f"It is {1000 * (k + 1) + i}, perhaps." for k in range(1 + i % 7)]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("negatives")
    rows = [pair(i) | {"negative": negative} for i in range(200) for negative in negatives_of(i)]
    # Triplets of a pair need not follow each other in the source.
    np.random.default_rng(0).shuffle(rows)
    pairs = write(folder / "pairs.jsonl", [pair(i) for i in range(500, 600)])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(encode, "BATCH_ROWS", 7)  # records reach over batches
        out = folder / "out"
        settings = config(
            write(folder / "triplets.jsonl", rows), pairs, negatives_per_record=MOST,
            records_per_shard=10**6,
        )  # fmt: skip
        return run(settings, out), out


def read(out, source):
    shards = ShardSet([out / shard.path for shard in source.shards])
    records = shards.read(range(len(shards)))
    tokenizer = load_tokenizer(out / "tokenizer")
    count = records.lengths_NS.shape[1]
    return records, [
        [tokenizer.decode(records.text(i, t).tolist()) for t in range(count)]
        for i in range(len(records))
    ]


def test_every_negative_is_in_a_record_of_its_pair_and_none_has_room_to_spare(prepared):
    manifest, out = prepared
    triplets, pairs = manifest.sources
    records, texts = read(out, triplets)
    found = defaultdict(list)
    for query, positive, *negatives in texts:
        assert len(negatives) == MOST
        there = [n for n in negatives if n]
        assert there == negatives[: len(there)] and there
        found[query, positive].append(there)
    held = set(pq.read_table(out / "eval" / "triplets.parquet")["query"].to_pylist())
    expected = {
        tuple(pair(i).values()): negatives_of(i) for i in range(200) if pair(i)["query"] not in held
    }
    assert {k: sorted(n for of_record in v for n in of_record) for k, v in found.items()} == {
        k: sorted(v) for k, v in expected.items()
    }
    for of_pair in found.values():
        assert all(len(of_record) == MOST for of_record in of_pair[:-1])
    assert triplets.train == sum(map(len, expected.values()))
    assert triplets.records == len(texts) < triplets.train
    assert pairs.records == pairs.train and records.scores_NS is None
    # Each text is counted once a record, and no place that is empty.
    mean = np.mean([n for row in records.lengths_NS for n in row[2:] if n])
    assert triplets.negative_tokens.mean == pytest.approx(mean, abs=0.01)


def test_the_feed_knows_which_negatives_are_there(prepared):
    manifest, out = prepared
    records, texts = read(out, manifest.sources[0])
    batch = pack_batch(records, FeedConfig(global_batch_size=len(records)))
    there = np.array([[bool(text) for text in row] for row in texts])
    np.testing.assert_array_equal(batch.slot_BT >= 0, there)
    np.testing.assert_array_equal(numbers(batch) >= 0, there)
    assert np.isnan(batch.teacher_BS).all()


def test_each_of_several_negatives_is_explained(prepared):
    _, out = prepared
    _, texts = read(out, load_manifest(out).sources[0])
    number = next(i for i, row in enumerate(texts) if all(row))
    for text in texts[number][2:]:
        (fate,) = explain(out, text)
        assert (fate.fate, fate.text, fate.number) == ("trained", "negative", number)


def test_a_record_may_have_fewer_negatives_than_others_or_none(tmp_path):
    rows = [
        {"query": pair(i)["query"], "pos": [pair(i)["positive"]], "neg": negatives_of(i)[: i % 3]}
        for i in range(120)
    ]
    file = write(tmp_path / "triplets.jsonl", rows)
    settings = dataclasses.replace(
        config(file, eval_pairs=0, records_per_shard=10**6),
        sources=(SourceConfig("triplets", paths=(str(file),)),),
    )
    (source,) = run(settings, tmp_path / "out").sources
    count = sum(max(1, len(row["neg"])) for row in rows)
    assert (source.read, source.dropped, source.records) == (count, {}, 120)
    # Shards of one row, of which some have no negative.
    (cut,) = run(dataclasses.replace(settings, records_per_shard=1), tmp_path / "cut").sources
    assert (cut.read, cut.records, cut.negative_tokens) == (count, count, source.negative_tokens)
    records, texts = read(tmp_path / "out", source)
    assert records.lengths_NS.shape[1] == 4  # As wide as the widest, and not the limit of seven.
    found = {row[0]: [text for text in row[2:] if text] for row in texts}
    assert {q: sorted(n) for q, n in found.items()} == {
        row["query"]: sorted(row["neg"]) for row in rows
    }
    batch = pack_batch(records, FeedConfig(global_batch_size=len(records)))
    assert (batch.slot_BT[:, 2:] >= 0).sum() == sum(len(row["neg"]) for row in rows)


@pytest.mark.parametrize("is_named", [True, False])
def test_a_source_without_any_negative(tmp_path, is_named, capsys):
    file = write(tmp_path / "a.jsonl", [pair(i) | {"negative": ""} for i in range(60)])
    source = SourceConfig("a", paths=(str(file),), negative_field="negative" if is_named else "")
    settings = dataclasses.replace(config(file), sources=(source,))
    if is_named:
        with pytest.raises(UnusableError, match="no record that is left has a text in its neg"):
            prepare(settings, tmp_path / "out")
        return
    (found,) = prepare(settings, tmp_path / "out").sources
    assert "a: no record has a negative; they are pairs" in capsys.readouterr().err
    assert (found.record, found.read) == ("pair", 60)
    assert read(tmp_path / "out", found)[0].lengths_NS.shape[1] == 2
