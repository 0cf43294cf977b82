import random
import tempfile
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jina_jax.config import DataConfig, NearDuplicateConfig, SourceConfig
from jina_jax.prepare.filters.near_duplicates import (
    NearDuplicateFilter,
    candidates,
    jaccard,
    shingles,
)
from jina_jax.prepare.ledger import ledger_samples
from jina_jax.prepare.near_duplicates import near_duplicate_stage
from jina_jax.prepare.pipeline import Pipeline, Selected
from jina_jax.prepare.sorted_runs import Columns, read_rows, schema
from jina_jax.prepare.stages import Partition
from jina_jax.system.arrow import write_table
from jina_jax.system.store import Store
from jina_jax.text.identity import text_hash
from tests.pairs import config, pair, run, triplet, write

TEXT = "the quick brown fox jumps over the lazy dog and runs far away into the dark green wood"
CONFIG = NearDuplicateConfig(threshold=0.6)


def outcome(pairs, config=CONFIG, parts=2):
    """Reason, score and detail of each pair; pairs are told apart by their texts."""
    records = [
        {
            "key": 0, "source": 0, "position": i, "row": i, "file": "f",
            "query_hash": text_hash(query), "positive_hash": text_hash(positive),
            "query": query, "positive": positive,
        }
        for i, (query, positive) in enumerate(pairs)
    ]  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        store = Store(folder)
        partitions, counts = [], []
        for part in range(parts):
            # Each one that goes finds its like in another partition.
            mine = records[len(records) * part // parts : len(records) * (part + 1) // parts]
            partitions.append(Partition(store.file(f"{part}.arrow")))
            write_table(pa.Table.from_pylist(mine, schema(Columns())), partitions[-1].table)
            counts.append((len(mine),))
        preparation = Pipeline(DataConfig((SourceConfig("s"),)), store, False)
        selected = Selected(partitions, [str(part) for part in range(parts)], counts, (len(pairs),))
        results = near_duplicate_stage(preparation, selected, NearDuplicateFilter(config))
        kept = [
            row
            for partition in selected.partitions
            for row in np.array(partition.open()[0]["row"])[read_rows(partition.rows)].tolist()
        ]
        lost = [
            row
            for ledger in preparation.ledgers
            if ledger.rows
            for row in pq.read_table(ledger.file.local()).to_pylist()
        ]
    assert sum(part[0].dropped.get("near_duplicate", 0) for part in results) == len(lost)
    assert sorted([*kept, *(row["row"] for row in lost)]) == list(range(len(pairs)))
    found = {row["row"]: (row["reason"], row["score"], row["detail"]) for row in lost}
    return [found.get(i, ("", 0.0, "")) for i in range(len(pairs))]


def pair_hash(pair):
    return b"".join(map(text_hash, pair))


def test_shingles_are_runs_of_normalised_words():
    assert shingles("The  CAT sat down", 3) == shingles("the cat sat", 3) | shingles(
        "cat sat down", 3
    )
    assert len(shingles("one two", 3)) == 1
    assert shingles("one two", 3) != shingles("two one", 3)


def test_jaccard_by_hand():
    assert jaccard(np.array([1, 2, 3]), np.array([2, 3, 4, 5])) == 2 / 5
    assert jaccard(np.array([1]), np.array([1])) == 1.0


def test_a_changed_word_makes_a_near_duplicate_and_the_least_hash_stays():
    # 18 words have 16 runs of 3; changing the last word changes one: 15 / 17 are shared.
    pairs = [("", TEXT.replace("wood", "forest")), ("", TEXT)]
    stays = pairs.index(min(pairs, key=pair_hash))
    got = outcome([*pairs, ("", "something else entirely here")])
    assert got[1 - stays][0] == "near_duplicate"
    assert got[1 - stays][1] == pytest.approx(15 / 17)
    assert got[stays] == got[2] == ("", 0.0, "")


def test_query_and_positive_count_together():
    # The same positive under another query is another pair when the query is most of the text.
    other = "a completely different question about some other animal that nobody has ever seen"
    assert [r for r, _, _ in outcome([(TEXT, "yes it does"), (other, "yes it does")])] == ["", ""]


def test_the_kept_pair_is_named():
    pairs = [("which animal was it?", TEXT), ("which animal was that?", TEXT)]
    stays = pairs.index(min(pairs, key=pair_hash))
    got = outcome(pairs)
    assert got[1 - stays][2] == f"of {pairs[stays][0]}"


def test_below_the_threshold_both_stay():
    half = " ".join(TEXT.split()[:9]) + " but this time it ended in another way altogether"
    assert [r for r, _, _ in outcome([("", TEXT), ("", half)])] == ["", ""]


def test_groups_are_linked_through_their_members():
    # Runs of 3 shared over all: a, b 14/18; b, c 12/20; a, c 10/22. One of the three stays.
    words = TEXT.split()[:14]
    a = " ".join([*words, "x0", "x1", "x2", "x3"])
    b = " ".join([*words, "x0", "x1", "y2", "y3"])
    c = " ".join([*words[4:], "x0", "x1", "y2", "y3", "z0", "z1", "z2", "z3"])
    config = NearDuplicateConfig(threshold=0.55, permutations=256)
    assert [r for r, _, _ in outcome([("", a), ("", c)], config=config)] == ["", ""]
    pairs = [("", a), ("", c), ("", b)]
    got = outcome(pairs, config=config)
    stays = pairs.index(min(pairs, key=pair_hash))
    # Of each that goes, the similarity to the most similar of its group.
    highest = [14 / 18, 12 / 20, 14 / 18]
    for place, (reason, score, _) in enumerate(got):
        assert reason == ("" if place == stays else "near_duplicate")
        assert score == (0.0 if place == stays else pytest.approx(highest[place]))


def test_candidates_are_all_pairs_of_a_small_group_and_those_with_the_first_of_a_large_one():
    band = np.array([7, 9, 7, 7, 8], np.uint64)
    number = np.array([30, 1, 10, 20, 2], np.uint64)
    assert candidates(band, number).tolist() == [[10, 20], [10, 30], [20, 30]]
    of_one_band = np.arange(100, dtype=np.uint64)[::-1]
    assert candidates(np.zeros(64, np.uint64), of_one_band[:64]).shape == (64 * 63 // 2, 2)
    large = candidates(np.zeros(100, np.uint64), of_one_band)
    assert large.tolist() == [[0, other] for other in range(1, 100)]
    # Two bands of the same pairs make no candidate twice.
    assert (
        len(candidates(np.array([1, 1, 2, 2], np.uint64), np.array([5, 6, 6, 5], np.uint64))) == 1
    )
    assert candidates(np.zeros(0, np.uint64), np.zeros(0, np.uint64)).shape == (0, 2)


@pytest.mark.parametrize("parts", [1, 3, 7])
def test_how_many_partitions_there_are_changes_nothing(parts):
    pairs = [(f"q{i % 4}", TEXT.replace("fox", f"fox{i % 9}")) for i in range(36)]
    pairs += [("", "something else entirely here")] * 1
    expected = outcome(pairs)
    assert outcome(pairs, parts=parts) == expected
    assert [bool(reason) for reason, _, _ in expected].count(False) == 2


def test_pairs_of_other_sources_and_triplets_are_let_alone(tmp_path):
    near = {"query": "which animal was it?", "positive": TEXT}
    like = near | {"query": "which animal was that?"}
    one = write(tmp_path / "one.jsonl", [near, like, *map(pair, range(100))])
    two = write(
        tmp_path / "two.jsonl", [near | {"query": "who was it?"}, *map(pair, range(100, 200))]
    )
    kept = [t | {"negative": "no"} for t in (near, like)]
    triplets = write(tmp_path / "triplets.jsonl", kept + [triplet(i) for i in range(100)])
    settings = config(one, two, triplets, near_duplicates=replace(CONFIG, enabled=True))
    manifest = run(settings, tmp_path / "out")
    counts = [{s.stage: s.dropped for s in source.stages} for source in manifest.sources]
    assert counts[2] == {"near_duplicates": {}}
    (lost,) = [
        row
        for row in ledger_samples(tmp_path / "out", source="one", reason="near_duplicate", most=999)
        if row.positive == TEXT
    ]
    assert lost.detail.startswith("of which animal was ") and lost.score == pytest.approx(17 / 23)
    assert not [
        row
        for row in ledger_samples(tmp_path / "out", source="two", reason="near_duplicate", most=999)
        if row.positive == TEXT
    ]


@settings(max_examples=8, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_the_order_of_pairs_changes_nothing(seed):
    rng = random.Random(seed)
    words = TEXT.split()
    pairs = []
    for i in range(30):
        text = list(words)
        for _ in range(rng.randrange(4)):
            text[rng.randrange(len(text))] = rng.choice(["red", "blue", "cat"])
        pairs.append((f"q{i % 3}", " ".join(text)))
    pairs = list(dict.fromkeys(pairs))
    expected = dict(zip(pairs, (r for r, _, _ in outcome(pairs))))
    order = rng.sample(range(len(pairs)), len(pairs))
    got = outcome([pairs[i] for i in order])
    assert dict(zip((pairs[i] for i in order), (r for r, _, _ in got))) == expected
    assert 0 < sum(map(bool, expected.values())) < len(pairs)


def test_most_near_duplicates_are_found_among_many_pairs():
    rng = random.Random(0)
    vocabulary = [f"w{i}" for i in range(5000)]
    originals = [rng.choices(vocabulary, k=40) for _ in range(200)]
    copies = []
    for words in originals:
        copy = list(words)
        copy[0] = "changed"  # One run of 38 differs: 37 / 39 are shared.
        copies.append(copy)
    pairs = [("", " ".join(words)) for words in originals + copies]
    reasons = [r for r, _, _ in outcome(pairs, config=NearDuplicateConfig())]
    # One of each two, whichever.
    assert [bool(a) + bool(b) for a, b in zip(reasons[:200], reasons[200:])] == [1] * 200
