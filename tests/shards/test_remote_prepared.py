"""Prepared data at a URL: put there, fetched but for the shards, and trained on."""

import dataclasses
import itertools
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import fsspec
import numpy as np
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from jina_jax.cli.main import main
from jina_jax.cli.tables import inspect
from jina_jax.doctor.run import prepared_checks
from jina_jax.errors import Unreachable, UserError
from jina_jax.prepare.run import prepare
from jina_jax.shards import remote
from jina_jax.shards.manifest import load_manifest
from jina_jax.shards.publish import Prepared, publish_at
from jina_jax.shards.verify import data_problems, verify_shards
from jina_jax.system import files as system_files
from jina_jax.system import objects
from jina_jax.system.store import Store
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
    monkeypatch.setattr(system_files, "WAITS_S", ())


@pytest.fixture
def at_memory(made, tmp_path):
    """The config with its data at a URL of fsspec's memory, and a cache of its own."""
    folder, config = made
    url = f"memory://data-{next(_NUMBERS)}/tiny"
    prepared = folder / "buckets" / "bucket" / "tiny"
    publish_at(whole(prepared), url)
    yield dataclasses.replace(config, data_dir=url, cache_dir=str(tmp_path / "cache"))
    MemoryFileSystem.store.clear()


def whole(folder):
    """All of a prepared folder, to be published."""
    store = Store(str(folder))
    names = [name.as_posix() for name in files(folder) if name.name != "manifest.json"]
    return Prepared(load_manifest(folder), {name: store.file(name) for name in names}, 0)


def of(folder):
    """All files of a prepared folder but the shards, what is only for people, and what a copy knows
    of its URL.
    """
    left_out = ("train", "ledger", ".source", "indexes")
    return {n: b for n, b in files(folder).items() if n.parts[0] not in left_out}


def test_what_is_put_comes_back_and_is_not_fetched_twice(made, at_memory, capsys):
    folder = made[0] / "buckets" / "bucket" / "tiny"
    remote.fetch_prepared(at_memory)
    assert of(at_memory.data_path) == of(folder)
    assert len(of(at_memory.data_path)) > 4 and not (at_memory.data_path / "train").exists()
    assert "fetching" in capsys.readouterr().err
    remote.fetch_prepared(at_memory)
    assert capsys.readouterr().err == ""
    # The shards are read where they are.
    manifest = load_manifest(at_memory.data_path)
    here = dataclasses.replace(at_memory, data_dir=str(folder))
    for name, shards in remote.open_shards(at_memory, manifest).items():
        local = remote.open_shards(here, manifest)[name]
        assert len(shards) == len(local) > 100
        for part, other in zip(shards.batches(), local.batches(), strict=True):
            np.testing.assert_array_equal(part.ids_T, other.ids_T)
    assert list(data_problems(manifest, at_memory.data_path, full=True)) == []
    verify_shards(manifest, at_memory.data_path)


def test_a_damaged_copy_is_mended_and_what_earlier_versions_copied_goes(made, at_memory):
    remote.fetch_prepared(at_memory)
    whole = of(at_memory.data_path)
    (at_memory.data_path / ".source").unlink()
    tokenizer = at_memory.data_path / "tokenizer" / "tokenizer.json"
    tokenizer.write_bytes(tokenizer.read_bytes().swapcase())
    shard = next((made[0] / "buckets" / "bucket" / "tiny").rglob("*.arrayrecord"))
    (at_memory.data_path / "train").mkdir()
    shutil.copy(shard, at_memory.data_path / "train")
    at_start = {p: p.stat().st_mtime_ns for p in at_memory.data_path.rglob("*") if p.is_file()}
    remote.fetch_prepared(at_memory)
    assert of(at_memory.data_path) == whole
    del at_start[at_memory.data_path / "train" / shard.name]
    changed = {p.name for p, t in at_start.items() if p.stat().st_mtime_ns != t}
    assert changed == {tokenizer.name, "manifest.json"}
    assert not list(at_memory.data_path.rglob("*.arrayrecord"))


def test_a_shard_that_is_not_as_prepared_at_the_url_is_named(at_memory):
    remote.fetch_prepared(at_memory)
    system = fsspec.filesystem("memory")
    shard, *others = sorted(system.find(f"{at_memory.data_dir}/train"))
    content = bytearray(system.cat_file(shard))
    content[100] ^= 1
    system.pipe_file(shard, bytes(content))
    system.rm_file(others[0])
    manifest = load_manifest(at_memory.data_path)
    problems = list(data_problems(manifest, at_memory.data_path))
    assert [p.split(";")[0] for p in problems] == [
        f"shard memory:/{shard} is another one than the manifest's, or damaged: its first or last "
        f"bytes differ", f"shard memory:/{others[0]} is missing",
    ]  # fmt: skip
    for left in (bytes(content[:-1]), None):
        system.rm_file(shard) if left is None else system.pipe_file(shard, left)
        with pytest.raises(UserError, match=r"has .* bytes instead of .*: put the prepared folder"):
            remote.fetch_prepared(at_memory)


def test_inside_a_shard_at_a_url_doctor_finds_damage_when_it_reads_all(at_memory):
    remote.fetch_prepared(at_memory)
    # So small a shard is hashed whole by its ends; as if it were larger:
    path = at_memory.data_path / "manifest.json"
    values = json.loads(path.read_text())
    [first, *_] = values["sources"][0]["shards"]
    first["sha256"] = "0" * 64
    path.write_text(json.dumps(values))
    verdicts = {c.subject: c for c in prepared_checks(at_memory.data_path, full=False)}
    assert {verdicts[name].verdict for name in ("shards", "records")} == {"ok"}
    found = [c for c in prepared_checks(at_memory.data_path, full=True) if c.verdict == "failed"]
    assert [(c.detail, c.remedy) for c in found] == [
        (f"shard {at_memory.data_dir}/{first['path']} is damaged: its sha256 differs from the "
         f"manifest's", "put the prepared folder there again")
    ]  # fmt: skip
    assert "kept, for example" in inspect(at_memory.data_path, 2)


def test_an_upload_goes_on_where_it_was(made, at_memory, tmp_path, monkeypatch):
    prepared = whole(made[0] / "buckets" / "bucket" / "tiny")
    url = f"memory://again-{next(_NUMBERS)}/tiny"
    again = dataclasses.replace(at_memory, data_dir=url)
    put, done = objects._put, []

    def put_some(path, to):
        if len(done) >= 10:
            raise OSError("away")
        put(path, to)
        done.append(path)

    monkeypatch.setattr(objects, "_put", put_some)
    monkeypatch.setattr(objects, "_AT_ONCE", 1)
    with pytest.raises(Unreachable, match=r"away.*goes on with what is missing"):
        publish_at(prepared, url)
    with pytest.raises(UserError, match="no prepared data"):
        remote.fetch_prepared(again)
    first, done[:] = list(done), []
    monkeypatch.setattr(objects, "_put", lambda path, to: (put(path, to), done.append(path)))
    publish_at(prepared, url)
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
    while not list(cache.rglob("indexes/*.index")) and time.monotonic() < deadline:
        assert trainer.poll() is None, trainer.communicate()[1]
        time.sleep(0.01)
    store.kill()
    known = len(list(cache.rglob("indexes/*.index")))
    time.sleep(3)
    assert trainer.poll() is None
    store.start()
    finish(trainer)
    total = len(list((folder / "buckets").rglob("train/**/*.array*")))
    assert 0 < known < total and not list(cache.rglob("*.arrayrecord"))
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


@pytest.mark.slow
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
    system = fsspec.filesystem("s3")
    found = {Path(n).relative_to("bucket/new"): system.cat(n) for n in system.find("bucket/new")}
    assert found == files(folder / "buckets" / "bucket" / "tiny")
    # Another machine sees that they are there.
    assert main(["prepare", str(folder / "config.py"), *flags, two]) == 0
    said = capsys.readouterr().err
    assert "s3://bucket/new is already prepared" in said and "are in s3://" not in said
    assert not (tmp_path / "two").exists()
    other = [*flags[:1], "--data.records-per-shard=50", two]
    assert main(["prepare", str(folder / "config.py"), *other]) == 2
    assert "was prepared with another configuration" in capsys.readouterr().err
