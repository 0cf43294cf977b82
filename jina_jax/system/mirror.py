"""A run folder at a URL: this machine works in a folder of its own, whose small files come from the
store and go there, each whole.

Checkpoints come and go by themselves (`checkpoint/stored.py`), prepared data too.
"""

import itertools
import json
import shutil
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

from filelock import FileLock, Timeout

from jina_jax.errors import RunFailed, UserError
from jina_jax.system.atomic import write_atomically, write_json
from jina_jax.system.objects import (
    create_object,
    each,
    list_objects,
    put_object,
    read_object,
    remove_object,
)
from jina_jax.system.terminal import say
from jina_jax.system.untrusted import inner_path, parse_json

_MIRROR_FILE = ".mirror.json"
"""Of the folder: its URL, and the id of the run that it has files of."""
_ID_FILE = "run-id"
"""At the URL: another run that is begun at the same place has another."""
TRAINER_LOCK = ".trainer.json.lock"
"""Of a run folder: locked while this machine trains in it."""
_FETCH_LOCK = ".fetch.lock"
_BY_THEMSELVES = ("checkpoints", "best", "compiled", "data", "data.work", "trainer.json", _ID_FILE)
_COME = ("tokenizer", "mteb")
"""Inner folders that verbs read; the others are only written."""
_WHOLE_WITH = {"export": "config.json", "export/adapter": "adapter_config.json"}
"""Folder that appears as one → the file of it without which nobody takes it for a model."""
_PAUSE_S = 5.0
_WORK_SHARE = 20
"""Sending takes at most this part of the time."""


def url_of(folder: Path) -> str:
    """Where a folder is a mirror of; empty for an ordinary one."""
    try:
        return str(json.loads((folder / _MIRROR_FILE).read_bytes())["url"])
    except (OSError, ValueError, KeyError, TypeError):
        return ""


class Mirror:
    """A folder of this machine and the run folder at a URL; as a context it sends what changes
    every few seconds, and the rest at its end.
    """

    def __init__(self, url: str, folder: Path, *, writes: bool = True):
        """Does nothing yet, and never does where the URL is empty.

        Args:
          url: of the run folder; empty where `folder` is it.
          folder: where this machine works.
          writes: whether this process brings and sends files; others only make the folder.
        """
        self.url, self.folder = url.rstrip("/"), folder
        self._writes = bool(url) and writes
        self._known: dict[str, tuple[int, int]] = {}
        """What the store has: name → size and time of change here."""
        self._sending = threading.Lock()
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._send_on, name="mirror", daemon=True)

    def __enter__(self) -> "Mirror":
        if self._writes:
            self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if not self._writes:
            return
        self._closed.set()
        self._thread.join()
        try:
            self.send()
        except (RunFailed, UserError) as error:
            if kind is None:
                raise
            say(f"not all of {self.folder} is in {self.url}: {error}")

    def make(self, *, may_begin: bool) -> None:
        """Makes the folder one of the run that is at the URL now; what it has of another goes.

        Args:
          may_begin: whether a run begins where there is none.
        """
        if not self.url:
            return
        url = f"{self.url}/{_ID_FILE}"
        found = read_object(url)
        if found is None and may_begin:
            create_object(uuid.uuid4().hex.encode(), url)
            found = read_object(url)
        values = {"url": self.url, "id": (found or b"").decode()}
        path = self.folder / _MIRROR_FILE
        with suppress(OSError, ValueError):
            if parse_json(path.read_bytes()) == values:
                return
        if self.folder.is_dir():
            for inner in self.folder.iterdir():
                if inner.name not in (TRAINER_LOCK, _FETCH_LOCK, "compiled"):
                    shutil.rmtree(inner) if inner.is_dir() else inner.unlink()
        self.folder.mkdir(parents=True, exist_ok=True)
        write_json(path, values)

    def fetch(self) -> None:
        """Brings the small files that verbs read; of what is no run, all."""
        if not self._writes:
            return
        with FileLock(self.folder / _FETCH_LOCK):
            self._fetch()

    def _fetch(self) -> None:
        there = list_objects(self.url)
        for folder in ("checkpoints", "best"):
            if any(name.startswith(f"{folder}/") for name in there):
                (self.folder / folder).mkdir(exist_ok=True)
        names = [
            name
            for name in there
            if _ID_FILE not in there
            or (not _is_apart(name) and ("/" not in name or name.split("/")[0] in _COME))
        ]
        # Of one that was removed there nothing stays here.
        for path in self.folder.glob("*"):
            if path.is_file() and not _is_apart(path.name) and path.name not in names:
                path.unlink()
        each({name: partial(self._get, name) for name in names}, "fetch", shows=False)
        self._known = self._found()

    def send(self) -> None:
        """Puts what has changed since it came or was sent, and removes what is gone here.

        Raises: as `files.again`.
        """
        if not self._writes:
            return
        with self._sending:
            found = self._found()
            changed = [name for name, state in found.items() if self._known.get(name) != state]
            gone = [name for name in self._known if name not in found]
            for folder, marker in _WHOLE_WITH.items():
                self._send_whole(folder, marker, changed, gone)
            works = {name: partial(self._put, name) for name in changed}
            works |= {name: partial(remove_object, f"{self.url}/{name}") for name in gone}
            each(works, "send", shows=False)
            self._known = found

    def _send_whole(self, folder: str, marker: str, changed: list[str], gone: list[str]) -> None:
        """Sends a folder that is one thing: without its marker until all else is there."""
        mine = [name for name in changed if name.rpartition("/")[0] == folder]
        if not mine:
            return
        last = f"{folder}/{marker}"
        remove_object(f"{self.url}/{last}")
        there = list_objects(f"{self.url}/{folder}")
        gone += [
            f"{folder}/{name}"
            for name in there
            if not (self.folder / folder / name).is_file() and f"{folder}/{name}" not in gone
        ]
        each({n: partial(self._put, n) for n in mine if n != last}, "send", shows=False)
        if (self.folder / last).is_file():
            self._put(last)
        changed[:] = [name for name in changed if name not in mine and name != last]

    def _send_on(self) -> None:
        pause_s = _PAUSE_S
        while not self._closed.wait(pause_s):
            began = time.monotonic()
            try:
                self.send()
            except (RunFailed, UserError, OSError) as error:
                say(f"METRICS ARE BEHIND in {self.url}: {error}")
            pause_s = max(_PAUSE_S, _WORK_SHARE * (time.monotonic() - began))

    def _found(self) -> dict[str, tuple[int, int]]:
        found = {}
        # What goes by itself may have a hundred thousand files, and is not walked through.
        tops = [path for path in self.folder.iterdir() if not _is_apart(path.name)]
        for path in itertools.chain(tops, *(top.rglob("*") for top in tops if top.is_dir())):
            name = path.relative_to(self.folder).as_posix()
            if not _is_apart(name) and path.is_file():
                with suppress(FileNotFoundError):
                    stat = path.stat()
                    found[name] = (stat.st_size, stat.st_mtime_ns)
        return found

    def _get(self, name: str) -> None:
        content = read_object(f"{self.url}/{name}")
        path = inner_path(self.folder, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        if content is not None:
            write_atomically(path, content)

    def _put(self, name: str) -> None:
        path = self.folder / name
        with suppress(FileNotFoundError):  # Another is written in its place just now.
            if path.suffix == ".jsonl":
                content = path.read_bytes()
                put_object(content[: content.rfind(b"\n") + 1], f"{self.url}/{name}")
            else:
                put_object(path, f"{self.url}/{name}")


@contextmanager
def mirrored(url: str, folder: Path, *, writes: bool = True) -> Iterator[None]:
    """What a verb beside training does in a run folder at a URL: its small files come first, and
    what the verb made is sent when the block ends well, by a process that writes. Nothing is done
    where `url` is empty.

    Raises: as `files.again`.
    """
    if not url:
        yield
        return
    mirror = open_mirror(url, folder)
    yield
    if writes:
        mirror.send()


def open_mirror(url: str, folder: Path) -> Mirror:
    """A run folder at a URL, with its small files; or an exported folder.

    Where this machine trains in it, those that are here are the newest.
    """
    folder.mkdir(parents=True, exist_ok=True)
    mirror = Mirror(url, folder)
    with FileLock(folder / _FETCH_LOCK):
        try:
            with FileLock(folder / TRAINER_LOCK, blocking=False):
                pass
        except Timeout:
            mirror._known = mirror._found()
            return mirror
        mirror.make(may_begin=False)
        mirror._fetch()
    return mirror


def _is_apart(name: str) -> bool:
    parts = name.split("/")
    return parts[0] in _BY_THEMSELVES or any(part.startswith(".") for part in parts)
