"""Objects at URLs: put, copied, listed and removed, each try repeated while the store fails."""

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path

from jina_jax.system.files import again, store
from jina_jax.system.terminal import track

_AT_ONCE = 8
"""Files under way at once: one alone does not fill the network of a host."""


def put_object(content: Path | bytes, url: str) -> None:
    """Puts a file or bytes at a URL; the object appears when all of it has come.

    Raises: as `files.again`.
    """
    again(url, partial(_put, content, url))


def create_object(content: bytes, url: str) -> bool:
    """Puts bytes at a URL where there is no object yet; of several that do so at once one alone.

    Returns: False where there was one, which stays.
    Raises: as `files.again`.
    """
    return again(url, partial(_create, content, url))


def copy_object(url: str, to: str) -> bool:
    """Copies an object within its store, without its bytes coming here.

    Returns: False where the two are of different stores, and nothing is copied.
    Raises: as `files.again`.
    """
    return again(to, partial(_copy, url, to))


def remove_object(url: str) -> None:
    """Removes an object, if it is there.

    Raises: as `files.again`.
    """
    again(url, partial(_remove, url))


def read_object(url: str) -> bytes | None:
    """What a small object holds; None where there is none.

    Raises: as `files.again`.
    """
    return again(url, partial(_read, url))


def list_objects(url: str) -> dict[str, int]:
    """Names of the objects below a URL, with their sizes in bytes.

    Raises: as `files.again`.
    """
    return again(url, partial(_list, url))


def changed_ns(url: str) -> int:
    """When an object was last changed, in nanoseconds since 1970.

    Raises: as `files.again`.
    """

    def of() -> int:
        with store(url) as (system, name):
            return int(system.modified(name).timestamp() * 1e9)

    return again(url, of)


def each(works: Mapping[str, Callable[[], object]], what: str, *, shows: bool = True) -> None:
    """Does the work of every file, several at once, and shows how far it is."""
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        done = pool.map(lambda work: work(), works.values())
        try:
            for _ in track(done, what, total=len(works), unit="files", enabled=shows):
                pass
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _put(content: Path | bytes, url: str) -> None:
    with store(url) as (system, name):
        system.makedirs(system._parent(name), exist_ok=True)
        if isinstance(content, bytes):
            system.pipe_file(name, content)
        else:
            system.put_file(str(content), name)


def _create(content: bytes, url: str) -> bool:
    with store(url) as (system, name):
        system.makedirs(system._parent(name), exist_ok=True)
        try:
            system.pipe_file(name, content, mode="create")
        except FileExistsError:
            return False
    return True


def _copy(url: str, to: str) -> bool:
    with store(url) as (system, name), store(to) as (other, target):
        if system is not other:  # fsspec gives one object for equal settings.
            return False
        system.cp_file(name, target)
        return True


def _remove(url: str) -> None:
    with store(url) as (system, name):
        if system.exists(name):
            system.rm_file(name)


def _read(url: str) -> bytes | None:
    with store(url) as (system, name), suppress(FileNotFoundError):
        system.invalidate_cache()
        return bytes(system.cat_file(name))
    return None


def _list(url: str) -> dict[str, int]:
    with store(url) as (system, path):
        system.invalidate_cache()
        found = system.find(path, detail=True)
        root = path.rstrip("/") + "/"
        return {name.removeprefix(root): int(info["size"]) for name, info in found.items()}
