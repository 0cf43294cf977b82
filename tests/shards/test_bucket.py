"""Shards at a URL, read by ranges: as those on a disk, with no more bytes, whatever goes wrong."""

import itertools
import os
import pickle
import random
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import fsspec
import numpy as np
import pytest
import s3fs
from fsspec.implementations.memory import MemoryFileSystem

from jina_jax.errors import Unreachable, UserError
from jina_jax.shards import bucket
from jina_jax.shards.array_record import ShardWriter, encode_record
from jina_jax.shards.bucket import BucketShard
from jina_jax.shards.index import read_index
from jina_jax.shards.manifest import ShardFile, ends_xxh3
from jina_jax.shards.shard_set import ShardSet
from jina_jax.system import files as system_files
from jina_jax.system.hashing import file_sha256
from tests.object_store import ObjectStore

SIZES = (3000, 17, 1300)
"""Of the last two all is fetched at once, as they are hardly larger than their indexes."""


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Shards in a folder that is a bucket, and what the manifest would say of them."""
    folder, rng = tmp_path_factory.mktemp("shards") / "buckets" / "bucket", random.Random(0)
    folder.mkdir(parents=True)
    found, number = [], itertools.count()
    for name, size in zip("acd", SIZES, strict=True):
        with ShardWriter(folder / name) as writer:
            for _ in range(size):
                ids = [[rng.randrange(9, 65536) for _ in range(rng.randrange(60))] for _ in "qp"]
                writer.write(encode_record([next(number).to_bytes(16, "little")] * 2, ids))
        path = folder / name
        found.append(ShardFile(name, size, path.stat().st_size, file_sha256(path), ends_xxh3(path)))
    return folder, found


@pytest.fixture
def local(written):
    folder, found = written
    return ShardSet([folder / file.path for file in found], SIZES)


def at(url, written, tmp_path):
    places = [BucketShard(f"{url}/{file.path}", file, tmp_path / "ix") for file in written[1]]
    return ShardSet(places, SIZES)


@pytest.fixture(autouse=True)
def nothing_held(monkeypatch):
    monkeypatch.setattr(bucket, "_INDEXES", bucket._Indexes())
    monkeypatch.setattr(system_files, "WAITS_S", ())


@pytest.fixture
def memory(written):
    system = fsspec.filesystem("memory")
    for file in written[1]:
        system.pipe_file(f"/b/{file.path}", (written[0] / file.path).read_bytes())
    yield system
    MemoryFileSystem.store.clear()


@pytest.fixture
def remote(memory, written, tmp_path):
    return at("memory://b", written, tmp_path)


@pytest.fixture
def asked(monkeypatch):
    """All ranges that are fetched."""
    found, fetched = [], BucketShard.fetched

    def counted(shard, ranges):
        found.extend((shard.file.path, *r) for r in ranges)
        return fetched(shard, ranges)

    monkeypatch.setattr(BucketShard, "fetched", counted)
    return found


def assert_same(got, expected):
    assert len(got) == len(expected)
    np.testing.assert_array_equal(got.ids_T, expected.ids_T)
    np.testing.assert_array_equal(got.hashes_NSx2, expected.hashes_NSx2)


def numbers(records):
    return records.hashes_NSx2[:, 0, 0].tolist()


RUNS = [
    (0, 1),
    (0, 16),
    (15, 17),
    (2990, 3020),
    (2999, 3018),
    (3016, 3017),
    (3017, 4317),
    (0, 4317),
]


@pytest.mark.parametrize("run", RUNS)
def test_runs_are_those_that_were_written(local, remote, run):
    assert numbers(local.read_run(*run)) == list(range(*run))
    assert_same(remote.read_run(*run), local.read_run(*run))
    assert_same(local.read_run(*run), local.read(range(*run)))


@pytest.mark.parametrize("run", [(0, 0), (-1, 5), (0, 4318), (7, 6)])
def test_a_run_of_no_records_is_refused(local, run):
    with pytest.raises(AssertionError):
        local.read_run(*run)


def test_records_here_and_there_are_those_that_were_written(local, remote):
    wanted = [4316, 0, 3000, 2999, 40, 41, 4316, 3017]
    assert_same(remote.read(wanted), local.read(wanted))
    assert len(remote) == len(local) == 4317
    assert [len(part) for part in remote.batches()] == [4317]
    unknown = ShardSet(remote._shards)
    assert len(unknown) == 4317


def test_a_run_is_one_request_of_its_chunks_bytes(remote, asked, local):
    remote.read_run(0, 1)
    assert [name for name, *_ in asked] == ["a", "a", "a"]  # Both ends, and the chunk.
    del asked[:]
    records = remote.read_run(1024, 2048)
    [(name, start, end)] = asked
    own = sum(len(part) for part in (records.ids_T.tobytes(), records.hashes_NSx2.tobytes()))
    own += 6 * len(records)  # u8 n, u8 s, and two lengths.
    assert name == "a" and own < end - start < 1.05 * own
    del asked[:]
    remote.read([5, 7, 900, 17])
    assert len(asked) == 2  # Chunks 0 and 1 follow each other.
    assert sum(end - start for _, start, end in asked) < 1.5 * 3 * 16 * own / 1024


def test_an_index_is_fetched_once_a_machine(remote, asked, monkeypatch, tmp_path, local):
    with ThreadPoolExecutor(8) as pool:
        runs = [(first, first + 100) for first in range(0, 2900, 100)]
        for run, got in zip(runs, pool.map(lambda run: remote.read_run(*run), runs), strict=True):
            assert_same(got, local.read_run(*run))
    assert len(asked) == len(runs) + 2
    monkeypatch.setattr(bucket, "_INDEXES", bucket._Indexes())  # As in another process.
    del asked[:]
    assert_same(remote.read_run(7, 9), local.read_run(7, 9))
    assert len(asked) == 1
    # What a kill has left of one is nothing.
    monkeypatch.setattr(bucket, "_INDEXES", bucket._Indexes())
    [path] = (tmp_path / "ix").iterdir()
    path.write_bytes(path.read_bytes()[:-1])
    assert_same(remote.read_run(7, 9), local.read_run(7, 9))
    assert len(asked) == 4


def test_a_small_shard_is_fetched_once_and_whole(remote, asked, memory, written, local):
    size = written[1][2].size_bytes
    with ThreadPoolExecutor(8) as pool:
        firsts = range(3017, 4300, 100)
        got = list(pool.map(lambda first: remote.read_run(first, min(first + 90, 4317)), firsts))
    assert asked == [("d", 0, size)]
    for first, records in zip(firsts, got, strict=True):
        assert_same(records, local.read_run(first, min(first + 90, 4317)))
    bucket._INDEXES = bucket._Indexes()  # As in another process.
    MemoryFileSystem.store.clear()
    assert_same(remote.read([4316, 3017, 3500]), local.read([4316, 3017, 3500]))
    assert len(asked) == 1


def test_a_damaged_record_of_a_small_shard_is_named(written, remote, memory, local, tmp_path):
    needle = (3500).to_bytes(16, "little") * 2
    flip(memory, "/b/d", (written[0] / "d").read_bytes().index(needle))
    for _ in range(2):
        with pytest.raises(UserError, match=r"shard memory://b/d: record 483 is damaged"):
            remote.read([7, 3500])
        assert_same(remote.read_run(3017, 3400), local.read_run(3017, 3400))
    kept = tmp_path / "ix" / f"{written[1][2].sha256}.index"
    assert kept.stat().st_size < written[1][2].size_bytes / 2  # Without what is damaged.


def test_indexes_on_disk_and_in_memory_are_bounded(written, memory, tmp_path, monkeypatch, asked):
    _, found = written
    index = BucketShard("memory://b/a", found[0], tmp_path / "ix").index()
    size = next((tmp_path / "ix").iterdir()).stat().st_size
    monkeypatch.setattr(bucket, "_KEPT_BYTES", 3 * size)
    monkeypatch.setattr(bucket, "_HELD_BYTES", 3 * index.held_bytes)
    monkeypatch.setattr(bucket, "_LOOKED_AT_EVERY", 1)
    held = bucket._Indexes()
    for i in range(20):
        file = ShardFile("a", SIZES[0], found[0].size_bytes, f"{i:02d}", found[0].ends_xxh3)
        shard = BucketShard("memory://b/a", file, tmp_path / "ix")
        held.get(shard)
        time.sleep(0.002)
        first = shard if i == 0 else first
        first.index()  # As another process uses it.
        time.sleep(0.002)
        assert held._held_bytes == len(held._held) * index.held_bytes
        assert len(held._held) <= 3
    assert len(asked) == 2 * 21  # Both ends of each, once.
    assert sorted(p.name for p in (tmp_path / "ix").iterdir()) == [
        "00.index", "18.index", "19.index"
    ]  # fmt: skip


def test_threads_fetch_at_the_same_time(remote, monkeypatch, local):
    remote.read_run(0, 1)
    together, fetched = threading.Barrier(4, timeout=20), BucketShard.fetched
    monkeypatch.setattr(
        BucketShard, "fetched", lambda self, ranges: (together.wait(), fetched(self, ranges))[1]
    )
    with ThreadPoolExecutor(4) as pool:
        got = list(pool.map(lambda first: remote.read_run(first, first + 20), [0, 40, 80, 120]))
    assert [numbers(part)[0] for part in got] == [0, 40, 80, 120]


def test_of_bytes_in_flight_there_are_so_many_and_no_more(monkeypatch):
    monkeypatch.setattr(bucket, "_IN_FLIGHT_BYTES", 100)
    gate, now, seen = bucket._Gate(), [], []

    def hold(size):
        with gate.held(size):
            now.append(size)
            seen.append(list(now))
            time.sleep(0.005)
            now.remove(size)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(hold, [60, 30, 50, 250, 20, 40, 100, 60] * 3))
    assert all(sum(sizes) <= 100 or sizes == [250] for sizes in seen)
    assert max(map(len, seen)) > 1 and gate._bytes == 0


def test_shards_survive_pickling_and_forking(remote, local):
    expected = local.read_run(2990, 3010).ids_T.tolist()
    assert pickle.loads(pickle.dumps(remote)).read_run(2990, 3010).ids_T.tolist() == expected
    with bucket._INDEXES._lock, bucket._IN_FLIGHT._free:  # As another thread may hold them.
        child = os.fork()
        if child == 0:
            signal.alarm(30)  # Ends a child that waits for a lock.
            os._exit(remote.read_run(2990, 3010).ids_T.tolist() != expected)
    assert os.waitpid(child, 0)[1] == 0


def flip(system, path, offset):
    content = bytearray(system.cat_file(path))
    content[offset] ^= 4
    system.pipe_file(path, bytes(content))


def test_a_damaged_record_is_named_and_not_used(written, remote, memory, local):
    needle = (2500).to_bytes(16, "little") * 2
    flip(memory, "/b/a", (written[0] / "a").read_bytes().index(needle))
    with pytest.raises(UserError, match=r"shard memory://b/a: record 2496 is damaged .*nothing of"):
        remote.read_run(2400, 2600)
    with pytest.raises(UserError, match=r"record 2500 is damaged .*Put the prepared folder there"):
        remote.read([7, 2500])
    assert_same(remote.read_run(2512, 2600), local.read_run(2512, 2600))


def test_what_is_damaged_on_the_way_is_fetched_again(remote, asked, monkeypatch, local):
    remote.read_run(0, 1)
    fetched, times = BucketShard.fetched, itertools.count()

    def damaged(shard, ranges):
        parts = fetched(shard, ranges)
        return parts if next(times) else [part[:99] + b"?" + part[100:] for part in parts]

    monkeypatch.setattr(BucketShard, "fetched", damaged)
    assert_same(remote.read_run(0, 50), local.read_run(0, 50))
    assert next(times) == 2


def test_another_shard_of_the_same_size_is_told(written, remote, memory):
    folder, found = written
    padded = (folder / "c").read_bytes().ljust(found[0].size_bytes, b"\0")
    memory.pipe_file("/b/a", padded)
    with pytest.raises(UserError, match=r"memory://b/a is another one .* put the prepared folder"):
        remote.read_run(0, 10)


def test_a_damaged_index_is_told(written, remote, memory, tmp_path):
    index = BucketShard("memory://b/a", written[1][0], tmp_path / "other").index()
    for offset in range(int(index.start_C[-1]) + 200, index.size_bytes):
        flip(memory, "/b/a", offset)
        content = memory.cat_file("/b/a")
        try:
            read_index(content, len(content))
            break  # Only its hash tells that it is damaged.
        except ValueError:
            flip(memory, "/b/a", offset)
    with pytest.raises(UserError, match=r"shard memory://b/a is damaged .* put the prepared folde"):
        remote.read_run(0, 10)
    assert not (tmp_path / "ix").exists()


@pytest.fixture
def server(written, monkeypatch):
    found = ObjectStore(written[0].parent)
    for name, value in found.environment.items():
        monkeypatch.setenv(name, value)
    found.start()
    yield found
    found.kill()
    found.expired.unlink(missing_ok=True)


def test_what_a_bucket_does_in_the_middle(written, server, tmp_path, local):
    shards, system = at("s3://bucket", written, tmp_path), fsspec.filesystem("s3")
    assert_same(shards.read_run(2990, 3020), local.read_run(2990, 3020))
    content, size = system.cat_file("bucket/a"), f"{written[1][0].size_bytes:,}"
    gone = f"shard s3://bucket/a has no longer the {size} by"
    for left, message in (
        (content[:200_000], gone),
        (content[:700], gone + r".*; put the prepared folder there again"),
        (None, r"shard s3://bucket/a is missing; put the prepared folder there again"),
    ):
        system.rm_file("bucket/a") if left is None else system.pipe_file("bucket/a", left)
        with pytest.raises(UserError, match=message):
            shards.read_run(2000, 2900)
    system.pipe_file("bucket/a", content)
    for code in ("ExpiredToken", "InvalidToken"):
        server.expired.write_text(code)
        with pytest.raises(UserError, match=r"bucket/a: the store refuses.*expired.*`aws sso log"):
            shards.read_run(2000, 2900)
    server.expired.unlink()
    assert_same(shards.read_run(2000, 2900), local.read_run(2000, 2900))


def test_a_bucket_that_goes_away_is_waited_for_and_then_given_up(
    written, server, tmp_path, local, monkeypatch, capsys
):
    # The library's own tries take 10 s.
    monkeypatch.setattr(s3fs.S3FileSystem, "retries", 1)
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    shards = at("s3://bucket", written, tmp_path)
    shards.read_run(0, 10)
    server.kill()
    with pytest.raises(Unreachable, match=r"s3://bucket/a could not be had in 1 tries"):
        shards.read_run(500, 600)
    monkeypatch.setattr(system_files, "WAITS_S", (0.5,) * 40)
    back = threading.Timer(1, server.start)
    back.start()
    assert_same(shards.read_run(500, 600), local.read_run(500, 600))
    back.join()
    said = capsys.readouterr().err
    assert "s3://bucket/a: " in said and "trying again in 0.5 s" in said


def test_of_credentials_that_are_not_there_it_is_told_how_to_get_them(
    written, server, tmp_path, monkeypatch
):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("HOME", str(tmp_path))
    s3fs.S3FileSystem.clear_instance_cache()
    with pytest.raises(Unreachable, match=r"NoCredentialsError.*renew the credentials .*aws sso"):
        at("s3://bucket", written, tmp_path).read_run(0, 10)
