"""Files that tasks hand to each other: in a folder, or in an object store that all machines reach.

A file appears whole or not at all, and is never changed after it appeared. What a machine fetches
from an object store stays in a folder of bounded size, which its processes share:

    CACHE/files/ID/NAME      what was fetched; the least recently used goes first
    CACHE/in-use/PROCESS/    links to what a process works with, and what it is about to put

A file in use stays whole for its process, even where another has removed it from the cache. What
is written to a folder is in its own `in-use/PROCESS/` until it is whole. Of a process that was
killed the next that comes removes what is there.
"""

import atexit
import errno
import fcntl
import json
import os
import shutil
import threading
import uuid
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO

from jina_jax.errors import UserError
from jina_jax.system.atomic import atomic_file, write_atomically
from jina_jax.system.files import again, is_url, store
from jina_jax.system.objects import list_objects, put_object, remove_object

STORE_FILE = "store.json"
"""In every store: makes it known as one, and holds its id."""
_TRIMMED_EVERY = 64
"""A process looks at the cache's size when it has fetched this part of its bound."""


@dataclass(frozen=True)
class Store:
    """A folder of this file system, or a prefix of an object store."""

    root: str
    """A folder, or a URL such as `s3://bucket/work` or `gs://bucket/work`."""
    cache: str = ""
    """Folder of each machine for what was fetched from a URL; `~` is the home there."""
    cache_bytes: int = 32 << 30
    """The cache's least recently used files go when it grows above this."""
    id: str = ""
    """Another store that was made at the same place has another."""

    @property
    def is_remote(self) -> bool:
        """Whether it is an object store."""
        return is_url(self.root)

    def is_known(self) -> bool:
        """Whether this machine sees it; of an object store that is taken for granted."""
        return self.is_remote or (Path(self.root) / STORE_FILE).is_file()

    def file(self, name: str) -> "StoredFile":
        """The file of a name, such as `read/3f/3f00….arrow`."""
        return StoredFile(self, name)

    def output(self, stage: str, key: str, ending: str) -> "StoredFile":
        """A file that a task of a stage makes, of the task's `content_key`: so many folders that
        none holds more than some thousand files.
        """
        return StoredFile(self, f"{stage}/{key[:2]}/{key}{ending}")

    def contents(self, names: Sequence[str]) -> dict[str, bytes]:
        """What small files hold; those that are not there are left out."""
        if self.is_remote:
            return again(self.root, partial(self._contents, names)) if names else {}
        found = {}
        for name in names:
            with suppress(FileNotFoundError):
                found[name] = (Path(self.root) / name).read_bytes()
        return found

    def names(self, folder: str) -> list[str]:
        """The files below a folder of it, sorted."""
        if self.is_remote:
            return sorted(f"{folder}/{name}" for name in list_objects(f"{self.root}/{folder}"))
        found = (path for path in (Path(self.root) / folder).rglob("*") if path.is_file())
        names = (path.relative_to(self.root).as_posix() for path in found)
        return sorted(name for name in names if not name.rsplit("/", 1)[-1].startswith("."))

    def size_bytes(self) -> int:
        """Of all files in it."""
        if self.is_remote:
            return sum(list_objects(self.root).values())
        found = (path.stat().st_size for path in Path(self.root).rglob("*") if path.is_file())
        return sum(found)

    def remove(self) -> None:
        """Removes all files in it, and what this machine has of them."""
        if self.is_remote:
            shutil.rmtree(_home(self) / "files" / self.id, ignore_errors=True)
            again(self.root, self._remove)
        else:
            _leave(_home(self))
            shutil.rmtree(self.root, ignore_errors=True)

    def _contents(self, names: Sequence[str]) -> dict[str, bytes]:
        with store(self.root) as (system, root):
            paths = [f"{root.rstrip('/')}/{name}" for name in names]
            found = system.cat(paths, recursive=False, on_error="return")
            for value in found.values():
                if isinstance(value, Exception) and not isinstance(value, FileNotFoundError):
                    raise value
            pairs = zip(names, map(found.get, paths), strict=True)
            return {name: value for name, value in pairs if isinstance(value, bytes)}

    def _remove(self) -> None:
        with store(self.root) as (system, root):
            system.invalidate_cache()
            # The mark goes last: what a kill leaves can be removed by the same command.
            mark = f"{root.rstrip('/')}/{STORE_FILE}"
            if names := [name for name in system.find(root) if name != mark]:
                system.rm(names)
            if system.exists(mark):
                system.rm_file(mark)


def find_store(root: str, cache: str = "", cache_bytes: int = 32 << 30) -> Store | None:
    """The store that `open_store` made at a place; None where there is none."""
    found = Store(root, cache, cache_bytes)
    content = found.contents([STORE_FILE]).get(STORE_FILE)
    if content is None:
        return None
    try:
        return Store(root, cache, cache_bytes, str(json.loads(content)["id"]))
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{root}/{STORE_FILE} is damaged ({error}): remove {root}") from error


def open_store(root: str, cache: str, cache_bytes: int, field: str) -> Store:
    """Opens a store, which is made where there is none.

    Args:
      root: a folder, or a URL.
      cache: as in Store.
      cache_bytes: as in Store.
      field: of the config that names the root.
    Raises:
      UserError: the folder holds something else, which a store would be mixed with.
      Unreachable: the store did not answer in time.
    """
    found = find_store(root, cache, cache_bytes)
    if found is not None:
        return found
    new = Store(root, cache, cache_bytes, uuid.uuid4().hex)
    if new.is_remote:
        is_empty = not list_objects(root)
    else:
        folder = Path(root)
        # A process that was killed here may have left what it was about to write.
        is_empty = not folder.exists() or (
            folder.is_dir() and {path.name for path in folder.iterdir()} <= {"in-use"}
        )
    if not is_empty:
        raise UserError(f"{root} holds something else: give an empty folder as {field}")
    new.file(STORE_FILE).put(json.dumps({"id": new.id}).encode())
    # Of two processes that make it at once both go on with what the last has written.
    return find_store(root, cache, cache_bytes) or new


@dataclass(frozen=True, slots=True)
class StoredFile:
    """A file of a store, there or not."""

    store: Store
    name: str

    @classmethod
    def at(cls, path: Path) -> "StoredFile":
        """A file of this file system that belongs to no store."""
        return cls(Store(str(path.parent)), path.name)

    @property
    def path(self) -> str:
        """Path or URL."""
        return f"{self.store.root.rstrip('/')}/{self.name}"

    def exists(self) -> bool:
        """Whether it is there, whole."""
        if not self.store.is_remote:
            return Path(self.path).exists()
        return bool(again(self.path, self._exists))

    def local(self) -> Path:
        """The whole file as one of this machine, fetched where it is not there yet.

        What was fetched stays at this path until `let_go`, or the process ends.

        Raises:
          UserError: there is no such file, or the store refuses.
          Unreachable: the store did not answer in time.
        """
        if not self.store.is_remote:
            return Path(self.path)
        mine = self._mine()
        cached = _home(self.store) / "files" / self.store.id / self.name
        while not mine.exists():
            mine.parent.mkdir(parents=True, exist_ok=True)
            # Another process may remove it from the cache between the two lines.
            with suppress(FileNotFoundError, FileExistsError):
                os.utime(cached)
                os.link(cached, mine)
                break
            cached.parent.mkdir(parents=True, exist_ok=True)
            again(self.path, partial(self._fetch, cached))
            with suppress(FileNotFoundError, FileExistsError):
                os.link(cached, mine)
                _trim_now_and_then(self.store, cached)
        return mine

    def let_go(self) -> None:
        """Ends the use of what `local` gave: the cache may remove it."""
        if self.store.is_remote:
            self._mine().unlink(missing_ok=True)

    def read(self, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
        """Bytes [start, end) of each of some ranges, with nothing kept on disk.

        Raises: as `local`.
        """
        if self.store.is_remote:
            return list(again(self.path, partial(self._read, ranges)))
        # Many small ranges are read, of which opening a file is most of the work.
        file = os.open(self.path, os.O_RDONLY)
        try:
            return [os.pread(file, end - start, start) for start, end in ranges]
        finally:
            os.close(file)

    def put(self, content: bytes) -> None:
        """Writes a small file.

        Raises: as `local`.
        """
        if self.store.is_remote:
            put_object(content, self.path)
        else:
            Path(self.path).parent.mkdir(parents=True, exist_ok=True)
            write_atomically(Path(self.path), content, _parts(self.store))

    @contextmanager
    def write(self) -> Iterator[Path]:
        """Gives a path to write to; the file appears when the block ends well.

        Where the block writes nothing, no file appears.

        Raises: as `local`.
        """
        if not self.store.is_remote:
            Path(self.path).parent.mkdir(parents=True, exist_ok=True)
            with atomic_file(Path(self.path), _parts(self.store)) as part:
                yield part
            return
        part = _in_use(self.store) / uuid.uuid4().hex
        try:
            yield part
            if part.exists():
                put_object(part, self.path)
        finally:
            part.unlink(missing_ok=True)

    def remove(self) -> None:
        """Removes it, if it is there."""
        if not self.store.is_remote:
            Path(self.path).unlink(missing_ok=True)
        else:
            remove_object(self.path)

    def _mine(self) -> Path:
        return _in_use(self.store) / self.store.id / self.name

    def _exists(self) -> bool:
        with store(self.path) as (system, name):
            system.invalidate_cache()
            return bool(system.exists(name))

    def _fetch(self, cached: Path) -> None:
        try:
            with atomic_file(cached) as part, store(self.path) as (system, name):
                system.get_file(name, str(part))
        except OSError as error:
            if is_full(error):
                trim(self.store, 0, cached)
            raise

    def _read(self, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
        starts, ends = [start for start, _ in ranges], [end for _, end in ranges]
        with store(self.path) as (system, name):
            return [
                bytes(b)
                for b in system.cat_ranges([name] * len(ranges), starts, ends, on_error="raise")
            ]


@dataclass(frozen=True)
class StoredFolder:
    """A few files below one name, which appear one after another: whoever reads it knows from a
    marker that all of them are there.
    """

    store: Store
    name: str
    files: tuple[str, ...] = ()
    """Their names in it."""

    def file(self, name: str) -> StoredFile:
        """One of them."""
        return StoredFile(self.store, f"{self.name}/{name}")

    def local(self) -> Path:
        """The folder with all of them, as `StoredFile.local`."""
        paths = [self.file(name).local() for name in self.files]
        assert paths, f"{self.name} has no files"
        depth = self.files[0].count("/")
        return paths[0].parents[depth]

    def put(self, folder: Path) -> tuple[str, ...]:
        """Puts the files of a folder of this machine there.

        Returns: their names.
        """
        names = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())
        for name in names:
            with self.file(name).write() as part:
                shutil.copyfile(folder / name, part)
        return tuple(names)


_FULL = (errno.ENOSPC, errno.EDQUOT)
_own: dict[Path, tuple[Path, IO[bytes]]] = {}
"""Home → this process's folder in it, and the lock that says that the process is alive."""
_making = threading.Lock()
_fetched_bytes: dict[Path, int] = {}
"""Home → what this process has fetched since it last looked at the size."""


def is_full(error: BaseException) -> bool:
    """Whether an error says that a disk is full; libraries in C++ do so in words alone."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno in _FULL
    return any(os.strerror(number) in str(error) for number in _FULL)


def let_go(held: Store) -> None:
    """Ends the use of what this process fetched: the cache may remove it."""
    if held.is_remote and _home(held) in _own:
        for path in _own[_home(held)][0].iterdir():
            shutil.rmtree(path, ignore_errors=True)


def make_room(held: Store) -> None:
    """Removes all of the cache that no process works with."""
    let_go(held)
    if held.is_remote:
        trim(held, 0, None)


def trim(of: Store, most_bytes: int, spared: Path | None) -> None:
    """Removes the least recently used files of a cache until it holds no more than so many bytes,
    and what dead processes have left.

    Args:
      of: whose cache.
      most_bytes: may stay.
      spared: file that stays in any case.
    """
    _remove_dead(_home(of) / "in-use")
    files = _files(_home(of) / "files")
    drop_least_recent(
        (path for path in files if path != spared and not path.name.startswith(".")), most_bytes
    )


def drop_least_recent(paths: Iterable[Path], most_bytes: int) -> None:
    """Removes files, those first that were used least recently, until the rest has no more bytes.

    Args:
      paths: of the files, whose time of change is that of their last use.
      most_bytes: of those that stay.
    """
    found = []
    for path in paths:
        with suppress(FileNotFoundError):  # Another process does the same.
            stat = path.stat()
            found.append((stat.st_mtime_ns, stat.st_size, path))
    kept = sum(size for _, size, _ in found)
    for _, size, path in sorted(found):
        if kept <= most_bytes:
            return
        path.unlink(missing_ok=True)
        kept -= size


def _files(folder: Path) -> Iterable[Path]:
    for parent, _, names in os.walk(folder):
        for name in names:
            yield Path(parent) / name


def _trim_now_and_then(of: Store, fetched: Path) -> None:
    home = _home(of)
    with suppress(FileNotFoundError):
        _fetched_bytes[home] = _fetched_bytes.get(home, 0) + fetched.stat().st_size
    if _fetched_bytes.get(home, 0) * _TRIMMED_EVERY > of.cache_bytes:
        _fetched_bytes[home] = 0
        trim(of, of.cache_bytes, fetched)


def _home(of: Store) -> Path:
    """Where this machine's processes share what they fetch and what they are about to put."""
    return Path(of.cache).expanduser() if of.is_remote else Path(of.root)


def _in_use(of: Store) -> Path:
    """The folder of this process there, beside which the dead leave theirs only until the next
    process comes or goes.
    """
    home = _home(of)
    with _making:
        if home not in _own:
            in_use = home / "in-use"
            _remove_dead(in_use)
            folder = in_use / uuid.uuid4().hex
            folder.mkdir(parents=True)
            # Locked before it has its name: whoever finds it sees that its process lives.
            begun = folder.with_suffix(".begun")
            lock = begun.open("wb")
            fcntl.flock(lock, fcntl.LOCK_EX)
            begun.rename(folder.with_suffix(".lock"))
            _own[home] = folder, lock
            atexit.register(_leave, home)
        return _own[home][0]


def _parts(of: Store) -> Path | None:
    """Where a file of a folder is written until it is whole; None for beside its place."""
    return _in_use(of) if of.id else None


def _leave(home: Path) -> None:
    if home not in _own:
        return
    folder, lock = _own.pop(home)
    shutil.rmtree(folder, ignore_errors=True)
    folder.with_suffix(".lock").unlink(missing_ok=True)
    lock.close()
    _remove_dead(home / "in-use")


def _remove_dead(in_use: Path) -> None:
    for path in in_use.glob("*.lock"):
        with suppress(OSError), path.open("rb") as lock:
            # Held for as long as its process lives.
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(path.with_suffix(""), ignore_errors=True)
            path.unlink()
