"""Triplets of one pair become one record of several hard negatives."""

from collections import defaultdict

import numpy as np
import pyarrow.parquet as pq
import pytest

from jina_jax.config import FeedConfig
from jina_jax.feed.batch import pack_batch
from jina_jax.prepare import tokenise as encode
from jina_jax.prepare.explain import explain
from jina_jax.shards.array_record import ShardSet
from jina_jax.shards.manifest import load_manifest
from jina_jax.text.tokenizer import load_tokenizer
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
    np.testing.assert_array_equal(batch.identity_BT >= 0, there)
    assert np.isnan(batch.teacher_BS).all()


def test_each_of_several_negatives_is_explained(prepared):
    _, out = prepared
    _, texts = read(out, load_manifest(out).sources[0])
    number = next(i for i, row in enumerate(texts) if all(row))
    for text in texts[number][2:]:
        (fate,) = explain(out, text)
        assert (fate.fate, fate.text, fate.number) == ("trained", "negative", number)
