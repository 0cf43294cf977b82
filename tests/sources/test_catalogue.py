import dataclasses

import pytest

from jina_jax.config import DataConfig, RunConfig, SourceConfig
from jina_jax.config.validation import validate
from jina_jax.errors import UserError
from jina_jax.sources import extract, read
from jina_jax.sources.catalogue import FAMILIES, catalogue_source, entries
from jina_jax.sources.extract import GROUPED, PER_RECORD
from jina_jax.types import Origin, Pair, Record, Triplet
from tests.sources.extractor_cases import GROUPED_CASES, PER_RECORD_CASES

# Columns as the cards on the hub state them.
COLUMNS = {
    "ms_marco_bm25": ("query", "positive", "negative"),
    "natural_questions": ("query", "answer"),
    "squad": ("question", "context"),
    "gooaq": ("question", "answer"),
    "stack_exchange_duplicates": ("title1", "title2"),
    "amazon_qa": ("query", "answer"),
    "reddit": ("title", "body"),
    "ccnews": ("title", "article"),
    "s2orc_abstracts": ("title", "abstract"),
    "s2orc_citations": ("title", "citation"),
    "specter": ("anchor", "positive", "negative"),
    "negation": ("anchor", "entailment", "negative"),
}
SHAPES = {
    "[text, text]": ["a", "b"],
    "[anchor, positive, negative]": ["a", "b", "c"],
    '{"set": [text, ...]}': {"set": ["a", "b"]},
    '{"query": text, "pos": [text, ...]}': {"query": "a", "pos": ["b"]},
    '{"query": text, "pos": [text, ...], "neg": [text, ...]}': {
        "query": "a", "pos": ["b"], "neg": ["c"],
    },
    '{"texts": [title, body]}': {"texts": ["a", "b"]},
    "one of the collection's five": {"query": "a", "pos": ["b"]},
}  # fmt: skip


def records_of(entry):
    """Records as the entry's data set has them."""
    if entry.name in COLUMNS:
        return [{name: f"the {name}" for name in COLUMNS[entry.name]} | {"id": 7}]
    if entry.source.extractor == "embedding_texts":
        return [SHAPES[entry.shape]]
    cases = [(name, [record], texts) for name, record, texts in PER_RECORD_CASES] + GROUPED_CASES
    return next(c[1] for c in cases if c[0] == entry.source.extractor and c[2])


@pytest.mark.parametrize("entry", entries().values(), ids=lambda entry: entry.name)
def test_pairs_or_triplets_are_made_from_a_record(entry, monkeypatch, tmp_path):
    records = [Record(r, Origin("f", i)) for i, r in enumerate(records_of(entry), 1)]
    for module in (extract, read):
        monkeypatch.setattr(module, "read_records", lambda source, files, *_: iter(records))
    monkeypatch.setattr(read, "matched_files", lambda source: [])
    got = list(extract.read_extracted(read.with_fields(entry.source), ()))
    assert got
    assert all(isinstance(g, Triplet if entry.holds == "triplets" else Pair) for g in got)
    if entry.name in COLUMNS:
        assert got[0].texts == tuple(f"the {name}" for name in COLUMNS[entry.name])


def test_every_family_has_an_entry_and_names_differ():
    assert {entry.family for entry in entries().values()} == set(FAMILIES)
    assert len({entry.name for entry in entries().values()}) == len(entries().values())


def test_every_entry_says_where_it_is_had_and_can_be_configured():
    config = RunConfig(
        "c", data=DataConfig(tuple(catalogue_source(e.name) for e in entries().values()))
    )
    validate(config)
    for entry in entries().values():
        assert entry.where.startswith(("https://", "http://"))
        assert entry.source.licence
        assert entry.source.extractor in {"", *PER_RECORD, *GROUPED}


def test_files_lie_below_the_folder_of_downloads():
    source = catalogue_source("gooaq")
    assert (source.kind, source.dataset, source.paths) == ("hf", "sentence-transformers/gooaq", ())
    source = catalogue_source("eli5", raw="/data/raw/")
    assert source.paths == ("/data/raw/embedding-training-data/eli5_question_answer.jsonl.gz",)
    assert dataclasses.replace(source, limit=5).limit == 5


def test_an_unknown_entry_is_named_with_those_there():
    with pytest.raises(UserError, match=r"no entry 'msmarco'.*ms_marco_triplets"):
        catalogue_source("msmarco")


@pytest.mark.parametrize(
    "source, what",
    [
        (SourceConfig("s", "hf"), "of kind hf and names no dataset"),
        (SourceConfig("s", "tfds", dataset="d", split=""), "empty split"),
        (SourceConfig("s", "text", ("p",)), "lines need an extractor"),
        (SourceConfig("s", "pydocs", extractor="nli_pairs"), "an extractor reads no pydocs"),
        (SourceConfig("s", "jsonl", extractor="nli_pairs"), "has no paths"),
    ],
)
def test_a_source_that_cannot_be_read_is_refused(source, what):
    with pytest.raises(UserError, match=what):
        validate(RunConfig("c", data=DataConfig((source,))))
