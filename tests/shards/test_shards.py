import os
import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jina_jax.errors import UserError
from jina_jax.shards.array_record import ShardSet, ShardWriter, decode_records, encode_record

A, B, C = bytes(range(16)), bytes(16), b"\xff" * 16

texts = st.lists(st.integers(0, 65535), max_size=40)
hashes = st.binary(min_size=16, max_size=16)


def write(path, numbers):
    """Record i holds the texts [i] and [i, i]."""
    with ShardWriter(path) as writer:
        for i in numbers:
            writer.write(encode_record([A, i.to_bytes(16, "little")], [[i], [i, i]]))
    return path


def test_the_bytes_of_a_record():
    record = encode_record([A, C], [[1, 258], [65535]])
    assert record == (
        b"\x02\x00" + A + C + b"\x02\x00\x01\x00" + b"\x01\x00\x02\x01" + b"\xff\xff"
    )  # fmt: skip
    record = encode_record([A, C], [[1, 258], [65535]], [-1.5])
    assert record == (
        b"\x02\x01" + A + C + b"\x02\x00\x01\x00" + b"\x00\x00\xc0\xbf"
        + b"\x01\x00\x02\x01" + b"\xff\xff"
    )  # fmt: skip


def test_ids_of_a_large_vocabulary_take_four_bytes():
    record = encode_record([A, C], [[1, 65536], [250_001]], [0.5], wide=True)
    assert record[:2] == b"\x82\x01" and len(record) == 2 + 32 + 4 + 4 + 12
    decoded = decode_records([record, record])
    assert decoded.ids_T.dtype == np.uint32
    assert [decoded.text(1, k).tolist() for k in range(2)] == [[1, 65536], [250_001]]
    assert decoded.scores_NS.tolist() == [[0.5], [0.5]]
    with pytest.raises(ValueError, match="not records of 2 texts"):
        decode_records([record, encode_record([A, C], [[1, 2], [3]], [0.5])])


@given(st.integers(1, 4).flatmap(lambda n: st.lists(st.tuples(*[hashes, texts] * n), max_size=8)))
def test_records_come_back_as_they_were(rows):
    decoded = decode_records([encode_record(row[::2], row[1::2]) for row in rows])
    assert len(decoded) == len(rows)
    for i, row in enumerate(rows):
        assert decoded.hashes_NSx2[i].tobytes() == b"".join(row[::2])
        assert [decoded.text(i, k).tolist() for k in range(len(row) // 2)] == list(row[1::2])
    assert decoded.ids_T.dtype == np.uint16
    assert decoded.hashes_NSx2.dtype == np.uint64


def test_scores_come_back_and_missing_ones_as_nan():
    records = [encode_record([A, B, C], [[i], [i], []], [i / 3, np.nan]) for i in range(5)]
    decoded = decode_records(records)
    assert decoded.scores_NS.dtype == np.float32
    assert decoded.scores_NS[:, 0].tolist() == [np.float32(i / 3) for i in range(5)]
    assert np.isnan(decoded.scores_NS[:, 1]).all()
    assert [decoded.text(i, 1).tolist() for i in range(5)] == [[i] for i in range(5)]
    assert decode_records([encode_record([A, B], [[1], [2]])]).scores_NS is None
    with pytest.raises(ValueError, match="not records of 3 texts and 2 scores"):
        decode_records([records[0], encode_record([A, B, C], [[1], [2], [3]])])


@pytest.mark.parametrize("cut", [0, 1, 30, -1])
def test_bytes_that_are_no_record_are_refused(cut):
    record = encode_record([A, B], [[1, 2], [3]])
    with pytest.raises((ValueError, IndexError)):
        decode_records([record, record[:cut]])


def test_shards_are_numbered_through_and_read_in_the_order_asked(tmp_path):
    shards = ShardSet(
        [write(tmp_path / "a", range(40)), write(tmp_path / "b", range(40, 41)),
         write(tmp_path / "c", range(41, 100))]
    )  # fmt: skip
    assert len(shards) == 100
    wanted = np.array([99, 0, 40, 39, 41, 40, 7])
    got = shards.read(wanted)
    assert [got.text(i, 1).tolist() for i in range(7)] == [[w, w] for w in wanted]
    assert got.hashes_NSx2[:, 1].tolist() == [[w, 0] for w in wanted]
    assert len(shards.read([])) == 0


@pytest.mark.parametrize("index", [-1, 3])
def test_an_index_out_of_range_is_refused(tmp_path, index):
    with pytest.raises(AssertionError):
        ShardSet([write(tmp_path / "a", range(3))]).read([index])


def test_open_shards_survive_pickling_and_forking(tmp_path):
    shards = ShardSet([write(tmp_path / "a", range(500))])
    before = shards.read([321]).ids_T.tolist()
    assert pickle.loads(pickle.dumps(shards)).read([321]).ids_T.tolist() == before
    reader = shards._readers[0]
    read_end, write_end = os.pipe()
    child = os.fork()
    if child == 0:
        ids = shards.read([321]).ids_T.tolist()
        # A reader of its own: two processes must not share a file position.
        os.write(write_end, bytes(str(ids if shards._readers[0] is not reader else 0), "ascii"))
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    assert os.read(read_end, 100) == bytes(str(before), "ascii")


def test_a_shard_that_is_none_is_named(tmp_path):
    (tmp_path / "bad.arrayrecord").write_bytes(b"not a shard" * 10_000)
    with pytest.raises(UserError, match=r"bad\.arrayrecord"):
        ShardSet([tmp_path / "bad.arrayrecord"]).read([0])
    whole = write(tmp_path / "cut.arrayrecord", range(5000)).read_bytes()
    (tmp_path / "cut.arrayrecord").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"cut\.arrayrecord"):
        ShardSet([tmp_path / "cut.arrayrecord"]).read([0])
    with pytest.raises(UserError, match=r"gone\.arrayrecord"):
        len(ShardSet([tmp_path / "gone.arrayrecord"]))
