"""The files of a store, here and in an object store, and what a machine keeps of the latter."""

import errno
import itertools
import os
import subprocess
import sys
import threading
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from fsspec.implementations.memory import MemoryFileSystem

from jina_jax.errors import Unreachable, UserError
from jina_jax.system import files as system_files
from jina_jax.system import store as module
from jina_jax.system.store import (
    Store,
    StoredFolder,
    find_store,
    let_go,
    make_room,
    open_store,
    trim,
)

ROOT = Path(__file__).parents[2]
_NUMBERS = itertools.count()


@pytest.fixture(params=["folder", "memory"])
def store(request, tmp_path):
    root = str(tmp_path / "work")
    if request.param == "memory":
        root = f"memory://store-{next(_NUMBERS)}/work"
    yield open_store(root, str(tmp_path / "cache"), 1 << 30, "field")
    MemoryFileSystem.store.clear()


@pytest.fixture
def remote(tmp_path):
    yield open_store(f"memory://store-{next(_NUMBERS)}/work", str(tmp_path / "cache"), 0, "field")
    MemoryFileSystem.store.clear()


def put(store, name, content=b"0123456789"):
    file = store.file(name)
    file.put(content)
    return file


def cached(store):
    folder = Path(store.cache) / "files" / store.id
    return {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}


def test_what_is_written_is_read_whole_in_ranges_and_by_name(store):
    file = store.output("stage", "abcdef", ".bin")
    assert file.name == "stage/ab/abcdef.bin" and not file.exists()
    with file.write() as path:
        path.write_bytes(b"0123456789")
        assert not file.exists()
    assert file.exists() and file.local().read_bytes() == b"0123456789"
    assert file.read([(2, 4), (0, 1), (9, 10)]) == [b"23", b"0", b"9"]
    put(store, "small", b"x")
    assert store.contents(["small", "none"]) == {"small": b"x"}
    assert store.size_bytes() > 11
    file.remove()
    assert not file.exists()


def test_what_fails_or_writes_nothing_leaves_no_file(store):
    file = store.file("a/b")
    with pytest.raises(ZeroDivisionError), file.write() as path:
        path.write_bytes(b"half")
        raise ZeroDivisionError
    with file.write():
        pass
    assert not file.exists()
    with pytest.raises((UserError, FileNotFoundError)):
        file.local().read_bytes()


def test_a_folder_comes_back_with_its_files(store, tmp_path):
    inner = tmp_path / "learnt"
    (inner / "deep").mkdir(parents=True)
    (inner / "a").write_text("1")
    (inner / "deep" / "b").write_text("2")
    names = StoredFolder(store, "fit/ab/key").put(inner)
    assert names == ("a", "deep/b")
    folder = StoredFolder(store, "fit/ab/key", names).local()
    assert (folder / "a").read_text() == "1" and (folder / "deep" / "b").read_text() == "2"


def test_a_store_is_found_again_and_removed_whole(store):
    put(store, "a/b")
    again = open_store(store.root, store.cache, 1, "field")
    assert again.id == store.id == find_store(store.root).id
    assert again.file("a/b").local().exists()
    again.remove()
    assert find_store(store.root) is None
    # Another one at the place does not take for its own what is cached of the first.
    assert open_store(store.root, store.cache, 1, "field").id != store.id


def test_a_place_that_holds_something_else_is_refused(store):
    store.remove()
    put(store, "thesis", b"precious")
    with pytest.raises(UserError, match="holds something else: give an empty folder as field"):
        open_store(store.root, store.cache, 1, "field")


def test_the_cache_is_bounded_and_what_is_in_use_stays(remote):
    one, two = put(remote, "one"), put(remote, "two")
    path = one.local()
    two.local()
    # With no room at all only what came last is kept, and what is in use can still be read.
    assert cached(remote) == {"two"}
    assert path.read_bytes() == b"0123456789"
    let_go(remote)
    assert not path.exists()
    assert one.local().read_bytes() == b"0123456789"


def test_the_least_recently_used_goes_first(remote):
    roomy = Store(remote.root, remote.cache, 1 << 30, remote.id)
    for number, name in enumerate(("a", "b", "c")):
        put(roomy, name).local()
        os.utime(Path(roomy.cache) / "files" / roomy.id / name, (number, number))
    let_go(roomy)
    roomy.file("a").local()
    trim(roomy, 20, None)
    assert cached(roomy) == {"a", "c"}
    make_room(roomy)
    assert cached(roomy) == set()


def killed_at_work(root, cache=""):
    """A process that died with something in the folder of what is in use."""
    script = (
        "import os, signal, sys; from pathlib import Path\n"
        "from jina_jax.system import store\n"
        f"folder = store._in_use(store.Store({root!r}, {cache!r}))\n"
        "(folder / 'part').write_text('half'); os.kill(os.getpid(), signal.SIGKILL)"
    )
    subprocess.run([sys.executable, "-c", script], env=os.environ | {"PYTHONPATH": str(ROOT)})


def test_what_a_dead_process_had_is_removed_by_the_next(remote):
    in_use = Path(remote.cache) / "in-use"
    for _ in range(3):
        killed_at_work("memory://x", remote.cache)
        assert len(list(in_use.glob("*.lock"))) == 1
    put(remote, "a").local()
    (own,) = (path for path in in_use.iterdir() if path.is_dir())
    assert own.with_suffix(".lock").exists() and not (own / "part").exists()


def test_what_a_dead_process_had_is_removed(remote):
    put(remote, "a").local()
    killed_at_work("memory://x", remote.cache)
    in_use = Path(remote.cache) / "in-use"
    assert len(list(in_use.glob("*.lock"))) == 2
    trim(remote, 0, None)
    # This process's own folder stays.
    assert [path.with_suffix("") for path in in_use.glob("*.lock")] == [
        path for path in in_use.iterdir() if path.is_dir()
    ]


def test_what_a_process_killed_in_the_midst_of_a_file_left_is_removed_by_the_next(tmp_path):
    root = tmp_path / "work"
    # Even before there is a store: a kill must not make its folder one that holds something else.
    killed_at_work(str(root))
    held = open_store(str(root), "", 1, "field")
    script = (
        "import os, signal; from jina_jax.system.store import find_store\n"
        f"with find_store({str(root)!r}).file('a/b').write() as part:\n"
        "    part.write_text('half'); os.kill(os.getpid(), signal.SIGKILL)"
    )
    subprocess.run([sys.executable, "-c", script], env=os.environ | {"PYTHONPATH": str(ROOT)})
    half = [path for path in root.rglob(".*") if path.is_file()]
    assert [path.read_text() for path in half] == ["half"] and not (root / "a" / "b").exists()
    module._leave(root)
    put(held, "a/c")
    left = {path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()}
    assert {name for name in left if not name.endswith(".lock")} == {"store.json", "a/c"}
    held.remove()
    assert not root.exists()
    assert put(open_store(str(root), "", 1, "field"), "a/b").exists()


def test_threads_share_one_folder_of_the_process(remote, monkeypatch):
    names = [put(remote, str(number)).name for number in range(16)]
    together, hexes = threading.Barrier(16), uuid.uuid4

    def slowly():
        time.sleep(0.01)
        return hexes()

    def local(name):
        together.wait()
        return remote.file(name).local()

    monkeypatch.setattr(module.uuid, "uuid4", slowly)
    with ThreadPoolExecutor(16) as threads:
        found = list(threads.map(local, names))
    assert len({path.parent for path in found}) == 1
    assert all(path.read_bytes() == b"0123456789" for path in found)
    assert len(list((Path(remote.cache) / "in-use").glob("*.lock"))) == 1


def test_a_full_disk_is_emptied_before_the_next_try(remote, monkeypatch):
    monkeypatch.setattr(system_files, "WAITS_S", (0,))
    put(remote, "old").local()
    let_go(remote)
    get, tried = MemoryFileSystem.get_file, []

    def full_at_first(self, name, to, **options):
        tried.append(cached(remote))
        if len(tried) == 1:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        get(self, name, to, **options)

    monkeypatch.setattr(MemoryFileSystem, "get_file", full_at_first)
    assert put(remote, "new").local().read_bytes() == b"0123456789"
    assert tried == [{"old"}, set()]


def test_a_store_that_is_away_is_asked_again_and_then_told(remote, monkeypatch):
    monkeypatch.setattr(system_files, "WAITS_S", (0, 0))
    file, tries = put(remote, "a"), []

    def away(*_, **__):
        tries.append(1)
        raise OSError("away")

    monkeypatch.setattr(MemoryFileSystem, "cat", away)
    with pytest.raises(Unreachable, match="could not be had in 3 tries, the last: away"):
        remote.contents(["a"])
    assert len(tries) == 3
    assert file.exists()
    assert not module.is_full(OSError("away")) and not module.is_full(OSError(errno.EACCES, ""))
    assert module.is_full(OSError(errno.ENOSPC, "")) and module.is_full(OSError(errno.EDQUOT, ""))
    assert module.is_full(RuntimeError("write() failed: No space left on device; writing x"))
