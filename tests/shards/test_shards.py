import os
import pickle
import signal
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jina_jax.errors import UserError
from jina_jax.shards.array_record import ShardWriter, decode_records, encode_record
from jina_jax.shards.shard_set import _READERS, ShardSet

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
    reader = shards._reader(0)
    read_end, write_end = os.pipe()
    child = os.fork()
    if child == 0:
        ids = shards.read([321]).ids_T.tolist()
        # A reader of its own: two processes must not share a file position.
        os.write(write_end, bytes(str(ids if shards._reader(0) is not reader else 0), "ascii"))
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    assert os.read(read_end, 100) == bytes(str(before), "ascii")


def test_a_child_reads_that_was_forked_while_a_thread_opened_a_shard(tmp_path):
    shards = ShardSet([write(tmp_path / "a", range(5))])
    with _READERS._lock:
        child = os.fork()
        if child == 0:
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.alarm(20)
            os._exit(len(shards.read([1])))
    assert os.waitpid(child, 0)[1] == 1 << 8


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


GUIDE = np.array([[127, -128, 0], [1, 2, 3]], np.int8)


def test_the_bytes_of_a_record_with_a_label_a_gold_score_and_a_guide():
    record = encode_record([A, C], [[1, 258], [65535]], label=2**63 + 5, gold=-1.5, guide_NG=GUIDE)
    assert record == (
        b"\x02\x80" + b"\x03\x03\x00" + A + C + b"\x02\x00\x01\x00"
        + b"\x05\x00\x00\x00\x00\x00\x00\x80" + b"\x00\x00\xc0\xbf" + b"\x7f\x80\x00\x01\x02\x03"
        + b"\x01\x00\x02\x01" + b"\xff\xff"
    )  # fmt: skip


@pytest.mark.parametrize("has_scores", [False, True])
@pytest.mark.parametrize("what", ["label", "gold", "guide", "label gold guide"])
def test_labels_gold_scores_and_guides_come_back_each_alone_and_all_together(what, has_scores):
    rng = np.random.default_rng(0)
    ids = [[[i], [i, i][: i % 3], [7] * (i % 2)] for i in range(9)]
    guides = [rng.integers(-127, 128, (sum(map(bool, texts)), 5)).astype(np.int8) for texts in ids]
    more = [{"label": 2**64 - 1 - i, "gold": i / 3, "guide_NG": guides[i]} for i in range(9)]
    kept = {"label": "label", "gold": "gold", "guide": "guide_NG"}
    given = [{kept[w]: m[kept[w]] for w in what.split()} for m in more]
    scores = [0.5, np.nan] if has_scores else []
    records = [encode_record([A, B, C], texts, scores, **m) for texts, m in zip(ids, given)]
    decoded = decode_records(records)
    for i, texts in enumerate(ids):
        assert [decoded.text(i, k).tolist() for k in range(3)] == texts
    assert (decoded.scores_NS is not None) == has_scores
    assert (decoded.labels_N is not None) == ("label" in what)
    assert (decoded.golds_N is not None) == ("gold" in what)
    assert (decoded.guide_NSG is not None) == ("guide" in what)
    if "label" in what:
        assert decoded.labels_N.tolist() == [2**64 - 1 - i for i in range(9)]
    if "gold" in what:
        assert decoded.golds_N.tolist() == [np.float32(i / 3) for i in range(9)]
    if "guide" in what:
        for i, texts in enumerate(ids):
            there = [k for k, text in enumerate(texts) if text]
            np.testing.assert_array_equal(decoded.guide_NSG[i, there], guides[i])
            assert not np.delete(decoded.guide_NSG[i], there, axis=0).any()


def test_records_of_two_layouts_are_not_read_together():
    plain = encode_record([A, B], [[1], [2]])
    with pytest.raises(ValueError, match="not records of 2 texts and 0 scores"):
        decode_records([plain, encode_record([A, B], [[1], [2]], label=1)])
    cut = encode_record([A, B], [[1], [2]], guide_NG=GUIDE)
    for size in (1, 3, 30, len(cut) - 1):
        with pytest.raises(ValueError):
            decode_records([cut[:size]])


_MANY = """
import resource, sys
from pathlib import Path
from jina_jax.shards.shard_set import ShardSet
soft, hard = int(sys.argv[2]), int(sys.argv[3])
resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
paths = sorted(Path(sys.argv[1]).glob("many-*"))
shards = [ShardSet(paths[half::2], [2] * len(paths[half::2])) for half in (0, 1)]
held = [open("/dev/null") for _ in range(int(sys.argv[4]))]
numbers = [n for _ in range(2) for n in range(0, len(shards[0]), 2)]
found = [part.read([n]).text(0, 1).tolist()[0] for n in numbers for part in shards]
assert found == [2 * n + m for n in numbers for m in (0, 2)], found[:10]
print(resource.getrlimit(resource.RLIMIT_NOFILE)[0], len(list(Path("/proc/self/fd").iterdir())))
"""


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    folder = tmp_path_factory.mktemp("many")
    for i in range(300):
        write(folder / f"many-{i:03d}", range(2 * i, 2 * i + 2))
    return folder


@pytest.mark.parametrize(
    ("soft", "hard", "held", "limit_after"),
    [(100, 100, 0, 100), (100, 100, 70, 100), (100, 5000, 0, 800)],
    ids=["few may be open", "others have most of them", "the limit may be raised"],
)
def test_more_shards_than_may_be_open_are_read(many, soft, hard, held, limit_after):
    ask = [sys.executable, "-c", _MANY, str(many), *map(str, (soft, hard, held))]
    done = subprocess.run(ask, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    limit, are_open = map(int, done.stdout.split())
    assert limit == limit_after
    assert are_open > 300 if hard > 1000 else 40 < are_open <= 100


def test_without_a_descriptor_left_the_limit_is_blamed_and_not_the_shard(many):
    few = """
import itertools, resource, sys
from pathlib import Path
from jina_jax.errors import UserError
from jina_jax.shards.shard_set import ShardSet
resource.setrlimit(resource.RLIMIT_NOFILE, (60, 60))
held = []
try:
    while True:
        held.append(open("/dev/null"))
except OSError:
    pass
try:
    ShardSet([Path(sys.argv[1]) / "many-000"]).read([0])
except UserError as error:
    del held
    print(error)
"""
    ask = [sys.executable, "-c", few, str(many)]
    done = subprocess.run(ask, capture_output=True, text=True)
    assert "as many files open as it may (ulimit -n: 60)" in done.stdout, done.stderr[-2000:]
    assert "prepare the data again" not in done.stdout


def test_a_shard_of_another_number_of_records_is_named(tmp_path):
    path = write(tmp_path / "a", range(5))
    assert len(ShardSet([path], [6])) == 6
    with pytest.raises(UserError, match="it has 5 records instead of 6"):
        ShardSet([path], [6]).read([0])


_COLLECTED = """
import gc, sys
from pathlib import Path
from jina_jax.shards import shard_set

def opened(*arguments, opened=shard_set.ArrayRecordReader):
    gc.collect()
    return opened(*arguments)

gc.disable()
shard_set.ArrayRecordReader = opened
for _ in range(9):
    shards = shard_set.ShardSet([Path(sys.argv[1])])
    shards.itself = shards
    assert len(shards.read([3])) == 1
print(len([p for p in Path("/proc/self/fd").iterdir() if str(p.resolve()) == sys.argv[1]]))
"""


def test_a_set_that_is_collected_while_another_opens_a_shard_stops_nobody(tmp_path):
    path = write(tmp_path / "a", range(5))
    ask = [sys.executable, "-c", _COLLECTED, str(path.resolve())]
    done = subprocess.run(ask, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr[-2000:]
    assert int(done.stdout) <= 3  # Of those before, the reader of the last may still be open.
