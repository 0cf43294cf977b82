import pickle
import random
import re

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jina_jax.prepare.filters.decontaminate import (
    EvaluationText,
    LeakReport,
    build_index,
    find_leaks,
)

SHORT = "A man plays the guitar."
LONG = " ".join(f"word{i}" for i in range(20)) + "."
CLEAN = "nothing of this stands in any evaluation set at all"


def index(*texts, ngram_words=13, min_words=3):
    named = [t if isinstance(t, tuple) else ("task", t) for t in texts]
    return build_index(
        (EvaluationText(*t) for t in named), ngram_words=ngram_words, min_words=min_words
    )


def outcome(found_in, *pairs):
    queries, positives = zip(*pairs)
    batch = pa.RecordBatch.from_pydict({"query": queries, "positive": positives})
    found, details, report = find_leaks(batch, found_in)
    return list(zip(found, details)), report


def reasons(found_in, *texts):
    got, _ = outcome(found_in, *((CLEAN, text) for text in texts))
    return [reason for reason, _ in got]


def test_a_whole_text_is_found_in_either_field_whatever_its_spelling():
    spellings = [
        "a  MAN plays\nthe guitar.",
        "A man plays the guitar",
        "«A man — plays the guitar!»",
    ]
    pairs = [(s, CLEAN) for s in spellings] + [(CLEAN, s) for s in spellings] + [(CLEAN, CLEAN)]
    got, report = outcome(index(SHORT), *pairs)
    assert got[:3] == [("evaluation_text", "query is a text of task")] * 3
    assert got[3:6] == [("evaluation_text", "positive is a text of task")] * 3
    assert got[6] == ("", "")
    assert report == LeakReport(frozenset({0}), (6,))


def test_another_word_is_another_text():
    assert reasons(index(SHORT), "A man plays a guitar.", "A man plays the guitars.") == ["", ""]


def test_a_short_text_is_found_inside_a_longer_one():
    got, _ = outcome(index(SHORT), (CLEAN, f"He said: {SHORT.upper()} Then he left."))
    assert got == [("evaluation_ngram", "positive shares 5 words with task")]


def test_a_text_below_min_words_is_found_only_as_a_whole():
    found_in = index("the guitar", min_words=3)
    assert reasons(found_in, "The guitar!", SHORT) == ["evaluation_text", ""]
    assert reasons(index("the guitar", min_words=2), SHORT) == ["evaluation_ngram"]


def test_a_run_of_ngram_words_of_a_long_text_is_a_leak_and_one_word_less_is_not():
    words = LONG.split()
    inside = [" ".join(["before", *words[4 : 4 + n], "after"]) for n in (13, 12)]
    assert reasons(index(LONG), *inside) == ["evaluation_ngram", ""]


def test_the_order_of_words_counts():
    words = LONG.rstrip(".").split()
    assert reasons(index(LONG), " ".join(words[::-1]), " ".join(words)) == ["", "evaluation_text"]
    assert reasons(index("a b c"), "b a c x", "a b c x") == ["", "evaluation_ngram"]


def test_a_run_does_not_reach_over_texts():
    found_in = index("one two three four")
    assert reasons(found_in, "zero one two", "three four five", "one two three four five") == [
        "", "", "evaluation_ngram",
    ]  # fmt: skip


def test_the_negative_of_a_triplet_counts_too():
    columns = {"query": [CLEAN] * 2, "positive": [CLEAN] * 2, "negative": [CLEAN, SHORT]}
    leaks = find_leaks(pa.RecordBatch.from_pydict(columns), index(SHORT))
    assert leaks.reasons == ["", "evaluation_text"]
    assert leaks.details == ["", "negative is a text of task"]


def test_punctuation_alone_is_compared_as_it_is():
    assert reasons(index("?!"), "?!", "!?", "...") == ["evaluation_text", "", ""]


def test_every_task_is_reported_with_what_was_found():
    found_in = index(
        ("a", SHORT), ("a", SHORT.upper()), ("a", LONG), ("b", SHORT), ("c", "never seen anywhere")
    )
    got, report = outcome(found_in, (SHORT, CLEAN), (CLEAN, CLEAN), (LONG, SHORT), (CLEAN, LONG))
    assert [detail for _, detail in got] == [
        "query is a text of a; query is a text of b",
        "",
        "query is a text of a; positive is a text of b",
        "positive is a text of a",
    ]
    assert report.by_task(found_in) == {
        "a": {"texts": 2, "texts_found": 2, "records_dropped": 3},
        "b": {"texts": 1, "texts_found": 1, "records_dropped": 2},
        "c": {"texts": 1, "texts_found": 0, "records_dropped": 0},
    }


def test_a_text_that_a_set_repeats_counts_once():
    found_in = index(("a", SHORT), ("b", LONG), ("b", LONG.upper()))
    assert found_in.texts_per_task == (1, 1)
    _, report = outcome(found_in, (CLEAN, LONG))
    assert report.hit_texts == {1}


def test_all_texts_that_have_a_run_are_found():
    others = [f"{LONG} {end}" for end in ("one", "two", "three")]
    _, report = outcome(index(*others), (CLEAN, f"so {LONG}"))
    assert report.hit_texts == {0, 1, 2}


def test_reports_of_batches_add_up_in_any_order():
    found_in = index(("a", SHORT), ("b", LONG))
    pairs = [(SHORT, CLEAN), (CLEAN, LONG), (SHORT, LONG)]
    _, whole = outcome(found_in, *pairs)
    parts = [outcome(found_in, pair)[1] for pair in pairs]
    assert parts[0] + parts[1] + parts[2] == whole
    assert parts[2] + parts[1] + LeakReport() + parts[0] == whole
    assert LeakReport().by_task(found_in)["a"]["texts_found"] == 0


def test_an_index_travels_to_other_processes_and_may_be_empty():
    found_in = pickle.loads(pickle.dumps(index(SHORT)))
    assert reasons(found_in, SHORT) == ["evaluation_text"]
    assert reasons(index(), SHORT) == [""]


def naive(evaluation, text, ngram_words, min_words):
    """The rule of the module, word by word."""
    theirs, ours = (re.findall(r"\w+", t.lower()) for t in (evaluation, text))
    if theirs == ours:
        return True
    length = min(len(theirs), ngram_words)
    runs = {tuple(theirs[i : i + length]) for i in range(len(theirs) - length + 1)}
    ours_runs = {tuple(ours[i : i + length]) for i in range(len(ours) - length + 1)}
    return len(theirs) >= min_words and bool(runs & ours_runs)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_the_index_finds_what_a_search_word_by_word_finds(seed):
    rng = random.Random(seed)

    def text(most):
        return " ".join(rng.choices("abc", k=rng.randint(1, most)))

    evaluation, texts = [text(8) for _ in range(3)], [text(12) for _ in range(20)]
    found_in = index(*evaluation, ngram_words=5, min_words=3)
    expected = [any(naive(e, t, 5, 3) for e in evaluation) for t in texts]
    assert [bool(r) for r in reasons(found_in, *texts)] == expected


@pytest.mark.parametrize(
    "plant",
    [
        lambda text: text,
        lambda text: "  ".join(text.upper().split()) + "\n",
        lambda text: text.replace(" ", ", ").rstrip(".") + "?!",
        lambda text: f"As somebody once wrote: {text} And so on and on.",
    ],
    ids=["exact", "case and whitespace", "punctuation", "embedded"],
)
def test_every_planted_text_is_found_and_nothing_else(plant):
    rng = random.Random(0)
    vocabulary = [f"v{i}" for i in range(2000)]
    evaluation = [" ".join(rng.choices(vocabulary, k=rng.randint(3, 40))) + "." for _ in range(300)]
    found_in = index(*evaluation)
    pairs = [(CLEAN, plant(t)) if i % 2 else (plant(t), CLEAN) for i, t in enumerate(evaluation)]
    clean = [(" ".join(rng.choices(vocabulary, k=30)), CLEAN) for _ in range(300)]
    got, report = outcome(found_in, *pairs, *clean)
    assert [bool(reason) for reason, _ in got] == [True] * 300 + [False] * 300
    assert report.by_task(found_in)["task"]["texts_found"] == 300
