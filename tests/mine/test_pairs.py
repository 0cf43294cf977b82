import numpy as np
import pyarrow as pa

from jina_jax.config import SourceConfig
from jina_jax.mine.source import Known, collect_pairs, different_texts
from jina_jax.shards.array_record import ShardWriter, encode_record
from jina_jax.shards.shard_set import ShardSet
from jina_jax.system.arrow import map_table
from jina_jax.text.identity import text_hash
from tests.pairs import write

PAIRS = [("b", "x"), ("a", "y"), ("B ", "z"), ("x", "y"), ("a", "X"), ("y", "w")]


def table():
    columns = list(zip(*PAIRS))
    named = dict(zip(("query", "positive"), columns))
    hashes = {f"{k}_hash": pa.array([text_hash(t) for t in v]) for k, v in named.items()}
    hashes = {k: v.cast(pa.binary(16)) for k, v in hashes.items()}
    texts = {k: pa.array(v, pa.large_string()) for k, v in named.items()}
    return pa.table(texts | hashes)


def test_texts_are_numbered_as_they_come_and_the_first_spelling_stays():
    queries = different_texts(table(), "query")
    assert queries.read(np.arange(len(queries))) == ["b", "a", "x", "y"]
    assert queries.of_pair_N.tolist() == [0, 1, 0, 2, 1, 3]
    passages = different_texts(table(), "positive")
    assert passages.read(np.array([3, 0])) == ["w", "x"]
    assert passages.of_pair_N.tolist() == [0, 1, 2, 1, 0, 3]


def test_known_are_all_positives_of_a_query_and_its_own_text():
    known = Known(*(different_texts(table(), name) for name in ("query", "positive")))
    every = np.tile(np.arange(4), (4, 1))  # passages x, y, z, w
    assert known(np.arange(4), every).astype(int).tolist() == [
        [1, 0, 1, 0],  # b: x and, spelt otherwise, z
        [1, 1, 0, 0],  # a: y and x
        [1, 1, 0, 0],  # x: itself and y
        [0, 1, 0, 1],  # y: itself and w
    ]
    assert known.most == 2


def test_each_trained_pair_is_read_once_however_far_apart_it_comes_again(tmp_path):
    rows = [{"query": f"q {i}", "positive": f"p {i}"} for i in range(5000)]
    again = [{"query": "Q  7", "positive": "p 7"}, {"query": "q 8", "positive": "p 9"}]
    source = write(tmp_path / "a.jsonl", [*rows[:9], *again[:1], *rows, *again])
    shard = tmp_path / "a.arrayrecord"
    with ShardWriter(shard) as writer:
        for i in (4999, 7, 3, 9000):  # The last is not in the source.
            writer.write(
                encode_record([text_hash(f"q {i}"), text_hash(f"p {i}")], [np.array([1])] * 2)
            )
    out = tmp_path / "pairs.arrow"
    assert collect_pairs(SourceConfig("a", paths=(str(source),)), ShardSet([shard]), out) == 3
    assert map_table(out).column("query").to_pylist() == ["q 3", "q 7", "q 4999"]
    assert map_table(out).column("positive_hash")[1].as_py() == text_hash("p 7")
