import random

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jina_jax.data.near_duplicates import find_near_duplicates, jaccard, shingles
from jina_jax.filter_config import NearDuplicateConfig

TEXT = "the quick brown fox jumps over the lazy dog and runs far away into the dark green wood"
CONFIG = NearDuplicateConfig(threshold=0.6)


def outcome(pairs, keys=None, config=CONFIG):
    queries, positives = zip(*pairs)
    batch = pa.RecordBatch.from_pydict({"query": queries, "positive": positives})
    keys = keys or [f"{i:03}".encode() for i in range(len(pairs))]
    reason_N, detail_N, score_N = find_near_duplicates(batch, keys, config)
    assert score_N.dtype == "float32"
    return list(zip(reason_N, score_N.tolist(), detail_N))


def test_shingles_are_runs_of_normalised_words():
    assert shingles("The  CAT sat down", 3) == shingles("the cat sat", 3) | shingles(
        "cat sat down", 3
    )
    assert len(shingles("one two", 3)) == 1
    assert shingles("one two", 3) != shingles("two one", 3)


def test_jaccard_by_hand():
    assert jaccard(frozenset({1, 2, 3}), frozenset({2, 3, 4, 5})) == 2 / 5
    assert jaccard(frozenset({1}), frozenset({1})) == 1.0


def test_a_changed_word_makes_a_near_duplicate_and_the_least_key_stays():
    # 18 words have 16 runs of 3; changing the last word changes one: 15 / 17 are shared.
    changed = TEXT.replace("wood", "forest")
    got = outcome(
        [("", changed), ("", TEXT), ("", "something else entirely here")], [b"2", b"1", b"0"]
    )
    assert got[0][0] == "near_duplicate"
    assert got[0][1] == pytest.approx(15 / 17)
    assert got[1:] == [("", 0.0, ""), ("", 0.0, "")]


def test_query_and_positive_count_together():
    # The same positive under another query is another pair when the query is most of the text.
    other = "a completely different question about some other animal that nobody has ever seen"
    assert [r for r, _, _ in outcome([(TEXT, "yes it does"), (other, "yes it does")])] == ["", ""]


def test_the_kept_pair_is_named():
    got = outcome([("which animal?", TEXT), ("which  ANIMAL?", TEXT)])
    assert got[1] == ("near_duplicate", 1.0, "of which animal?")


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
    got = outcome([("", a), ("", c), ("", b)], config=config)
    assert [r for r, _, _ in got] == ["", "near_duplicate", "near_duplicate"]
    assert [s for _, s, _ in got] == [0.0, pytest.approx(10 / 22), pytest.approx(14 / 18)]


@settings(max_examples=25, deadline=None)
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
    keys = [f"{p}{i:02}".encode() for i, (_, p) in enumerate(pairs)]
    expected = dict(zip(keys, (r for r, _, _ in outcome(pairs, keys))))
    order = rng.sample(range(len(pairs)), len(pairs))
    got = outcome([pairs[i] for i in order], [keys[i] for i in order])
    assert dict(zip((keys[i] for i in order), (r for r, _, _ in got))) == expected
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
    assert not any(reasons[:200])
    assert sum(map(bool, reasons[200:])) == 200
