"""Each extractor on records shaped as its data set has them."""

import json

import pytest

from jina_jax.sources.extract import GROUPED, PER_RECORD, embedding_texts
from tests.sources.extractor_cases import DOG, GROUPED_CASES, PER_RECORD_CASES, TRIVIA, esci, nli


@pytest.mark.parametrize("name, record, expected", PER_RECORD_CASES)
def test_texts_of_one_record(name, record, expected):
    assert PER_RECORD[name](record) == expected


@pytest.mark.parametrize("name, group, expected", GROUPED_CASES)
def test_texts_of_a_group(name, group, expected):
    assert GROUPED[name].texts(group) == expected


def test_every_extractor_has_a_case():
    assert {name for name, _, _ in PER_RECORD_CASES} == set(PER_RECORD)
    assert {name for name, _, _ in GROUPED_CASES} == set(GROUPED)


def test_groups_are_keyed_by_premise_query_and_block():
    assert GROUPED["nli_triplets"].key(nli("yes", 0), "other") == DOG
    assert GROUPED["esci_triplets"].key(esci("cable", "Exact"), None) == "usb cable"
    keys, before = [], None
    for line in [*TRIVIA, *TRIVIA]:
        before = GROUPED["opentrivia"].key(line, before)
        keys.append(before)
    assert keys == [1] * 5 + [2] * 5


@pytest.mark.parametrize(
    "name, record",
    [
        ("embedding_texts", ["one"]),
        ("embedding_texts", {"title": "a"}),
        ("embedding_texts", {"query": "q", "pos": {"a": 1}}),
        ("embedding_texts", "text"),
        ("embedding_texts", {"set": []}),
        ("ms_marco_pairs", {"query": "q", "passages": {"passage_text": ["a"], "is_selected": []}}),
        ("triviaqa_pairs", {"question": "q", "answer": "a"}),
        ("wikisplit", "no tab"),
        ("wikisplit", "a\tone half"),
        ("sts_pairs", "a\tb"),
        ("nli_pairs", ["premise"]),
    ],
)
def test_another_shape_raises_what_the_reader_reports(name, record):
    with pytest.raises((KeyError, TypeError, IndexError, ValueError, AttributeError)):
        PER_RECORD[name](record)


def test_json_gives_the_shapes_that_are_read():
    line = '{"query": "q", "pos": ["a"], "neg": ["x"]}'
    assert embedding_texts(json.loads(line)) == [("q", "a", "x")]
