"""Tasks over files: the same numbers as in memory, kept under names that follow from contents."""

import dataclasses

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jina_jax.config import ConsistencyConfig
from jina_jax.data.normalise import text_hash
from jina_jax.score import tasks as tasks_module
from jina_jax.score.cache import content_key, new_array, open_array
from jina_jax.score.consistency import PairTexts, consistency_ranks
from jina_jax.score.encoder import SentenceEncoder
from jina_jax.score.margin import CrossEncoder, triplet_logits
from jina_jax.score.tasks import embed_task, margin_task, rank_task, sample_task
from tests.random_texts import texts

CONFIG = ConsistencyConfig(sample_size=30)
QUERIES, POSITIVES = texts(50, seed=3, longest=6), texts(50, seed=4, longest=6)


@pytest.fixture(scope="module")
def encoder(sentence_folder):
    return SentenceEncoder(sentence_folder)


def hashes(column):
    return np.frombuffer(b"".join(text_hash(t) for t in column), "<u8").reshape(-1, 2)


def table(rows):
    columns = {}
    for name, column in (("query", QUERIES[rows]), ("positive", POSITIVES[rows])):
        columns[name] = pa.array(column, pa.string())
        columns[f"{name}_hash"] = pa.array([text_hash(t) for t in column], pa.binary(16))
    return pa.table(columns)


@pytest.fixture
def tables(tmp_path):
    """One source in a Parquet file and an Arrow file, and an empty one."""
    pq.write_table(table(slice(0, 20)), tmp_path / "a.parquet", row_group_size=7)
    with pa.ipc.new_file(str(tmp_path / "b.arrow"), table(slice(0, 0)).schema) as writer:
        writer.write_table(table(slice(20, 50)))
    pq.write_table(table(slice(0, 0)), tmp_path / "c.parquet")
    return [tmp_path / name for name in ("a.parquet", "b.arrow", "c.parquet")]


def run(tables, folder, encoder, config=CONFIG):
    p, q = ([embed_task(t, c, folder, encoder) for t in tables] for c in ("positive", "query"))
    sample = sample_task(tables, p, folder, config)
    ranks = [rank_task(t, *z, sample, folder, config, encoder.mesh) for t, *z in zip(tables, q, p)]
    return sample, ranks


def test_tasks_give_what_one_call_gives(tables, tmp_path, encoder):
    sample, ranks = run(tables, tmp_path / "cache", encoder)
    pairs = PairTexts(QUERIES, POSITIVES, hashes(QUERIES), hashes(POSITIVES))
    expected = consistency_ranks(pairs, encoder, CONFIG)
    np.testing.assert_array_equal(np.concatenate([open_array(r) for r in ranks]), expected)
    assert [len(open_array(r)) for r in ranks] == [20, 30, 0]
    assert len(open_array(sample)) == 30
    assert np.ptp(expected) > 0


def test_the_order_of_tables_changes_nothing(tables, tmp_path, encoder):
    sample, ranks = run(tables, tmp_path / "one", encoder)
    other_sample, other_ranks = run(tables[::-1], tmp_path / "two", encoder)
    assert sample.name == other_sample.name
    assert sample.read_bytes() == other_sample.read_bytes()
    for one, other in zip(ranks, other_ranks[::-1]):
        assert one.name == other.name
        assert one.read_bytes() == other.read_bytes()


def test_what_exists_is_not_made_again_whatever_the_threshold(
    tables, tmp_path, encoder, monkeypatch
):
    first = run(tables, tmp_path / "cache", encoder)

    def refuse(*_):
        raise AssertionError("made again")

    monkeypatch.setattr(tasks_module, "new_array", refuse)
    assert run(tables, tmp_path / "cache", encoder, dataclasses.replace(CONFIG, top_k=9)) == first
    with pytest.raises(AssertionError, match="made again"):
        run(tables, tmp_path / "cache", encoder, dataclasses.replace(CONFIG, seed=1))


def test_names_follow_from_raw_texts(tmp_path, encoder):
    """Text hashes fold case, which a model may see."""
    names = set()
    for i, text in enumerate(["sea", "Sea", "sea"]):
        path = tmp_path / f"{i}.parquet"
        pq.write_table(pa.table({"query": [text]}), path)
        names.add(embed_task(path, "query", tmp_path / "cache", encoder).name)
    assert len(names) == 2


def test_margin_task(tmp_path, cross_encoder_folder):
    cross_encoder = CrossEncoder(cross_encoder_folder)
    negatives = texts(50, seed=5, longest=6)
    columns = {"query": QUERIES, "positive": POSITIVES, "negative": negatives}
    pq.write_table(pa.table(columns), tmp_path / "t.parquet")
    path = margin_task(tmp_path / "t.parquet", tmp_path / "cache", cross_encoder)
    expected = triplet_logits(zip(QUERIES, POSITIVES, negatives), cross_encoder)
    np.testing.assert_array_equal(open_array(path), expected)
    before = path.stat().st_mtime_ns
    assert margin_task(tmp_path / "t.parquet", tmp_path / "cache", cross_encoder) == path
    assert path.stat().st_mtime_ns == before


def test_a_failure_leaves_nothing_under_the_name(tmp_path):
    with pytest.raises(OSError, match="full"), new_array(tmp_path / "a.npy", (3,), np.int32):
        raise OSError("full")
    assert list(tmp_path.iterdir()) == []


def test_keys_tell_parts_apart():
    assert content_key(["ab", "c"]) != content_key(["a", "bc"])
    assert content_key(["ab", b"c"]) == content_key(["ab", "c"])
