"""Files just as they are published: of six layouts, what is read and what is counted."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jina_jax.config import RetrievalSet, SourceConfig, StsSet
from jina_jax.errors import UserError
from jina_jax.evaluate.retrieval_set import read_retrieval
from jina_jax.evaluate.sts import StsTask, read_sts
from jina_jax.sources.read import read_source, what_was_found, with_fields
from jina_jax.types import BadRecord

CORPUS = """\
{"_id": "4983", "title": "Water diffusion", "text": "Maps of newborn brains.", "metadata": {}}
{"_id": "5836", "title": "", "text": "Cells that suppress.", "metadata": {}}
{"_id": "7912", "title": "Retroposons", "text": "", "metadata": {}}
"""
QUERIES = """\
{"_id": "0", "text": "Biomaterials lack inductive properties.", "metadata": {}}
{"_id": "1", "text": "Diffusion is measured in newborns.", "metadata": {"5836": []}}
{"_id": "3", "text": "Suppressor cells are rare.", "metadata": {}}
"""
QUERY = {"1": "Diffusion is measured in newborns.", "3": "Suppressor cells are rare."}


def write(folder, files):
    """Files by their paths: a text, or rows of a Parquet table."""
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, str):
            (folder / name).write_text(content)
        else:
            pq.write_table(pa.Table.from_pylist(content), folder / name)
    return folder


def passages(task):
    return dict(zip(task.corpus.ids, task.corpus.texts(), strict=True))


def test_beir_with_titles(tmp_path, capsys):
    header = "query-id\tcorpus-id\tscore\n"
    folder = write(
        tmp_path,
        {
            "corpus.jsonl": CORPUS,
            "queries.jsonl": QUERIES,
            "qrels/train.tsv": header + "0\t4983\t1\n",
            "qrels/test.tsv": header + "1\t4983\t2\n1\t5836\t0\n3\t5836\t1\n",
        },
    )
    task = read_retrieval(RetrievalSet("scifact", str(folder)))
    assert passages(task) == {
        "4983": "Water diffusion Maps of newborn brains.", "5836": "Cells that suppress.",
        "7912": "Retroposons",
    }  # fmt: skip
    assert task.queries == QUERY
    assert task.relevant == {"1": {"4983": 2, "5836": 0}, "3": {"5836": 1}}
    assert capsys.readouterr().err == "scifact: 1 of 3 queries are not judged and left out\n"


@pytest.mark.parametrize("name", ["train", "NanoSciFact"])
def test_nanobeir_of_one_set_and_of_all(tmp_path, capsys, name):
    tables = {
        "corpus": [{"_id": "4983", "text": "Maps of brains."}, {"_id": "5836", "text": "Cells."}],
        "queries": [{"_id": "1", "text": QUERY["1"]}, {"_id": "3", "text": QUERY["3"]}],
        "qrels": [{"query-id": "1", "corpus-id": "4983"}, {"query-id": "3", "corpus-id": "5836"}],
    }
    write(tmp_path, {f"{p}/{name}-00000-of-00001.parquet": rows for p, rows in tables.items()})
    if name != "train":
        # The folder of all sets, of which another has texts of its own under the same ids.
        other = {p: [row | {"text": "other"} for row in tables[p]] for p in ("corpus", "queries")}
        for part, rows in (tables | other).items():
            write(tmp_path, {f"{part}/NanoMSMARCO-00000-of-00001.parquet": rows})
    task = read_retrieval(RetrievalSet("nano", str(tmp_path), name))
    assert passages(task) == {"4983": "Maps of brains.", "5836": "Cells."}
    assert task.queries == QUERY
    assert task.relevant == {"1": {"4983": 1}, "3": {"5836": 1}}
    assert capsys.readouterr().err == ""
    with pytest.raises(UserError, match=f"choose a split of: .*{name}"):
        read_retrieval(RetrievalSet("nano", str(tmp_path)))


@pytest.mark.parametrize("name", ["2019qrels-pass.txt", "qrels.dev.tsv", "qrels.robust"])
def test_trec_judgements(tmp_path, capsys, name):
    mark = "\t" if name.endswith("tsv") else " "
    rows = [("1", "Q0", "4983", "3"), ("1", "Q0", "5836", "0"), ("3", "Q0", "5836", "1"),
            ("3", "Q0", "99", "2")]  # fmt: skip
    write(
        tmp_path,
        {
            "corpus.jsonl": CORPUS, "queries.jsonl": QUERIES,
            name: "".join(mark.join(row) + "\n" for row in rows),
        },
    )  # fmt: skip
    path = {part: str(tmp_path / f"{part}.jsonl") for part in ("corpus", "queries")}
    task = read_retrieval(
        RetrievalSet(
            "dl19", corpus=(path["corpus"],), queries=(path["queries"],),
            qrels=(str(tmp_path / name),),
        )
    )  # fmt: skip
    assert task.queries == QUERY and len(task.corpus.ids) == 3
    assert task.relevant == {"1": {"4983": 3, "5836": 0}, "3": {"5836": 1}}
    assert capsys.readouterr().err.splitlines() == [
        f"dl19: 1 rows of {tmp_path / name} judge what is not there and are left out",
        "dl19: 1 of 3 queries are not judged and left out",
    ]


@pytest.mark.parametrize(("name", "kind"), [("sts-test.csv", "text"), ("sts-test.tsv", "auto")])
def test_sts_benchmark(tmp_path, capsys, name, kind):
    rows = (
        ("main-captions", "MSRvid", "2012test", "0024", "2.500", "A girl styles.", "A girl acts."),
        # A quote means nothing, and some rows have licences behind the texts.
        ("main-forums", "deft", "2014", "0041", "3.6", '"Yes," he said', "He agreed.", "l1", "l2"),
        ("main-news", "headlines", "2015", "0007", "0", "Rain", " "),
        ("main-news", "headlines", "2015", "0008", "0", "Sun", "Stocks fall"),
    )
    write(tmp_path, {name: "".join("\t".join(row) + "\n" for row in rows)})
    task = read_sts(StsSet("stsb", (str(tmp_path / name),), kind, ("6", "7", "5")))
    left = ["A girl styles.", '"Yes," he said', "Sun"]
    right = ["A girl acts.", "He agreed.", "Stocks fall"]
    assert task == StsTask("stsb", left, right, [2.5, 3.6, 0.0])
    assert "stsb: 1 pairs with an empty text are left out" in capsys.readouterr().err


def read(source):
    """The texts of each item, or the reason for which it is left out."""
    return [i.reason if isinstance(i, BadRecord) else i.texts for i in read_source(source)]


def test_ms_marco_triples(tmp_path):
    rows = (
        ("what is a bat", "A bat is a mammal.", '"Bat" is a stick.'),
        ('who said "veni', 'Caesar said: "veni.', "Nobody; he wrote it."),
        ("too few", "columns"),
    )
    lines = "".join("\t".join(row) + "\n" for row in rows)
    path = write(tmp_path, {"triples.train.small.tsv": lines}) / "triples.train.small.tsv"
    source = SourceConfig(
        "msmarco", paths=(str(path),), query_field="1", positive_field="2", negative_field="3"
    )
    assert read(source) == [*rows[:2], "wrong_column_count"]


def test_flagembedding(tmp_path):
    lines = """\
{"query": "bat", "pos": ["A mammal.", "It flies."], "neg": ["A stick.", "A cat."], "prompt": "Find"}
{"query": "sun", "pos": ["A star."], "neg": ["A moon."], "pos_scores": [1], "neg_scores": [0]}
{"query": "sea", "pos": ["Water."], "neg": []}
{"query": "air", "pos": [], "neg": ["Water."]}
"""
    path = write(tmp_path, {"toy_finetune_data.jsonl": lines}) / "toy_finetune_data.jsonl"
    source = SourceConfig("toy", paths=(str(path),))
    assert read(source) == [
        ("bat", "A mammal.", "A stick."), ("bat", "A mammal.", "A cat."),
        ("bat", "It flies.", "A stick."), ("bat", "It flies.", "A cat."),
        ("sun", "A star.", "A moon."), ("sea", "Water.", ""), "no_pair",
    ]  # fmt: skip
    said = "toy: queries in 'query', positives in 'pos', negatives in 'neg'"
    assert what_was_found(source, with_fields(source)) == said


def test_ms_marco_passages_and_queries_without_a_header(tmp_path):
    (tmp_path / "collection.tsv").write_text('0\tA "quoted" passage.\n1\tAnother one.\n')
    (tmp_path / "queries.tsv").write_text("7\twhat is quoted\n8\tnot judged\n")
    (tmp_path / "qrels.tsv").write_text("7\t0\t0\t1\n")
    task = read_retrieval(
        RetrievalSet(
            "marco", corpus=(str(tmp_path / "collection.tsv"),),
            queries=(str(tmp_path / "queries.tsv"),), qrels=(str(tmp_path / "qrels.tsv"),),
            corpus_fields=("1", "", "2"), query_fields=("1", "2"),
        )
    )  # fmt: skip
    assert list(task.corpus.texts()) == ['A "quoted" passage.', "Another one."]
    assert task.queries == {"7": "what is quoted"} and task.relevant == {"7": {"0": 1}}
