"""Layouts of records as people have them: which fields hold the texts, and how many there are."""

import csv
import gzip
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jina_jax.config import SourceConfig
from jina_jax.errors import UserError
from jina_jax.sources.read import read_source, what_was_found, with_fields
from jina_jax.types import NO_PAIR, BadRecord, Origin, Pair, Triplet

ONE = ("a query", "its answer")
THREE = (*ONE, "another answer")


def write(path, records):
    """Records in the format of the path's ending."""
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(record) + "\n" for record in records))
    elif path.suffix == ".json":
        path.write_text(json.dumps(records))
    elif path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(records), path)
    elif path.suffix == ".arrow":
        table = pa.Table.from_pylist(records)
        with pa.ipc.new_stream(path, table.schema) as writer:
            writer.write_table(table)
    else:
        with path.open("w", newline="") as file:
            marks = {".csv": ",", ".tsv": "\t"}
            rows = csv.DictWriter(file, list(records[0]), delimiter=marks[path.suffix])
            rows.writeheader()
            rows.writerows(records)
    return path


def texts(path, **fields):
    """The texts of what is read, or the reason for which it is not."""
    items = read_source(SourceConfig("s", paths=(str(path),), **fields))
    return [item.reason if isinstance(item, BadRecord) else item.texts for item in items]


@pytest.mark.parametrize("ending", ["jsonl", "json", "csv", "tsv", "parquet", "arrow"])
@pytest.mark.parametrize(
    "names",
    [
        ("query", "positive"), ("question", "answer"), ("anchor", "positive"),
        ("sentence1", "sentence2"), ("premise", "entailment"), ("Query", "Passage"),
        ("query", "document"), ("query", "pos"), ("title", "abstract"),
        ("anchor", "positive", "negative"), ("query", "pos", "neg"),
        ("question", "answer", "hard_neg"), ("query", "positive", "negative_1"),
        ("premise", "entailment", "contradiction"),
    ],
    ids=lambda names: "-".join(names),
)  # fmt: skip
def test_common_names_are_found_in_every_format(tmp_path, names, ending):
    # Other columns stand around them, and the order says nothing.
    record = dict(reversed(list(zip(names, THREE)))) | {"id": "7"}
    path = write(tmp_path / f"a.{ending}", [record, record])
    assert texts(path) == [THREE[: len(names)]] * 2


def test_what_is_found_is_said_in_a_line(tmp_path):
    path = write(tmp_path / "a.jsonl", [{"question": "a", "answer": "b", "negative_1": "c"}])
    source = SourceConfig("faq", paths=(str(path),))
    named = with_fields(source)
    assert (named.query_field, named.positive_field) == ("question", "answer")
    assert named.negative_field == "negative_*"
    said = what_was_found(source, named)
    assert said == "faq: queries in 'question', positives in 'answer', negatives in 'negative_*'"
    assert with_fields(named) == named and what_was_found(named, named) == ""


def test_named_fields_are_taken_as_they_are_named(tmp_path):
    record = {"query": "a query", "positive": "its answer", "negative": "another answer"}
    path = write(tmp_path / "a.jsonl", [record])
    assert texts(path) == [THREE]
    assert texts(path, query_field="query", positive_field="positive") == [ONE]
    assert texts(path, query_field="positive", positive_field="query") == [ONE[::-1]]
    assert texts(path, negative_field="negative") == [THREE]
    assert texts(path, query_field="negative") == [(THREE[2], THREE[1])]


@pytest.mark.parametrize("ending", ["jsonl", "parquet"])
def test_lists_of_positives_and_negatives(tmp_path, ending):
    path = write(
        tmp_path / f"a.{ending}",
        [
            {"query": "q", "pos": ["a", "b"], "neg": ["x", "y"]},
            {"query": "r", "pos": ["c"], "neg": []},
            {"query": "s", "pos": ["d"], "neg": None},
            {"query": "t", "pos": [], "neg": ["z"]},
        ],
    )
    assert texts(path) == [
        ("q", "a", "x"), ("q", "a", "y"), ("q", "b", "x"), ("q", "b", "y"),
        ("r", "c", ""), ("s", "d", ""), NO_PAIR,
    ]  # fmt: skip
    assert texts(path, query_field="query", positive_field="pos") == [
        ("q", "a"), ("q", "b"), ("r", "c"), ("s", "d"), NO_PAIR,
    ]  # fmt: skip


@pytest.mark.parametrize("ending", ["jsonl", "csv", "parquet"])
def test_numbered_negatives_are_taken_in_their_order_and_gaps_passed_over(tmp_path, ending):
    record = {"anchor": "q", "positive": "p"} | {f"negative_{n}": f"n{n}" for n in (10, 2, 1)}
    path = write(tmp_path / f"a.{ending}", [record, record | {"negative_2": ""}])
    assert texts(path) == [
        ("q", "p", "n1"), ("q", "p", "n2"), ("q", "p", "n10"), ("q", "p", "n1"), ("q", "p", "n10"),
    ]  # fmt: skip


@pytest.mark.parametrize("ending", ["jsonl", "parquet", "arrow"])
def test_dotted_paths_lead_into_objects(tmp_path, ending):
    record = {
        "data": {"q": {"text": "a query"}, "answers": {"text": ["its answer", "too"]}},
        "wrong": [{"title": "t", "body": "another answer"}, {"title": "u", "body": "a third"}],
    }
    path = write(tmp_path / f"a.{ending}", [record])
    fields = {"query_field": "data.q.text", "positive_field": "data.answers.text"}
    assert texts(path, **fields) == [ONE, ("a query", "too")]
    assert texts(path, **fields, negative_field="wrong.body") == [
        (*ONE, "another answer"), (*ONE, "a third"),
        ("a query", "too", "another answer"), ("a query", "too", "a third"),
    ]  # fmt: skip


def test_a_name_with_a_dot_in_it_is_a_name_first(tmp_path):
    path = write(
        tmp_path / "a.jsonl", [{"a.b": "its answer", "a": {"b": "no"}, "query": "a query"}]
    )
    assert texts(path, positive_field="a.b") == [ONE]


PASSAGES = [{"docid": "1", "title": "t", "text": "its answer"}]
OTHERS = [{"docid": "2", "title": "t", "text": "another answer"}]


@pytest.mark.parametrize("ending", ["jsonl", "parquet"])
@pytest.mark.parametrize(
    "record",
    [
        {"query_id": "1", "query": ONE[0], "positive_passages": PASSAGES,
         "negative_passages": OTHERS},
        {"question": ONE[0], "answers": ["x"], "positive_ctxs": PASSAGES,
         "hard_negative_ctxs": OTHERS},
        {"query": ONE[0], "pos": [ONE[1]], "neg": [THREE[2]], "pos_scores": [1.0]},
    ],
    ids=["tevatron", "dpr", "flagembedding"],
)  # fmt: skip
def test_public_layouts_of_training_files(tmp_path, record, ending):
    assert texts(write(tmp_path / f"a.{ending}", [record])) == [THREE]


def test_lines_of_embedding_training_data(tmp_path):
    for number, (line, expected) in enumerate(
        [
            (list(ONE), [ONE]), (list(THREE), [THREE]), ({"texts": list(ONE)}, [ONE]),
            ({"texts": list(THREE)}, [THREE]),
            ({"set": ["a", "b", "c", "d"]}, [("a", "b"), ("a", "c"), ("a", "d")]),
        ]
    ):  # fmt: skip
        path = write(tmp_path / f"{number}.jsonl", [line])
        assert texts(path) == expected


@pytest.mark.parametrize(
    "name, content",
    [
        ("collection.tsv", "a query\tits answer\tanother answer\n" * 2),
        ("triples.tsv.gz", "a query\tits answer\tanother answer\n" * 2),
        ("a.csv", 'a query,its answer,"another answer"\n' * 2),
    ],
)
def test_columns_by_number_where_there_is_no_header(tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(gzip.compress(content.encode()) if name.endswith("gz") else content.encode())
    numbers = {"query_field": "1", "positive_field": "2"}
    assert texts(path, **numbers) == [ONE] * 2
    assert texts(path, **numbers, negative_field="3") == [THREE] * 2
    with pytest.raises(UserError, match=r'without a header these are numbers: query_field="1"'):
        texts(path)


@pytest.mark.parametrize("ending", ["csv", "tsv"])
def test_an_extractor_reads_the_rows_of_a_table(tmp_path, ending):
    rows = [
        {"premise": "p", "hypothesis": "follows", "label": "entailment"},
        {"premise": "p", "hypothesis": "does not", "label": "contradiction"},
    ]
    path = write(tmp_path / f"a.{ending}", rows)
    assert texts(path, extractor="nli_pairs") == [("p", "follows"), NO_PAIR]
    assert texts(path, extractor="nli_triplets", negative_field="n") == [
        ("p", "follows", "does not")
    ]


@pytest.mark.parametrize(
    "record, lacks",
    [
        ({"one": "a", "two": "b"}, "query"),
        ({"query": "a", "two": "b"}, "positive"),
        ({"premise": "a", "hypothesis": "b", "label": 2}, "positive"),
    ],
)
def test_what_has_no_common_name_is_told_with_what_is_there(tmp_path, record, lacks):
    path = write(tmp_path / "a.jsonl", [record])
    with pytest.raises(UserError) as caught:
        texts(path)
    said = str(caught.value)
    assert f"none is known for the {lacks}" in said and ", ".join(record) in said
    assert "'s'" in said and str(path) in said


def test_a_first_record_that_is_none_is_passed_over(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('5\n{broken\n{"id": 1}\n{"question": "a query", "answer": "its answer"}\n')
    assert texts(path) == ["wrong_type", "malformed_json", "missing_field", ONE]


def test_negatives_are_found_where_the_first_record_has_none(tmp_path):
    rows = [{"query": "q", "pos": ["p"]}, {"query": "q", "pos": ["p"], "neg": ["n"]}]
    assert texts(write(tmp_path / "a.jsonl", rows)) == [("q", "p", ""), ("q", "p", "n")]


def test_lists_that_would_make_millions_are_one_bad_record(tmp_path):
    path = write(tmp_path / "a.jsonl", [{"query": "q", "pos": ["p"] * 999, "neg": ["n"] * 999}])
    assert texts(path) == ["too_long"]


def test_cells_that_are_no_texts_are_counted(tmp_path):
    records = [
        {"query": "q", "pos": ["a", 3]}, {"query": ["q"], "pos": ["a"]}, {"query": "q"},
        {"query": None, "pos": ["a"]}, {"query": "q", "pos": [["a"]]},
        {"query": "q", "pos": ["\ud800"]},
    ]  # fmt: skip
    assert texts(write(tmp_path / "a.jsonl", records)) == [
        "wrong_type", "wrong_type", "missing_field", "missing_field", "wrong_type", "invalid_utf8",
    ]  # fmt: skip


def test_every_item_of_a_record_has_its_line(tmp_path):
    path = write(tmp_path / "a.jsonl", [{"query": "q", "pos": ["a", "b"]}])
    assert list(read_source(SourceConfig("s", paths=(str(path),)))) == [
        Pair("q", "a", Origin(str(path), 1)), Pair("q", "b", Origin(str(path), 1)),
    ]  # fmt: skip
    path = write(tmp_path / "b.jsonl", [{"query": "q", "pos": "a", "neg": "n"}])
    (found,) = read_source(SourceConfig("s", paths=(str(path),)))
    assert found == Triplet("q", "a", "n", Origin(str(path), 1))
