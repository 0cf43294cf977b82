"""Prepared data at a URL: put there, fetched with every byte checked, and trained on."""

import dataclasses
import itertools
import os
import subprocess
import sys
import time
from pathlib import Path

import fsspec
import pytest
import s3fs
from fsspec.implementations.memory import MemoryFileSystem

from jina_jax.cli.main import main
from jina_jax.errors import Unreachable, UserError
from jina_jax.prepare.run import prepare
from jina_jax.shards import remote
from tests.object_store import ObjectStore
from tests.pairs import files
from tests.prepared import CONFIG_FILE, tiny_config, write_jsonl
from tests.trainer import ROOT, curve, finish, start

_NUMBERS = itertools.count()


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A prepared folder of many shards, below a folder that is a bucket."""
    folder = tmp_path_factory.mktemp("made")
    write_jsonl(folder)
    config = tiny_config(str(folder))
    config = dataclasses.replace(
        config, data=dataclasses.replace(config.data, records_per_shard=40)
    )
    prepare(config.data, folder / "buckets" / "bucket" / "tiny", progress=False)
    return folder, config


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    monkeypatch.setattr(remote, "WAITS_S", ())


@pytest.fixture
def at_memory(made, tmp_path):
    """The config with its data at a URL of fsspec's memory, and a cache of its own."""
    folder, config = made
    url = f"memory://data-{next(_NUMBERS)}/tiny"
    prepared = folder / "buckets" / "bucket" / "tiny"
    local = dataclasses.replace(config, data_dir=url, cache_dir=str(tmp_path / "first"))
    local.data_path.parent.mkdir(parents=True)
    local.data_path.symlink_to(prepared)
    remote.upload_prepared(local)
    yield dataclasses.replace(local, cache_dir=str(tmp_path / "cache"))
    MemoryFileSystem.store.clear()


def of(folder):
    """All files of a prepared folder, but what is only for people and what marks a copy."""
    return {n: b for n, b in files(folder).items() if n.name not in ("ledger.parquet", ".checked")}


def test_what_is_put_comes_back_and_is_not_fetched_twice(made, at_memory, monkeypatch, capsys):
    folder, _ = made
    remote.fetch_prepared(at_memory)
    assert of(at_memory.data_path) == of(folder / "buckets" / "bucket" / "tiny")
    assert len(of(at_memory.data_path)) > 20
    assert "fetching" in capsys.readouterr().err
    remote.fetch_prepared(at_memory)
    remote.upload_prepared(at_memory)
    assert capsys.readouterr().err == ""


def test_a_damaged_copy_is_mended_and_other_data_replace_it(at_memory):
    remote.fetch_prepared(at_memory)
    whole = of(at_memory.data_path)
    (at_memory.data_path / ".checked").unlink()
    shard = next(at_memory.data_path.glob("train/**/*.array*"))
    content = bytearray(shard.read_bytes())
    content[100] ^= 1
    shard.write_bytes(content)
    at_start = {p: p.stat().st_mtime_ns for p in at_memory.data_path.rglob("*") if p.is_file()}
    remote.fetch_prepared(at_memory)
    assert of(at_memory.data_path) == whole
    changed = {p.name for p, t in at_start.items() if p.stat().st_mtime_ns != t}
    assert changed == {shard.name, "manifest.json"}


def test_a_shard_that_is_damaged_at_the_url_is_named(at_memory):
    system = fsspec.filesystem("memory")
    shard = sorted(system.find(f"{at_memory.data_dir}/train"))[0]
    content = bytearray(system.cat_file(shard))
    content[100] ^= 1
    system.pipe_file(shard, bytes(content))
    with pytest.raises(Unreachable, match=rf"{shard.split('/')[-1]}.*sha256 differs"):
        remote.fetch_prepared(at_memory)
    assert not (at_memory.data_path / "manifest.json").exists()
    system.pipe_file(shard, bytes(content[:-1]))
    with pytest.raises(UserError, match=r"bytes instead of .*put the prepared folder"):
        remote.fetch_prepared(at_memory)


def test_an_upload_goes_on_where_it_was(at_memory, tmp_path, monkeypatch):
    whole = dataclasses.replace(at_memory, cache_dir=str(tmp_path / "first"))
    url = f"memory://again-{next(_NUMBERS)}/tiny"
    again = dataclasses.replace(whole, data_dir=url)
    again.data_path.symlink_to(whole.data_path.resolve())
    put, done = remote._put, []

    def put_some(path, to):
        if len(done) >= 10:
            raise OSError("away")
        put(path, to)
        done.append(path)

    monkeypatch.setattr(remote, "_put", put_some)
    monkeypatch.setattr(remote, "_AT_ONCE", 1)
    with pytest.raises(Unreachable, match=r"away.*goes on with what is missing"):
        remote.upload_prepared(again)
    with pytest.raises(UserError, match="no prepared data"):
        remote.fetch_prepared(again)
    first, done[:] = list(done), []
    monkeypatch.setattr(remote, "_put", lambda path, to: (put(path, to), done.append(path)))
    remote.upload_prepared(again)
    # Of files: the manifest and the mark of an upload are put each time.
    first, done = ({x for x in found if isinstance(x, Path)} for found in (first, done))
    assert done and not done & first
    remote.fetch_prepared(dataclasses.replace(again, cache_dir=str(tmp_path / "other")))


def test_no_data_at_a_url_are_told(tmp_path, at_memory):
    nothing = dataclasses.replace(at_memory, data_dir="memory://nothing/here")
    with pytest.raises(UserError, match=r"no prepared data in memory://nothing/here: run"):
        remote.fetch_prepared(nothing)


@pytest.fixture
def store(made, monkeypatch):
    server = ObjectStore(made[0] / "buckets", delay_s=0.2)
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    s3fs.S3FileSystem.clear_instance_cache()  # one that was made before knows another server
    server.start()
    yield server
    server.kill()


@pytest.mark.slow
def test_training_from_a_bucket_whose_server_stops_and_comes_back(made, store, tmp_path):
    folder, _ = made
    (folder / "config.py").write_text(CONFIG_FILE.format(folder=str(folder)))
    steps = ("--train.num-steps=4", "--optim.warmup-steps=1")
    local = f"--data-dir={folder / 'buckets' / 'bucket' / 'tiny'}"
    finish(start(folder, "local", local, *steps, devices=1))
    cache = tmp_path / "cache"
    trainer = start(
        folder, "remote", "--data-dir=s3://bucket/tiny", f"--cache-dir={cache}", *steps, devices=1
    )
    deadline = time.monotonic() + 120
    while not list(cache.rglob("train/**/*.array*")) and time.monotonic() < deadline:
        assert trainer.poll() is None, trainer.communicate()[1]
        time.sleep(0.01)
    store.kill()
    copied = len(list(cache.rglob("train/**/*.array*")))
    time.sleep(3)
    assert trainer.poll() is None
    store.start()
    finish(trainer)
    total = len(list((folder / "buckets").rglob("train/**/*.array*")))
    assert 0 < copied < total == len(list(cache.rglob("train/**/*.array*")))
    assert curve(folder, "remote") == curve(folder, "local")


def test_two_processes_of_a_machine_fetch_once(made, store, tmp_path):
    code = (
        "import sys; from tests.prepared import tiny_config; from dataclasses import replace\n"
        "from jina_jax.shards.remote import fetch_prepared\n"
        f"fetch_prepared(replace(tiny_config({str(made[0])!r}), data_dir='s3://bucket/tiny', "
        f"cache_dir={str(tmp_path)!r}))"
    )
    two = [
        subprocess.Popen(
            [sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": str(ROOT)},
            stderr=subprocess.PIPE, text=True,
        )
        for _ in range(2)
    ]  # fmt: skip
    said = [finish(process) for process in two]
    assert sorted("fetching" in text for text in said) == [False, True]
    assert sum("waiting for another process" in text for text in said) <= 1


def test_a_store_that_is_away_ends_the_command_with_a_code_of_its_own(
    made, tmp_path, store, capsys
):
    store.kill()
    (made[0] / "config.py").write_text(CONFIG_FILE.format(folder=str(made[0])))
    flags = ["--data-dir=s3://bucket/tiny", f"--cache-dir={tmp_path}"]
    assert main(["evaluate", str(made[0] / "config.py"), *flags]) == 13
    assert "could not be had in 1 tries" in capsys.readouterr().err


def test_prepare_puts_its_result_into_the_bucket(made, store, tmp_path, capsys):
    folder, _ = made
    (folder / "config.py").write_text(CONFIG_FILE.format(folder=str(folder)))
    flags = ["--data-dir=s3://bucket/new", "--data.records-per-shard=40"]
    one, two = f"--cache-dir={tmp_path / 'one'}", f"--cache-dir={tmp_path / 'two'}"
    assert main(["prepare", str(folder / "config.py"), *flags, one]) == 0
    assert "prepared data: s3://bucket/new" in capsys.readouterr().out
    # Another machine fetches what is there, rather than prepare again, and does not replace it.
    assert main(["prepare", str(folder / "config.py"), *flags, two]) == 0
    said = capsys.readouterr().err
    assert "fetching" in said and "are in s3://" not in said
    (copy,) = (tmp_path / "two").glob("s3*")
    assert of(copy) == of(folder / "buckets" / "bucket" / "tiny")
    other = [*flags[:1], "--data.records-per-shard=50", two]
    assert main(["prepare", str(folder / "config.py"), *other]) == 2
    assert "was prepared with another configuration" in capsys.readouterr().err
