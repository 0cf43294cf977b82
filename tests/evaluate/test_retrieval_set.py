"""Retrieval sets of one's own: BEIR's layout and plain files, and what is wrong with them."""

import gzip
import json
import weakref
from itertools import islice

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jina_jax.config import EvaluateConfig, NegationSet, RetrievalSet
from jina_jax.config.evaluate import evaluate_problems
from jina_jax.devices.mesh import make_mesh
from jina_jax.errors import UserError
from jina_jax.evaluate.retrieval import (
    Corpus,
    RetrievalTask,
    corpus_of,
    rank_by_bm25,
    rank_by_embedding,
    score,
)
from jina_jax.evaluate.retrieval_set import read_retrieval
from jina_jax.inference.search import stream_top_k
from jina_jax.inference.shares import Encoded
from tests.evaluate.test_sts import Angles
from tests.vectors import numbered

CORPUS = [
    {"_id": "p1", "title": "Apples", "text": "are red"},
    {"_id": "p2", "title": "", "text": "whales are blue"},
    {"_id": 3, "text": "a field"},
    {"_id": "p4", "title": "Only a title", "text": ""},
]
QUERIES = [
    {"_id": "q1", "text": "red fruit"},
    {"_id": "q2", "text": "sea animals"},
    {"_id": "q3", "text": "of another split"},
]
QRELS = [("q1", "p1", 2), ("q1", "3", 0), ("q2", "p2", 1)]
HEADER = "query-id\tcorpus-id\tscore\n"


def lines(rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


def tsv(rows):
    return HEADER + "".join("\t".join(map(str, row)) + "\n" for row in rows)


def beir(folder, corpus=CORPUS, queries=QUERIES, qrels=QRELS, split="test"):
    (folder / "qrels").mkdir(parents=True)
    (folder / "corpus.jsonl.gz").write_bytes(gzip.compress(lines(corpus).encode()))
    (folder / "queries.jsonl").write_text(lines(queries))
    (folder / "qrels" / f"{split}.tsv").write_text(tsv(qrels))
    return RetrievalSet("own", str(folder), split)


def check(task):
    assert task.queries == {"q1": "red fruit", "q2": "sea animals"}
    assert task.corpus.ids == ["p1", "p2", "3", "p4"]
    texts = ["Apples are red", "whales are blue", "a field", "Only a title"]
    assert list(task.corpus.texts()) == texts and list(task.corpus.texts()) == texts
    assert task.relevant == {"q1": {"p1": 2, "3": 0}, "q2": {"p2": 1}}


def test_a_folder_of_beir(tmp_path, capsys):
    check(read_retrieval(beir(tmp_path / "set", split="dev")))
    assert "own: 1 of 3 queries are not judged and left out" in capsys.readouterr().err


def test_files_of_other_kinds_with_their_own_fields(tmp_path):
    corpus = [{"n": str(r["_id"]), "t": r.get("title"), "b": r["text"]} for r in CORPUS]
    for number, rows in enumerate((corpus[:1], corpus[1:])):
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / f"corpus-{number}.parquet")
    queries = [{"n": r["_id"], "b": r["text"]} for r in QUERIES]
    pq.write_table(pa.Table.from_pylist(queries), tmp_path / "queries.parquet")
    (tmp_path / "qrels.csv").write_text(
        "score,q,p\n" + "".join(f"{s},{q},{p}\n" for q, p, s in QRELS)
    )
    config = RetrievalSet(
        "own", corpus=(str(tmp_path / "corpus-*.parquet"),),
        queries=(str(tmp_path / "queries.parquet"),), qrels=(str(tmp_path / "qrels.csv"),),
        kind="parquet", qrels_kind="csv", corpus_fields=("n", "t", "b"), query_fields=("n", "b"),
        qrels_fields=("q", "p", "score"),
    )  # fmt: skip
    check(read_retrieval(config))


def test_what_published_sets_have_is_counted_and_gone_on_with(tmp_path, capsys):
    task = read_retrieval(
        beir(
            tmp_path / "set",
            corpus=[*CORPUS, CORPUS[1], {"_id": "p5", "title": "", "text": " "}],
            queries=[*QUERIES, QUERIES[0]],
            qrels=[("q1", "p1", "2.0"), *QRELS, ("q1", "p9", 1), ("q9", "p1", 1)],
        )
    )
    assert task.corpus.ids == ["p1", "p2", "3", "p4", "p5"]
    assert list(task.corpus.texts())[-2:] == ["Only a title", ""]
    assert task.relevant == {"q1": {"p1": 2, "3": 0}, "q2": {"p2": 1}}
    told = capsys.readouterr().err.splitlines()
    folder = tmp_path / "set"
    assert set(told) == {
        f"own: 1 rows of {folder}/queries.jsonl come twice and are taken once",
        f"own: 1 rows of {folder}/corpus.jsonl.gz come twice and are taken once",
        f"own: 1 rows of {folder}/corpus.jsonl.gz are empty",
        f"own: 2 rows of {folder}/qrels/test.tsv judge what is not there and are left out",
        "own: 1 of 3 queries are not judged and left out",
    }


@pytest.mark.parametrize(
    "rows",
    [
        "q1\tp1\t2\nq1\t3\t0\nq2\tp2\t1\n",
        "q1 0 p1 2\nq1 0 3 0\nq2 0 p2 1\n",
        "q1\tQ0\tp1\t2\nq1\tQ0\t3\t0\nq2\tQ0\tp2\t1\n",
    ],
)
def test_judgements_without_a_header_and_of_trec(tmp_path, rows):
    config = beir(tmp_path / "set")
    (tmp_path / "set" / "qrels" / "test.tsv").write_text(rows)
    check(read_retrieval(config))
    (tmp_path / "set" / "qrels" / "test.tsv").write_text(rows + "q1 q2\n")
    with pytest.raises(UserError, match=r"test\.tsv:4 has [12] columns, and the first row [34]"):
        read_retrieval(config)


def test_a_querys_own_passage_is_not_found(tmp_path, capsys):
    # As in ArguAna: p1 is a query too. The id of p2 alone is that of another text.
    queries = [
        {"_id": "p1", "text": "are red"}, {"_id": "p2", "text": "10"}, {"_id": "q", "text": "7"}
    ]  # fmt: skip
    corpus = [
        {"_id": "p1", "title": "Apples", "text": "are red"}, {"_id": "p2", "text": "20"},
        {"_id": "p3", "text": "red apples"},
    ]  # fmt: skip
    qrels = [("p1", "p3", 1), ("p2", "p3", 1), ("q", "p2", 1)]
    task = read_retrieval(beir(tmp_path / "set", corpus, queries, qrels))
    assert task.own_passages == {"p1"}
    assert "own: 1 queries are passages too, and are not" in capsys.readouterr().err
    found = rank_by_bm25(task, 2)
    assert {q: len(passages) for q, passages in found.items()} == {"p1": 2, "p2": 2, "q": 2}
    assert set(found["p1"]) == {"p2", "p3"} and next(iter(found["p1"])) == "p3"


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (
            {"qrels": [QRELS[0], ("q9", "p1", 1), ("q8", "p1", 1)]},
            r"test\.tsv:3 names the query 'q9' in field 'query-id', which is not there, and so it "
            r"is with 2 of 3 judgements: the files are of two sets",
        ),
        (
            {"qrels": [("q1", "p9", 1)]},
            r"test\.tsv:2 names the passage 'p9' in field 'corpus-id', which is not there",
        ),
        ({"qrels": [("q1", "p1", 1.5)]}, r"test\.tsv:2 holds '1.5' in field 'score', not a whole"),
        (
            {"qrels": [("q1", "p1", "high")]},
            r"test\.tsv:2 holds 'high' in field 'score', not a whole number",
        ),
        ({"qrels": [("q1", "p1", 1), ("q1", "p1", 0)]}, r"test\.tsv:3 gives query 'q1' and pas"),
        ({"qrels": [("q1", "p1", 0)]}, "has no judgement above 0 in field 'score'"),
        ({"qrels": []}, "has no judgement above 0"),
        (
            {"corpus": [*CORPUS, {"_id": "p2", "text": "again"}]},
            r"corpus\.jsonl\.gz:5 has the id 'p2' in field '_id', as a row before it with another",
        ),
        ({"corpus": [{"_id": "p1", "title": 3, "text": "a"}]}, r"gz:1 holds 3 in field 'title'"),
        ({"corpus": [{"_id": "p1", "body": "a"}]}, r"gz:1 has no field 'text'; it has _id, body"),
        ({"queries": [{"_id": "", "text": "a"}]}, r"queries\.jsonl:1 holds '' in field '_id'"),
        ({"queries": [{"_id": True, "text": "a"}]}, r"queries\.jsonl:1 holds True in field '_id'"),
        ({"queries": [{"_id": "q", "text": None}]}, r"queries\.jsonl:1 holds None in field 'te"),
    ],
)
def test_what_cannot_be_searched_is_named(tmp_path, change, what):
    with pytest.raises(UserError, match=what):
        read_retrieval(beir(tmp_path / "set", **change))


def test_missing_files_are_named(tmp_path):
    config = beir(tmp_path / "set")
    with pytest.raises(
        UserError, match=r"no .*qrels/dev\.tsv or \.parquet; choose a split of: test"
    ):
        read_retrieval(RetrievalSet("own", str(tmp_path / "set"), "dev"))
    (tmp_path / "set" / "corpus.jsonl.gz").unlink()
    with pytest.raises(UserError, match=r"set has no corpus\.jsonl, neither plain nor"):
        read_retrieval(config)
    with pytest.raises(UserError, match="matches no file"):
        read_retrieval(RetrievalSet("own", corpus=("c",), queries=("q",), qrels=("r",)))


def test_a_configuration_that_cannot_be_used_is_told():
    files = {"corpus": ("c",), "queries": ("q",), "qrels": ("r",)}
    cases = {
        "evaluate.retrieval.0 (a) needs a folder, or files for all": RetrievalSet("a"),
        "evaluate.retrieval.0 (a) has both a folder and corpus": RetrievalSet("a", "d", **files),
        "what is in a folder goes by its endings": RetrievalSet("a", "d", kind="parquet"),
        "must not be empty or hold '/'": RetrievalSet("a/b", "d"),
    }
    for what, one in cases.items():
        (problem,) = evaluate_problems(EvaluateConfig(retrieval=(one,)))
        assert what in problem
    assert not list(evaluate_problems(EvaluateConfig(retrieval=(RetrievalSet("a", **files),))))
    (problem,) = evaluate_problems(EvaluateConfig(negation=(NegationSet("a", ()),)))
    assert problem == "evaluate.negation.0 (a) has no paths"


class Counted(Angles):
    """Embeds a few texts at a time, and notes how many it was asked to hold."""

    mesh = make_mesh()

    def __init__(self):
        self.parts = []

    def own(self, texts, prompt=None):
        texts = list(texts)
        parts = [texts[first : first + 3] for first in range(0, len(texts), 3)]
        self.parts += map(len, parts)
        return numbered(map(self.encode, parts))


def test_a_corpus_is_ranked_part_by_part(tmp_path):
    angles = np.random.default_rng(0).permutation(np.arange(0, 50, 2.5))
    corpus = [{"_id": f"p{i}", "text": str(a)} for i, a in enumerate(angles)]
    queries = [{"_id": "q", "text": "11"}, {"_id": "r", "text": "49"}]
    ids = [f"p{i}" for i in np.argsort(np.abs(angles - 11))]
    config = beir(tmp_path / "set", corpus, queries, [("q", ids[1], 1), ("r", ids[-1], 1)])
    task, embedder = read_retrieval(config), Counted()
    found = rank_by_embedding(task, embedder, 5)
    assert list(found["q"]) == ids[:5] and embedder.parts == [3] * 6 + [2]
    # The one of `q` is second, that of `r` first.
    assert score(task, found, 10)["ndcg@10"] == pytest.approx((1 / np.log2(3) + 1) / 2, abs=1e-6)


class Unkept(Angles):
    """Random vectors part by part; notes how many parts are held whenever one is asked for."""

    mesh = make_mesh()

    def __init__(self, corpus_CD, rows):
        self.corpus_CD, self.rows = corpus_CD, rows
        self.held, self.most = 0, 0

    def encode(self, texts, *, prompt=None, progress=False):
        return self.corpus_CD[[int(t) for t in texts]]

    def own(self, texts, prompt=None):
        texts, end = iter(texts), 0
        while part := list(islice(texts, self.rows)):
            z_ND = self.encode(part)
            self.held += 1
            self.most = max(self.most, self.held)
            weakref.finalize(z_ND, self.let_go)
            end += len(part)
            yield Encoded(np.arange(end - len(part), end), z_ND, end)
            del z_ND

    def let_go(self):
        self.held -= 1


def test_a_corpus_of_any_size_is_held_by_two_parts_and_ranked_as_by_a_sort():
    rng = np.random.default_rng(3)
    # Whole numbers, so that products are exact and equal scores are common.
    corpus_CD = rng.integers(-3, 4, (20_000, 16)).astype(np.float32)
    queries = {f"q{i}": str(i) for i in rng.choice(len(corpus_CD), 50, replace=False)}
    ids = [f"p{i}" for i in range(len(corpus_CD))]
    for count in (5_000, 20_000):
        corpus = Corpus(ids[:count], lambda count=count: map(str, range(count)), "")
        task = RetrievalTask("own", queries, corpus, {q: {"p0": 1} for q in queries})
        embedder = Unkept(corpus_CD, 256)
        found = rank_by_embedding(task, embedder, 100)
        assert embedder.most == 2 and embedder.held == 0
        q_QD = corpus_CD[[int(text) for text in queries.values()]]
        names = np.sort(ids[:count])[::-1]
        of_name = [int(name[1:]) for name in names]
        order = np.argsort(-(q_QD @ corpus_CD[of_name].T), axis=1, kind="stable")[:, :100]
        assert [list(ranked) for ranked in found.values()] == names[order].tolist()


def test_parts_of_any_size_give_what_the_whole_gives():
    rng = np.random.default_rng(0)
    q, corpus = (rng.integers(-3, 4, (n, 8)).astype(np.float32) for n in (11, 301))
    exact = np.argsort(-(q @ corpus.T), axis=1, kind="stable")[:, :20]
    for sizes in ([301], [1] * 301, [100, 1, 0, 150, 50], [7] * 43):
        parts = np.split(corpus, np.cumsum(sizes)[:-1])
        _, index = stream_top_k(q, numbered(parts), 20, query_block=4, block=5)
        assert np.array_equal(index, exact)
    score_QK, index = stream_top_k(q, numbered([corpus[:3], corpus[3:5]]), 20)
    assert score_QK.shape == index.shape == (11, 5) and sorted(index[0]) == [0, 1, 2, 3, 4]
    assert stream_top_k(q, numbered([]), 20)[1].shape == (11, 0)


def test_a_corpus_in_memory_is_given_as_often_as_asked():
    corpus = corpus_of({"a": "x", "b": "y"})
    assert corpus.ids == ["a", "b"]
    assert [*corpus.texts()] == [*corpus.texts()] == ["x", "y"]
