import numpy as np
import pyarrow as pa

from jina_jax.data.normalise import text_hash
from jina_jax.mine.pairs import Known, different_texts

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
