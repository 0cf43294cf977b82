"""A folder that appears whole or not at all, and whose making can be resumed."""

import fcntl
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from jina_jax.errors import UnusableError, UserError
from jina_jax.system.atomic import sync, write_atomically
from jina_jax.system.untrusted import from_json

_IDENTITY_FILE = "identity"
T = TypeVar("T")


@dataclass(frozen=True)
class Workspace:
    """Where things are made, and what is known to be done."""

    root: Path

    @property
    def result(self) -> Path:
        """What becomes the folder."""
        return self.root / "result"

    @property
    def work(self) -> Path:
        """What is needed on the way."""
        return self.root / "work"

    @property
    def markers(self) -> Path:
        """Markers of finished tasks."""
        return self.root / "done"


@contextmanager
def workspace(folder: Path, identity: str) -> Iterator[Workspace]:
    """Gives folders to work in and, when the block ends well, renames the result to `folder`.

    What a process that was killed or failed has finished stays: the next one goes on from there
    if it makes the same thing, and else begins anew. Nothing stays of an UnusableError, or where
    nothing was finished.

    Args:
      folder: to appear; absent or empty when the block ends.
      identity: equal for two processes that make the same thing.
    Raises: UserError when another process is making the same folder.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = _partial(folder)
    made = Workspace(partial)
    with _lock(folder.with_name(f".{folder.name}.lock"), folder):
        if folder.exists() and any(folder.iterdir()):
            raise UserError(f"{folder} appeared meanwhile: another process made it; run again")
        if not _is_of(partial, identity):
            shutil.rmtree(partial, ignore_errors=True)
            for path in (made.result, made.work, made.markers):
                path.mkdir(parents=True)
            write_atomically(partial / _IDENTITY_FILE, identity.encode())
        try:
            yield made
        except BaseException as error:
            if isinstance(error, UnusableError) or not any(made.markers.iterdir()):
                shutil.rmtree(partial, ignore_errors=True)
            raise
        # One rename, after which all is there: a kill before it loses nothing either.
        for inner in (*made.result.iterdir(), made.result):
            if inner.is_dir():
                sync(inner)
        made.result.rename(folder)
        sync(folder.parent)
        shutil.rmtree(partial)


@contextmanager
def file_workspace(file: Path, identity: str) -> Iterator[Path]:
    """Gives a hidden folder beside a file that is being made; removes it when the block ends well.

    After a kill or a failure the folder stays, and the next one who makes the same thing finds it;
    one who makes another thing begins with an empty folder.

    Args:
      file: that the block moves into place as the last thing it does.
      identity: equal for two processes that make the same thing.
    Raises: UserError when another process is making the same file.
    """
    partial = _partial(file)
    with _lock(file.with_name(f".{file.name}.lock"), file):
        if not _is_of(partial, identity):
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir()
            write_atomically(partial / _IDENTITY_FILE, identity.encode())
        try:
            yield partial
        except BaseException:
            if [path.name for path in partial.iterdir()] == [_IDENTITY_FILE]:
                shutil.rmtree(partial)
            raise
        sync(file.parent)
        shutil.rmtree(partial)


def discard_leftovers(folder: Path) -> None:
    """Removes what a process left that was killed after it had made `folder`."""
    if _partial(folder).exists():
        with _lock(folder.with_name(f".{folder.name}.lock"), folder):
            shutil.rmtree(_partial(folder), ignore_errors=True)


def finished_report(
    kind: type[T], path: Path, identity: str, *, nothing: str, other: Callable[[T], str], field: str
) -> T | None:
    """The report of a folder that an earlier call made whole.

    Args:
      kind: of the report, a dataclass with a field `identity`.
      path: of the report, in the folder.
      identity: what the report must say.
      nothing: words for a folder that holds something else, such as `nothing mined`.
      other: words for a report with another identity, such as `was mined with other options`.
      field: of the config that names the folder.
    Returns: None where the folder is absent or empty, and so is to be made.
    Raises: UserError when the folder holds something else, or the report is damaged.
    """
    folder = path.parent
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return None
    if not path.is_file():
        raise UserError(f"{folder} exists and holds {nothing}: give another {field}")
    try:
        report: T = from_json(kind, json.loads(path.read_text(encoding="utf-8")))
        is_same = vars(report)["identity"] == identity
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is damaged ({error}): delete {folder} to make it again") from error
    if not is_same:
        raise UserError(f"{folder} {other(report)}: give another {field}, or delete it")
    discard_leftovers(folder)
    return report


def discard_hidden(folder: Path) -> None:
    """Removes what processes that were killed had begun to write into a folder, if there is one."""
    for path in folder.glob(".*") if folder.exists() else ():
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def _partial(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.partial")


def _is_of(partial: Path, identity: str) -> bool:
    try:
        return (partial / _IDENTITY_FILE).read_text(encoding="utf-8") == identity
    except OSError:
        return False


@contextmanager
def _lock(path: Path, folder: Path) -> Iterator[None]:
    # The kernel drops a lock with its process, which a file that only has to exist cannot do.
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            held = path.exists() and os.path.samestat(os.fstat(file.fileno()), path.stat())
        except BlockingIOError:
            held = False
        if not held:
            raise UserError(f"another process is making {folder}; wait for it to end")
        try:
            yield
        finally:
            path.unlink(missing_ok=True)
