"""Input files, on this file system or, as URLs, wherever fsspec reads: gs://, s3://, https://."""

import glob
import importlib.util
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from jina_jax.errors import UserError
from jina_jax.system.untrusted import inner_path

_AHEAD_BYTES = 2 << 20
"""Read ahead from a store. s3fs takes 50 MiB of its own accord, three times the part of a file that
a task is there to read."""
_STAMPS = ("etag", "ETag", "mtime", "md5Hash", "LastModified", "created")
"""Under which of these a store says that a file changed; the first there is is taken."""


def is_url(path: str) -> bool:
    """Whether a path names something that fsspec reads."""
    return "://" in path


@contextmanager
def store(url: str) -> Iterator[tuple[Any, str]]:
    """The file system of a URL and the name in it; what its library raises becomes an OSError.

    Raises: UserError when no library reads such URLs.
    """
    import fsspec

    try:
        system, name = fsspec.core.url_to_fs(url)
    except (ImportError, ValueError) as error:
        raise UserError(f"{url} cannot be read: {error}") from error
    try:
        yield system, name
    except OSError:
        raise
    except Exception as error:  # Each library has its own for want of credentials or of a network.
        raise OSError(f"{type(error).__name__}: {error}") from error


def find_files(pattern: str) -> list[str]:
    """Files that a path or glob matches, sorted; none when it matches nothing.

    Raises: UserError when a URL's store cannot be listed, or a glob finds a link that leads out of
      the folder that it searches.
    """
    if is_url(pattern):
        try:
            with store(pattern) as (system, path):
                found = [path] if system.isfile(path) else sorted(system.glob(path))
                return [system.unstrip_protocol(name) for name in found if system.isfile(name)]
        except OSError as error:
            raise UserError(f"{pattern} cannot be listed: {error}") from error
    expanded = Path(pattern).expanduser()
    if expanded.is_file():  # Its name may hold '[' or '*' itself.
        return [str(expanded)]
    # Path.glob takes no absolute pattern.
    names = sorted(glob.glob(str(expanded), recursive=True))  # noqa: PTH207
    return within(_folder(expanded), map(Path, names))


def within(folder: Path, paths: Iterable[Path]) -> list[str]:
    """The files among paths in a folder.

    Raises: UserError for a link that leads out of the folder: what was unpacked there may hold one
      to any file of this machine.
    """
    found = [path for path in paths if path.is_file()]
    for path in found:
        if path.is_symlink():
            inner_path(folder, path.relative_to(folder).as_posix())
    return list(map(str, found))


def matched(
    patterns: Iterable[str], owner: str, in_folder: Callable[[Path], list[str]] = lambda _: []
) -> Iterator[str]:
    """Files that each of some paths and globs matches, sorted within a glob.

    Args:
      patterns: paths, globs, and folders where `in_folder` finds files in them.
      owner: named in errors.
      in_folder: the files of a local folder, none by default.
    Raises: UserError naming the owner and the path that matches nothing.
    """
    for pattern in patterns:
        found = find_files(pattern)
        if not found and not is_url(pattern) and (folder := Path(pattern).expanduser()).is_dir():
            found = in_folder(folder)
        if not found:
            raise UserError(f"{owner}: {pattern!r} matches no file of data; check its paths")
        yield from found


def _folder(pattern: Path) -> Path:
    """The part of a glob before its first wildcard."""
    return next(parent for parent in pattern.parents if not glob.has_magic(str(parent)))


def open_file(path: str) -> IO[bytes]:
    """Opens a file or URL for reading, with seek.

    Raises: OSError when it cannot be read.
    """
    if is_url(path):
        with store(path) as (system, name):
            return system.open(name, "rb", block_size=_AHEAD_BYTES)
    return Path(path).open("rb")


@dataclass(frozen=True)
class FileState:
    """Tells a file from a changed one, without reading it."""

    size_bytes: int
    stamp: str
    """Time of the last change, or what the remote store has for it."""


def file_state(path: str) -> FileState:
    """Size and stamp of a file or URL.

    Raises: UserError when it cannot be read.
    """
    try:
        if is_url(path):
            with store(path) as (system, name):
                info = system.info(name)
            stamp = next((str(info[key]) for key in _STAMPS if key in info), "")
            return FileState(int(info["size"]), stamp)
        stat = Path(path).stat()
        return FileState(stat.st_size, str(stat.st_mtime_ns))
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error}") from error


def in_package(name: str) -> Path | None:
    """The file or folder that `PACKAGE:PATH` names; the package is not imported.

    Returns: None where the name is of another form, or there is no such package or path in it.
    """
    package, separator, inside = name.partition(":")
    spec = importlib.util.find_spec(package) if separator and package.isidentifier() else None
    for folder in (spec and spec.submodule_search_locations) or ():
        path = inner_path(Path(folder), inside)
        if path.exists():
            return path
    return None
