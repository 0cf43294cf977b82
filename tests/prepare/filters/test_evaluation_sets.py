import gzip
import json
import pickle
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jina_jax.config import DecontaminationConfig, EvaluationSet
from jina_jax.errors import UserError
from jina_jax.prepare.filters.decontaminate import (
    decontamination_filter,
    evaluation_texts,
    leak_report,
    load_index,
)
from jina_jax.shards.manifest import load_manifest
from tests.pairs import config, pair, run, triplet, write


def texts(*paths, **more):
    return [t.text for t in evaluation_texts(EvaluationSet("dev", tuple(map(str, paths)), **more))]


def test_json_lines_hold_texts_or_lists_of_texts(tmp_path):
    file = tmp_path / "a.jsonl"
    rows = [{"query": "q", "positive": ["a", "b"]}, {"query": None, "positive": []}]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert texts(file) == ["q", "a", "b"]


def test_parquet_has_columns(tmp_path):
    pq.write_table(pa.table({"s1": ["a", "b"], "s2": ["c", " "]}), tmp_path / "a.parquet")
    assert texts(tmp_path / "a.parquet", kind="parquet", fields=("s2", "s1")) == ["c", "a", "b"]


def test_delimited_files_have_a_header_and_quotes(tmp_path):
    (tmp_path / "a.csv").write_text('n,text\n1,"two, or\nmore"\n2,b\n')
    assert texts(tmp_path / "a.csv", kind="csv", fields=("text",)) == ["two, or\nmore", "b"]
    (tmp_path / "a.tsv.gz").write_bytes(gzip.compress(b"n\ttext\n1\tit's, here\n"))
    assert texts(tmp_path / "a.tsv.gz", kind="tsv", fields=("text",)) == ["it's, here"]


def test_plain_text_is_split_at_tabs_without_quotes(tmp_path):
    # STS Benchmark: texts in columns 6 and 7, a quote means nothing.
    file = tmp_path / "sts.csv"
    file.write_text('g\tf\ty\t1\t4.2\t"A man.\tA person.\n\ng\tf\ty\t2\t1.0\tx\ty\textra\n')
    assert texts(file, kind="text", fields=("6", "7")) == ['"A man.', "A person.", "x", "y"]
    assert texts(file, kind="text", fields=())[0].startswith("g\tf")


@pytest.fixture
def two_sets(tmp_path):
    for name in ("a", "b"):
        (tmp_path / f"{name}.txt").write_text(f"the text of {name}\n")
    return DecontaminationConfig(
        tuple(EvaluationSet(n, (str(tmp_path / f"{n}.txt"),), "text", ()) for n in ("a", "b"))
    )


def batch(*queries):
    return pa.RecordBatch.from_pydict({"query": queries, "positive": ["another"] * len(queries)})


def test_all_sets_go_into_one_filter_that_travels(two_sets):
    stage = pickle.loads(pickle.dumps(decontamination_filter(two_sets)))
    reason_N, detail_N, score_N = stage(batch("The text of A!", "say the text of b now", "clean"))
    assert reason_N.tolist() == ["evaluation_text", "evaluation_ngram", ""]
    assert detail_N.tolist() == ["query is a text of a", "query shares 4 words with b", ""]
    assert score_N is None


def test_the_report_follows_from_what_was_dropped(two_sets):
    stage = decontamination_filter(two_sets)
    dropped = [batch("the text of a"), batch("so the text of a", "the text of a")]
    assert leak_report(dropped, stage) == {
        "a": {"texts": 1, "texts_found": 1, "records_dropped": 3},
        "b": {"texts": 1, "texts_found": 0, "records_dropped": 0},
    }


def test_changed_sets_make_another_filter_and_are_refused_midway(two_sets):
    stage = decontamination_filter(two_sets)
    Path(two_sets.sets[1].paths[0]).write_text("another text\n")
    assert decontamination_filter(two_sets) != stage
    load_index.cache_clear()
    with pytest.raises(UserError, match="not those the preparation began with"):
        stage(batch("clean"))


@pytest.mark.parametrize(
    "name, content, more, what",
    [
        ("a.jsonl", b'{"query": "q"}\n', {}, r"a\.jsonl:1 has no field 'positive'; it has query"),
        (
            "a.jsonl",
            b'{"query": 3}\n',
            {"fields": ("query",)},
            r"holds int in field 'query', not a text",
        ),
        ("a.jsonl", b"[1]\n", {}, r"a\.jsonl:1 holds no object"),
        ("a.jsonl", b'{"query": "q"\n', {}, r"a\.jsonl:1 cannot be read \(malformed_json"),
        ("a.jsonl.gz", b"no gzip", {}, r"a\.jsonl\.gz is damaged after line 0"),
        ("a.txt", b"\xff\n", {"kind": "text", "fields": ()}, r"cannot be read \(invalid_utf8"),
        ("a.txt", b"a\tb\n", {"kind": "text", "fields": ("3",)}, r"has no field '3'; it has 1, 2"),
        ("a.csv", b"a,b\n1\n", {"kind": "csv", "fields": ("a",)}, r"a\.csv:2 .*wrong_column_count"),
        ("a.csv", b"a\n\xff\n", {"kind": "csv", "fields": ("a",)}, r"invalid_utf8"),
        ("a.parquet", b"no table", {"kind": "parquet"}, r"cannot be read as Parquet"),
        ("a.jsonl", b"\n", {}, r"'dev' has no text"),
    ],
)
def test_nothing_is_passed_over_in_silence(tmp_path, name, content, more, what):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=what):
        texts(tmp_path / name, **more)


def test_a_path_that_matches_nothing_is_named(tmp_path):
    with pytest.raises(UserError, match=r"'dev': .*none-\*.*matches no file"):
        texts(tmp_path / "none-*.jsonl")


def test_the_manifest_tells_what_was_found_of_each_set(tmp_path):
    (tmp_path / "dev.txt").write_text("What is the number one two three?\nnowhere to be found\n")
    (tmp_path / "triplets-dev.txt").write_text("It is 57, perhaps.\n")
    source = write(tmp_path / "pairs.jsonl", [pair(i) for i in range(100, 200)])
    triplets = write(tmp_path / "triplets.jsonl", [triplet(i) for i in range(100)])
    sets = tuple(
        EvaluationSet(name, (str(tmp_path / f"{name}.txt"),), "text", ())
        for name in ("dev", "triplets-dev")
    )
    manifest = run(
        config(source, triplets, decontamination=DecontaminationConfig(sets)), tmp_path / "out"
    )
    assert manifest.leaks == load_manifest(tmp_path / "out").leaks
    assert manifest.leaks == {
        "dev": {"texts": 2, "texts_found": 1, "records_dropped": 1},
        "triplets-dev": {"texts": 1, "texts_found": 1, "records_dropped": 1},
    }
