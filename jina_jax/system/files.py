"""Input files, on this file system or, as URLs, wherever fsspec reads: gs://, s3://, https://."""

import glob
import importlib.util
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, TypeVar

from jina_jax.errors import Unreachable, UserError
from jina_jax.system.terminal import say
from jina_jax.system.untrusted import inner_path

T = TypeVar("T")
WAITS_S = (1, 2, 4, 8, 16, 32)
"""Between tries at a store; one that is away for longer ends the command."""
_AHEAD_BYTES = 2 << 20
"""Read ahead from a store. s3fs takes 50 MiB of its own accord, three times the part of a file that
a task is there to read."""
_CONNECTIONS = 64
"""To an S3 store at once. boto takes 10 of its own accord, fewer than threads read shards."""
_RENEWALS = {
    "s3": "`aws sso login`, or new AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_SESSION_TOKEN",
    "gs": "`gcloud auth application-default login`, or a new GOOGLE_APPLICATION_CREDENTIALS",
}
"""How credentials are renewed, by the beginning of a URL."""
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
        system, name = fsspec.core.url_to_fs(url, **_options(url))
    except (ImportError, ValueError) as error:
        raise UserError(f"{url} cannot be read: {error}") from error
    try:
        yield system, name
    except OSError as error:
        answer = getattr(error.__cause__, "response", None) or {}
        if "Token" in answer.get("Error", {}).get("Code", ""):  # That has expired or is none.
            raise PermissionError(str(error)) from error
        raise
    except Exception as error:  # Each library has its own for want of credentials or of a network.
        kind = type(error).__name__
        more = f"; {_renewal(url)}" if "Credential" in kind or "RefreshError" in kind else ""
        raise OSError(f"{kind}: {error}{more}") from error


def _options(url: str) -> dict[str, Any]:
    """Of the file system of a URL, beside those that the user has set for fsspec."""
    from fsspec.config import conf

    if not url.startswith("s3://"):
        return {}
    own = conf.get("s3", {}).get("config_kwargs", {})
    return {"config_kwargs": {"max_pool_connections": _CONNECTIONS} | own}


def _renewal(url: str) -> str:
    how = _RENEWALS.get(url.partition("://")[0], "as its library says")
    return f"renew the credentials ({how}) and give the same command again"


def again(what: str, work: Callable[[], T]) -> T:
    """Does work at a store, again after each of `WAITS_S` when the store fails.

    Args:
      what: path or URL, named in errors.
      work: may be done twice.
    Raises: UserError for what another try would not mend, else Unreachable.
    """
    for wait_s in (*WAITS_S, None):
        try:
            return work()
        except FileNotFoundError as error:
            raise UserError(f"{what}: FileNotFoundError: {error}") from error
        except PermissionError as error:
            raise UserError(
                f"{what}: the store refuses this ({error}); where the credentials have ended, "
                f"{_renewal(what)}"
            ) from error
        except OSError as error:
            if wait_s is None:
                raise Unreachable(
                    f"{what} could not be had in {len(WAITS_S) + 1} tries, the last: {error}; when "
                    f"the store answers again, the same command goes on with what is missing"
                ) from error
            say(f"{what}: {error}; trying again in {wait_s} s")
            time.sleep(wait_s)
    raise AssertionError


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
