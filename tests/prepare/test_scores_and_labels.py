"""Scored pairs and labels, from their files to batches."""

import dataclasses
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jina_jax.config import (
    EvaluateConfig,
    FeedConfig,
    LanguageConfig,
    NearDuplicateConfig,
    NegationConfig,
    RunConfig,
    SourceConfig,
    StsSet,
    TrainConfig,
)
from jina_jax.config.validation import validate
from jina_jax.errors import UnusableError, UserError
from jina_jax.evaluate.retrieval import held_out_retrieval
from jina_jax.evaluate.run import read_tasks
from jina_jax.evaluate.sts import held_out_sts
from jina_jax.feed.batch import BatchFields, RecordKind
from jina_jax.feed.pipeline import feed_of_run
from jina_jax.negation.build import build_negations
from jina_jax.prepare.ledger import ledger_samples
from jina_jax.shards.manifest import load_manifest
from jina_jax.shards.shard_set import ShardSet
from jina_jax.text.identity import text_hash
from tests.marks import some_slow
from tests.pairs import config, pair, run, triplet, write

LABELS = ("sport", 7, True, "7")
"""The second and the last are one label."""


def scored(i):
    """Neighbours of the list of numbers, with a score of 0 to 4.9."""
    texts = list(pair(i).values())
    return {"sentence1": texts[0], "sentence2": texts[1], "score": i % 50 / 10}


def labelled(i, of=pair):
    return of(i) | {"class": LABELS[i % 4]}


def source(path, **more):
    return SourceConfig(path.stem, paths=(str(path),), **more)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """Four sources: pairs with labels, plain pairs, scored pairs, triplets with labels."""
    folder = tmp_path_factory.mktemp("scores")
    bad = [pair(900), pair(901) | {"class": None}, pair(902) | {"class": [1]}]
    classes = write(folder / "classes.jsonl", [labelled(i) for i in range(100)] + bad)
    plain = write(folder / "plain.jsonl", [pair(i) for i in range(500, 600)])
    wrong = [scored(903) | {"score": "high"}, scored(904) | {"score": None}]
    # The first again with another score, and one that the plain pairs have too.
    again = [scored(200) | {"score": -1}, scored(500)]
    german = [{"sentence1": "Wie heißt die Hauptstadt von Frankreich?", "score": 1,
               "sentence2": "Die Hauptstadt von Frankreich heißt Paris."}]  # fmt: skip
    rows = [scored(i) for i in range(200, 300)] + again + wrong + german
    sts = write(folder / "sts.jsonl", rows)
    # Two negatives of one pair with one label, and a third with another.
    several = [
        triplet(i) | {"negative": f"no {i} {n}", "class": n // 2}
        for i in range(650, 656)
        for n in range(3)
    ]
    more = [labelled(i, triplet) for i in range(700, 760)]
    triplets = write(folder / "triplets.jsonl", several + more)
    data = dataclasses.replace(
        config(language=LanguageConfig(enabled=True), eval_pairs=20),
        sources=(
            source(classes, label_field="class"),
            source(plain),
            source(sts, score_field="score", weight=2.0),
            source(triplets, negative_field="negative", label_field="class", in_batch=False,
                   query_field="query", positive_field="positive"),
        ),
        near_duplicates=NearDuplicateConfig(enabled=True, threshold=0.99),
    )  # fmt: skip
    return data, run(data, folder / "out"), folder / "out"


def shards_of(out, summary):
    shards = ShardSet([out / shard.path for shard in summary.shards])
    return shards.read(range(len(shards)))


def test_the_manifest_says_what_the_records_are(prepared):
    _, manifest, out = prepared
    assert [s.record for s in manifest.sources] == ["pair", "pair", "scored", "triplet"]
    assert [s.has_labels for s in manifest.sources] == [True, False, False, True]
    assert load_manifest(out) == manifest
    classes, _, sts, _ = manifest.sources
    assert classes.bad == {"missing_label": 2, "wrong_label": 1}
    assert sts.bad == {"wrong_score": 1, "missing_score": 1}
    for reason, said in {
        "missing_label": "no label in 'class': fields are query, positive",
        "wrong_label": "'class' holds an array",
        "wrong_score": "'score' holds 'high', not a finite number",
        "missing_score": "no score in 'score': it is empty",
    }.items():
        assert ledger_samples(out, reason=reason)[0].detail.startswith(said)


def test_labels_are_equal_in_the_shards_where_they_are_in_the_source(prepared):
    _, manifest, out = prepared
    records = shards_of(out, manifest.sources[0])
    label_of = {text_hash(pair(i)["query"]): str(LABELS[i % 4]) for i in range(100)}
    found = {}
    for hash_2, label in zip(records.hashes_NSx2[:, 0], records.labels_N):
        found.setdefault(label_of[hash_2.tobytes()], set()).add(int(label))
    assert found.keys() == {"sport", "7", "True"}
    assert [len(labels) for labels in found.values()] == [1, 1, 1]
    assert len(set.union(*found.values())) == 3
    plain = shards_of(out, manifest.sources[1])
    assert plain.labels_N is None and plain.golds_N is None


def test_triplets_of_one_pair_and_two_labels_are_two_records(prepared):
    _, manifest, out = prepared
    records = shards_of(out, manifest.sources[3])
    queries = [hash_2.tobytes() for hash_2 in records.hashes_NSx2[:, 0]]
    found = [
        [place for place, query in enumerate(queries) if query == text_hash(triplet(i)["query"])]
        for i in range(650, 656)
    ]
    trained = [places for places in found if places]  # The others are held out.
    assert trained
    for places in trained:
        assert sorted((records.lengths_NS[places] > 0).sum(1)) == [3, 4]
        assert len(set(records.labels_N[places].tolist())) == 2


def test_scores_stay_with_their_pairs_and_the_first_of_two_is_kept(prepared):
    _, manifest, out = prepared
    sts = manifest.sources[2]
    score_of = {text_hash(scored(i)["sentence1"]): scored(i)["score"] for i in range(200, 300)}
    score_of[text_hash(scored(500)["sentence1"])] = scored(500)["score"]
    records = shards_of(out, sts)
    wanted = [score_of[h.tobytes()] for h in records.hashes_NSx2[:, 0]]
    np.testing.assert_array_equal(records.golds_N, np.float32(wanted))
    held = pq.read_table(out / sts.eval_path).to_pylist()
    for row in held:
        assert row["gold"] == np.float32(score_of[row["query_hash"]])
    # 101 pairs are left: of two sources that have the same, neither loses it to the other.
    assert sts.dropped == {"duplicate": 1, "language": 1}
    assert sts.train + sts.eval == 101 == len(records) + len(held)
    plain = manifest.sources[1]
    assert "duplicate" not in plain.dropped
    (lost,) = ledger_samples(out, source="sts", reason="duplicate")
    assert lost.row == 101 and lost.detail.endswith("sts.jsonl:1")
    looked_at = {stage.stage: stage.records for stage in sts.stages}
    assert looked_at == {"language": 102, "near_duplicates": 0}


def test_held_out_scored_pairs_are_ranked_and_not_searched(prepared):
    data, manifest, out = prepared
    (task,) = held_out_sts(manifest, out)
    assert (task.name, len(task.left), task.prompts) == ("sts", 20, ("", ""))
    score_of = {scored(i)["sentence1"]: scored(i)["score"] for i in (*range(200, 300), 500)}
    assert task.score == pytest.approx([score_of[text] for text in task.left])
    assert "sts" not in [task.name for task in held_out_retrieval(manifest, out)]
    tasks = read_tasks(RunConfig(name="r", data_dir=str(out), data=data))
    assert [t.name for t in tasks.sts] == ["sts"]


@pytest.mark.parametrize("workers", some_slow([0], [0, 1]))
def test_batches_have_what_their_source_has(prepared, workers):
    data, manifest, out = prepared
    feed = FeedConfig(
        global_batch_size=8, query_tokens=32, positive_tokens=32, row_tokens=32, workers=workers
    )
    of_run = feed_of_run(
        RunConfig(name="r", data_dir=str(out), data=data, feed=feed, train=TrainConfig(20)),
        manifest,
    )
    assert of_run.feed.fields == BatchFields(labels=True, own_only=True, guide_dims=0)
    scored_pairs = RecordKind(2, is_scored=True)
    assert set(of_run.buckets.rows) == {RecordKind(2), scored_pairs, RecordKind(4)}
    seen = set()
    for batch in of_run.batches:
        arrays, name = batch.arrays, data.sources[batch.source].name
        seen.add(name)
        assert arrays.guide_BTG is None
        assert bool(arrays.own_only) == (name == "triplets")
        assert (arrays.score_B is not None) == (name == "sts")
        assert arrays.label_B2.any(1).all() == (name in ("classes", "triplets"))
        if name == "classes":
            records = shards_of(out, manifest.sources[0])
            theirs = records.labels_N[batch.record_B]
            same = theirs[:, None] == theirs[None]
            found = (arrays.label_B2[:, None] == arrays.label_B2[None]).all(-1)
            np.testing.assert_array_equal(found, same)
        assert len(arrays.ids_RL) in of_run.buckets.rows[
            scored_pairs if name == "sts" else RecordKind(arrays.slot_BT.shape[1])
        ]  # fmt: skip
    assert seen == {"classes", "plain", "sts", "triplets"}


ROWS = [{"query": f"q {i}", "positive": f"p {i}", "topic": i % 3} for i in range(40)]


def as_jsonl(path):
    return write(path.with_suffix(".jsonl"), ROWS)


def as_parquet(path):
    pq.write_table(pa.Table.from_pylist(ROWS), path.with_suffix(".parquet"))
    return path.with_suffix(".parquet")


def as_csv(path):
    lines = ["query,positive,topic", *(",".join(map(str, row.values())) for row in ROWS)]
    path.with_suffix(".csv").write_text("\n".join(lines) + "\n")
    return path.with_suffix(".csv")


@pytest.mark.parametrize("write_as", [as_jsonl, as_parquet, as_csv])
@pytest.mark.parametrize("name", ["label_field", "score_field"])
def test_a_field_that_a_source_lacks_is_told_with_those_that_it_has(tmp_path, write_as, name):
    path = write_as(tmp_path / "a")
    data = dataclasses.replace(
        config(), sources=(SourceConfig("a", paths=(str(path),), **{name: "klass"}),)
    )
    with pytest.raises(UserError, match=f"{name}='klass' is in none of .* query, positive, topic"):
        run(data, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    right = dataclasses.replace(
        data, sources=(SourceConfig("a", paths=(str(path),), **{name: "topic"}),), eval_pairs=4
    )
    records = shards_of(tmp_path / "out", run(right, tmp_path / "out").sources[0])
    numbers = records.labels_N if name == "label_field" else records.golds_N
    assert len(set(numbers.tolist())) == 3


def test_a_source_of_scores_that_are_no_numbers_is_refused_with_examples(tmp_path):
    path = write(tmp_path / "a.jsonl", [scored(i) | {"score": "good"} for i in range(50)])
    data = dataclasses.replace(config(), sources=(source(path, score_field="score"),))
    with pytest.raises(UnusableError, match="wrong_score: 'score' holds 'good', not a finite"):
        run(data, tmp_path / "out")


@pytest.mark.parametrize("value", [float("nan"), "inf", True, 1e39, {"a": 1}])
def test_what_is_no_score(tmp_path, value):
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps(scored(0) | {"score": value}) + "\n")
    data = dataclasses.replace(config(), sources=(source(path, score_field="score"),))
    with pytest.raises(UnusableError, match="wrong_score"):
        run(data, tmp_path / "out")


def test_two_sentences_with_a_score_are_taken_once_its_field_is_named(tmp_path):
    path = write(tmp_path / "a.jsonl", [scored(i) for i in range(50)])
    data = dataclasses.replace(config(), sources=(source(path),), eval_pairs=5)
    with pytest.raises(UserError, match="two sentences in 'sentence1' and 'sentence2' and 'score'"):
        run(data, tmp_path / "out")
    with pytest.raises(UserError, match="set score_field='score'"):
        run(data, tmp_path / "out")
    as_pairs = source(path, query_field="sentence1", positive_field="sentence2")
    manifest = run(dataclasses.replace(data, sources=(as_pairs,)), tmp_path / "pairs")
    assert manifest.sources[0].record == "pair"


def test_a_set_of_ones_own_has_another_name_than_held_out_scored_pairs(prepared):
    data, _, _ = prepared
    sets = (StsSet("sts", ("x",)), StsSet("plain", ("x",)))
    with pytest.raises(UserError, match=r"evaluate\.sts\.0 \(sts\): a source has") as caught:
        validate(RunConfig(name="r", data=data, evaluate=EvaluateConfig(sts=sets)))
    assert "evaluate.sts.1" not in str(caught.value)


def test_scored_pairs_are_not_negated(prepared, tmp_path):
    data, _, _ = prepared
    with pytest.raises(UserError, match="source 'sts' is of scored pairs, whose texts need not"):
        build_negations(NegationConfig(), data, tmp_path / "negation")


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        (
            {"score_field": "s", "negative_field": "n"},
            "have no negatives; leave negative",
        ),
        ({"score_field": "s", "in_batch": False}, "scored pairs have no in-batch negatives"),
        (
            {"score_field": "s", "extractor": "nli_pairs"},
            "nli_pairs reads texts alone",
        ),
        ({"label_field": "l", "kind": "pydocs"}, "pydocs reads texts alone; leave label_field"),
    ],
)
def test_fields_that_contradict_each_other_are_refused(fields, said):
    data = dataclasses.replace(config(), sources=(SourceConfig("s", paths=("x",), **fields),))
    with pytest.raises(UserError, match=said):
        validate(RunConfig(name="r", data=data))
