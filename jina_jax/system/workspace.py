"""A folder or file that appears whole or not at all, and whose making can be resumed."""

import errno
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple, TypeVar

from filelock import FileLock, Timeout

from jina_jax.errors import UserError
from jina_jax.system.atomic import sync, write_atomically
from jina_jax.system.untrusted import from_json

T = TypeVar("T")


def check_writable(folder: Path) -> None:
    """Refuses a folder that may not be written to, or not be made, before any work is done for it.

    Raises:
      OSError: of `errors.NO_RIGHT`, naming it or the nearest folder above it that is there.
      UserError: that is a file.
    """
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not there.is_dir():
        raise UserError(f"{there} is a file; name another folder")
    if not os.access(there, os.W_OK | os.X_OK):
        is_of_disk = os.statvfs(there).f_flag & os.ST_RDONLY
        number = errno.EROFS if is_of_disk else errno.EACCES
        raise OSError(number, os.strerror(number), str(there))


class Workspace(NamedTuple):
    """Where things are made, and what is known to be done."""

    result: Path
    """What becomes the folder or file."""
    work: Path
    """What is needed on the way."""
    markers: Path
    """Markers of finished tasks."""


def places(target: Path) -> Workspace:
    """Where `workspace` makes something; only it sees to it that they are there."""
    partial = _partial(target)
    return Workspace(partial / "result", partial / "work", partial / "done")


@contextmanager
def workspace(target: Path, identity: str, *, is_file: bool = False) -> Iterator[Workspace]:
    """Gives places to work in and, when the block ends well, renames the result to `target`.

    What a process that was killed or failed has finished stays: the next one goes on from there
    if it makes the same thing, and else begins anew. Nothing stays where nothing was finished.

    Args:
      target: to appear. A folder is absent or empty when the block ends; a file is replaced.
      identity: equal for two processes that make the same thing.
      is_file: the result is a file, empty at first; else a folder.
    Raises:
      UserError: another process is making the same target.
      OSError: `check_writable` refuses the folder that it is to lie in.
    """
    check_writable(target.parent)
    target.parent.mkdir(parents=True, exist_ok=True)
    partial, made = _partial(target), places(target)
    with alone(target):
        if not is_file and target.exists() and any(target.iterdir()):
            raise UserError(f"{target} appeared meanwhile: another process made it; run again")
        maker = partial / "identity"
        # What was killed after its last rename has left all but the result.
        if not made.result.exists() or not maker.exists() or maker.read_text("utf-8") != identity:
            shutil.rmtree(partial, ignore_errors=True)
            made.work.mkdir(parents=True)
            made.markers.mkdir()
            if is_file:
                made.result.touch()
            else:
                made.result.mkdir()
            write_atomically(maker, identity.encode())
        try:
            yield made
        except BaseException:
            if not any(made.markers.iterdir()):
                shutil.rmtree(partial, ignore_errors=True)
            raise
        # One rename, after which all is there: a kill before it loses nothing either.
        for path in (*made.result.glob("*/"), made.result):
            sync(path)
        made.result.replace(target)
        sync(target.parent)
        shutil.rmtree(partial)


def discard_leftovers(folder: Path) -> None:
    """Removes what a process left that was killed after it had made `folder`."""
    if _partial(folder).exists():
        with alone(folder):
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


def _partial(target: Path) -> Path:
    return target.with_name(f".{target.name}.partial")


@contextmanager
def alone(target: Path) -> Iterator[None]:
    """Holds the lock of what is made, which the kernel drops when the process is killed.

    Raises: UserError when another process holds it.
    """
    path = target.with_name(f".{target.name}.lock")
    lock = FileLock(path, blocking=False)
    try:
        lock.acquire()
    except Timeout as error:
        raise UserError(f"another process is making {target}; wait for it to end") from error
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        lock.release()
