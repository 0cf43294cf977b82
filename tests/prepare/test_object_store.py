"""The work store in an object store: the same bytes on one machine and on nodes without a common
disk, whatever is killed, fails or is full.
"""

import dataclasses
import importlib.util
import itertools
import os
import pickle
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from jina_jax.config import DecontaminationConfig, EngineConfig, EvaluationSet, TokenizerConfig
from jina_jax.prepare.engine import task
from jina_jax.system import files as files_module
from jina_jax.system import store
from tests.nodes import Nodes
from tests.object_store import ObjectStore
from tests.pairs import config, files, filtered, pair, run, triplet, write
from tests.small_disk import mounted

ROOT = Path(__file__).parents[2]
_NUMBERS = itertools.count()


@pytest.fixture
def memory():
    """A URL of fsspec's memory."""
    yield f"memory://work-{next(_NUMBERS)}/here"
    MemoryFileSystem.store.clear()


def with_engine(settings, **options):
    return dataclasses.replace(settings, engine=EngineConfig(**{"workers": 1} | options))


@pytest.mark.parametrize("cache_gb", [1.0, 1e-9])
def test_a_store_and_a_cache_of_any_size_change_no_byte(tmp_path, memory, cache_gb):
    settings = config(write(tmp_path / "a.jsonl", [pair(i) for i in range(300)] + ["{"]))
    run(with_engine(settings), tmp_path / "alone")
    cache = tmp_path / "cache"
    there = with_engine(settings, work_dir=memory, cache_dir=str(cache), cache_gb=cache_gb)
    run(there, tmp_path / "out")
    assert files(tmp_path / "out") == files(tmp_path / "alone")
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "a.jsonl", "alone", "alone.work", "cache", "out",
    ]  # fmt: skip
    # What was in use is let go; what was fetched stays where there is room for it.
    held = [path for path in cache.rglob("*") if path.is_file() and path.suffix != ".lock"]
    assert all("files" in path.relative_to(cache).parts for path in held)
    assert (len(held) > 5) == (cache_gb == 1.0)


@pytest.fixture
def small_disk(tmp_path):
    """A disk that holds a few files of a preparation and not all."""
    with mounted(tmp_path / "small", "1m") as path:
        yield path


@pytest.mark.slow
def test_a_disk_that_the_cache_fills_changes_no_byte(tmp_path, memory, small_disk, monkeypatch):
    monkeypatch.setattr(files_module, "WAITS_S", (0,) * 3)
    full = []
    make_room = task.make_room
    monkeypatch.setattr(task, "make_room", lambda store: (full.append(1), make_room(store)))
    trim = store.trim
    monkeypatch.setattr(store, "trim", lambda *given: (full.append(1), trim(*given)))
    settings = config(write(tmp_path / "a.jsonl", [pair(i) for i in range(5000)]))
    run(with_engine(settings), tmp_path / "first")
    # Learning a vocabulary takes more at a time than there is.
    given = TokenizerConfig(str(tmp_path / "first" / "tokenizer"))
    settings = dataclasses.replace(settings, tokenizer=given)
    run(with_engine(settings), tmp_path / "alone")
    run(with_engine(settings, work_dir=memory, cache_dir=str(small_disk)), tmp_path / "out")
    assert files(tmp_path / "out") == files(tmp_path / "alone")
    # The bound is 32 GB: each time the disk was full indeed.
    assert full


@pytest.fixture
def bucket(tmp_path, monkeypatch):
    """A folder that is a bucket once `serve` is called with its options."""
    (tmp_path / "buckets" / "bucket").mkdir(parents=True)
    servers = []

    def serve(**options):
        server = ObjectStore(tmp_path / "buckets", **options)
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        server.start()
        servers.append(server)
        return server

    yield serve
    for server in servers:
        server.kill()


def put_sources(tmp_path, pairs=1500, triplets=800):
    """Sources and evaluation sets in the bucket, and the settings that name them there."""
    folder = tmp_path / "buckets" / "bucket"
    write(folder / "first.jsonl", [pair(i) for i in range(pairs)] + ["{"] * 5)
    write(folder / "triplets.jsonl", [triplet(i) for i in range(triplets)])
    settings = filtered(folder / "first.jsonl", folder / "triplets.jsonl")
    sources = tuple(
        dataclasses.replace(source, paths=(f"s3://bucket/{source.name}.jsonl",))
        for source in settings.sources
    )
    held = EvaluationSet("dev", ("s3://bucket/dev.txt",), "text", ())
    return dataclasses.replace(
        settings, sources=sources, decontamination=DecontaminationConfig((held,))
    )


def markers_at(work):
    """Markers of finished tasks in the store, and when they were written."""
    system = fsspec.filesystem("s3")
    system.invalidate_cache()
    found = system.find(f"{work}/done", detail=True)
    return {
        name.partition("/done/")[2]: info["LastModified"]
        for name, info in found.items()
        if info["type"] == "file"
    }


def stages_done(work):
    """Stages with a finished task, as the store has them now."""
    return {name.split("/")[0] for name in markers_at(work)}


SCRIPT = """
import pickle, sys
from pathlib import Path
from tests.pairs import run

if __name__ == "__main__":
    run(pickle.loads(Path(sys.argv[1]).read_bytes()), Path(sys.argv[2]))
"""


KILLS = int(os.environ.get("KILLS", "1"))
"""At least so many, in whole preparations, of which one takes some twenty."""


@pytest.mark.slow
def test_kills_over_all_stages_change_no_byte(tmp_path, bucket):
    settings = put_sources(tmp_path, pairs=700, triplets=300)
    bucket()
    run(with_engine(settings), tmp_path / "alone")
    (tmp_path / "script.py").write_text(SCRIPT)
    chance, kills, killed_in, rounds = random.Random(0), 0, set(), 0
    while kills < KILLS:
        rounds += 1
        work, out = f"bucket/work-{rounds}", tmp_path / f"out-{rounds}"
        there = with_engine(
            settings, workers=2, work_dir=f"s3://{work}", cache_dir=str(tmp_path / "cache")
        )
        (tmp_path / "settings").write_bytes(pickle.dumps(there))
        done = {}
        while not out.exists():
            process = started(tmp_path, out)
            # Kills fall between the first new marker and the end, however fast the machine is.
            wanted = len(done) + chance.randrange(2, 8)
            while process.poll() is None and len(now := markers_at(work)) < wanted:
                time.sleep(0.01)
            if process.poll() is None:
                time.sleep(chance.random() / 10)
                os.killpg(process.pid, signal.SIGKILL)
                kills += 1
                killed_in |= {name.split("/")[0] for name in now.keys() - done.keys()}
            process.wait()
            # A kill may also fall between the last rename and the end of the process.
            expected = {0, -signal.SIGKILL} if out.exists() else {-signal.SIGKILL}
            assert process.returncode in expected
            # What was done before is still done, and was not done again.
            now = markers_at(work)
            assert done.items() <= now.items()
            done = now
        assert files(out) == files(tmp_path / "alone")
    print(f"{kills} kills in {rounds} rounds of {len(done)} tasks, in {sorted(killed_in)}")
    assert {"read", "dedup", "language", "near_duplicates", "split", "encode"} <= killed_in
    # Of the dead nothing stays but what the bounded cache holds, and nothing is left to do.
    out.rename(tmp_path / "first")
    engine = dataclasses.replace(there.engine, cache_gb=1e-9)
    run(dataclasses.replace(there, engine=engine), out)
    assert markers_at(work).items() == done.items()
    in_use = [path for path in (tmp_path / "cache" / "in-use").iterdir() if path.is_dir()]
    assert len(in_use) <= 1


def started(folder, out):
    """A process that prepares with the settings of a folder, in a group of its own."""
    env = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
    return subprocess.Popen(
        [sys.executable, str(folder / "script.py"), str(folder / "settings"), str(out)],
        env=env,
        start_new_session=True,
    )


needs_ray = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None,
    reason="ray is not installed: pip install 'jina-jax[ray]'",
)


@pytest.fixture
def nodes(tmp_path, monkeypatch):
    import ray

    monkeypatch.setenv("PYTHONPATH", f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    monkeypatch.setenv("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
    started = []

    def start():
        started.append(Nodes(tmp_path))
        return started[-1]

    yield start
    ray.shutdown()
    for one in started:
        one.cluster.shutdown()


@needs_ray
@pytest.mark.slow
@pytest.mark.parametrize("fault", ["", "kills", "errors"])
def test_nodes_without_a_common_disk_make_the_same_shards(tmp_path, bucket, nodes, fault):
    settings = put_sources(tmp_path, pairs=700, triplets=300)
    bucket(delay_s=0.05 if fault == "errors" else 0.0, fails_every=9 if fault == "errors" else 0)
    run(with_engine(settings), tmp_path / "alone")
    cluster, killed = nodes(), []

    def kill() -> None:
        """A node in each stage, which another takes the place of."""
        while not (tmp_path / "out").exists():
            for stage in sorted(stages_done("bucket/work") - set(killed)):
                killed.append(stage)
                cluster.kill()
                cluster.add()
            time.sleep(0.05)

    if fault == "kills":
        threading.Thread(target=kill, daemon=True).start()
    there = with_engine(
        settings, kind="ray", ray_address=cluster.cluster.address, work_dir="s3://bucket/work",
        # Less than a stage's files.
        cache_gb=2e-5,
    )  # fmt: skip
    started = time.monotonic()
    run(there, tmp_path / "out")
    print(f"{fault or 'no fault'}: {time.monotonic() - started:.1f} s, killed in {killed}")
    assert files(tmp_path / "out") == files(tmp_path / "alone")
    if fault == "kills":
        assert len(killed) >= 12
    else:
        assert cluster.caches() == {"0", "1"}
    assert not (tmp_path / "out.work").exists()
