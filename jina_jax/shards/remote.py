"""Prepared folders at a URL: each machine keeps a copy, every file of which is checked.

A copy is whole when the sha256 of every shard is the manifest's. The manifest is put and fetched
last, so that neither side ever has one beside files that are not all there.
"""

import fcntl
import hashlib
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from jina_jax.config import RunConfig
from jina_jax.errors import Unreachable, UserError
from jina_jax.shards.manifest import LEDGER_FILE, MANIFEST_FILE, load_manifest
from jina_jax.system.atomic import atomic_file, write_atomically
from jina_jax.system.files import is_url, store
from jina_jax.system.hashing import file_sha256
from jina_jax.system.terminal import say, track
from jina_jax.system.untrusted import inner_path

WAITS_S = (1, 2, 4, 8, 16, 32)
"""Between tries of one file; a store that is away for longer ends the command."""
_AT_ONCE = 8
"""Files under way at once: one alone does not fill the network of a host."""
_CHECKED = ".checked"
"""Of a copy: the sha256 of the manifest that all its files were checked against."""
_UPLOADING = ".uploading"
"""At a URL: the sha256 of the manifest whose files are being put there."""


def fetch_prepared(config: RunConfig, *, must_be_there: bool = True) -> None:
    """Brings the prepared data of a run to `config.data_path`, when they lie at a URL.

    What is there and whole is not fetched again. Processes of one machine do it once.

    Args:
      config: of the run.
      must_be_there: False for a preparation, which makes what is not at the URL yet.
    Raises:
      UserError: there are none, or they are not whole at the URL.
      Unreachable: the store did not answer in time.
    """
    if not is_url(config.data_dir):
        return
    with _alone(config.data_path):
        if not _fetch(config.data_dir, config.data_path) and must_be_there:
            raise UserError(
                f"no prepared data in {config.data_dir}: run `jina-jax prepare` with the same "
                f"--data-dir first"
            )


def upload_prepared(config: RunConfig) -> None:
    """Puts the prepared data of a run where `config.data_dir` says, when that is a URL.

    Interrupted, it goes on with the files that are not there yet.

    Raises: UserError or Unreachable when the store refuses or does not answer.
    """
    if not is_url(config.data_dir):
        return
    url, folder = config.data_dir.rstrip("/"), config.data_path
    ours = (folder / MANIFEST_FILE).read_bytes()
    if _read(url, MANIFEST_FILE) == ours:
        return
    mark = hashlib.sha256(ours).hexdigest().encode()
    there = _listing(url) if _read(url, _UPLOADING) == mark else {}
    _try(url, partial(_remove, f"{url}/{MANIFEST_FILE}"))
    _try(url, partial(_put, mark, f"{url}/{_UPLOADING}"))
    names = [
        str(path.relative_to(folder))
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in (MANIFEST_FILE, _CHECKED)
    ]
    names = [n for n in names if there.get(n) != (folder / n).stat().st_size]
    _each({n: partial(_put, folder / n, f"{url}/{n}") for n in names}, f"put into {url}")
    _try(url, partial(_put, ours, f"{url}/{MANIFEST_FILE}"))
    _try(url, partial(_remove, f"{url}/{_UPLOADING}"))
    say(f"prepared data are in {url}")


@dataclass(frozen=True)
class _Wanted:
    """A file of a prepared folder."""

    name: str
    size_bytes: int
    sha256: str
    """Empty where the manifest has none."""

    def is_whole(self, path: Path) -> bool:
        return (
            path.is_file()
            and path.stat().st_size == self.size_bytes
            and (not self.sha256 or file_sha256(path) == self.sha256)
        )


def _fetch(url: str, folder: Path) -> bool:
    """Makes `folder` what `url` holds; False when that holds nothing prepared."""
    url = url.rstrip("/")
    manifest_bytes = _read(url, MANIFEST_FILE)
    if manifest_bytes is None:
        return False
    checked, manifest_path = folder / _CHECKED, folder / MANIFEST_FILE
    mark = hashlib.sha256(manifest_bytes).hexdigest()
    if (
        checked.is_file()
        and checked.read_text() == mark
        and manifest_path.is_file()
        and manifest_path.read_bytes() == manifest_bytes
    ):
        return True
    manifest_path.unlink(missing_ok=True)
    checked.unlink(missing_ok=True)
    coming = folder / ".coming"
    coming.mkdir(parents=True, exist_ok=True)
    (coming / MANIFEST_FILE).write_bytes(manifest_bytes)
    wanted = _wanted(url, coming)
    missing = [file for file in wanted if not file.is_whole(folder / file.name)]
    size_gb = sum(file.size_bytes for file in missing) / 1e9
    say(f"fetching {len(missing)} of {len(wanted)} files ({size_gb:.2f} GB) from {url} to {folder}")
    _each({file.name: partial(_get, url, folder, file) for file in missing}, "fetch")
    write_atomically(manifest_path, manifest_bytes)
    write_atomically(checked, mark.encode())
    (coming / MANIFEST_FILE).unlink()
    coming.rmdir()
    return True


def _wanted(url: str, with_manifest: Path) -> list[_Wanted]:
    """All files of the prepared folder but the manifest and the ledger, which only people read."""
    manifest, there = load_manifest(with_manifest), _listing(url)
    sums = {"tokenizer/tokenizer.json": manifest.tokenizer_sha256}
    for shard in (shard for source in manifest.sources for shard in source.shards):
        sums[shard.path] = shard.sha256
        if there.get(shard.path) != shard.size_bytes:
            raise UserError(
                f"{url}/{shard.path} has {there.get(shard.path, 'no')} bytes instead of "
                f"{shard.size_bytes:,}: put the prepared folder there again"
            )
    left_out = (MANIFEST_FILE, LEDGER_FILE, _UPLOADING)
    names = sorted(name for name in there if name not in left_out)
    for name in names:
        inner_path(with_manifest, name)
    return [_Wanted(name, there[name], sums.get(name, "")) for name in names]


def _get(url: str, folder: Path, file: _Wanted) -> None:
    path = folder / file.name
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path) as part:
        with store(f"{url}/{file.name}") as (system, name):
            system.get_file(name, str(part))
        if not file.is_whole(part):
            raise OSError("what came is not what the manifest has: its size or sha256 differs")


def _put(content: Path | bytes, url: str) -> None:
    with store(url) as (system, name):
        system.makedirs(system._parent(name), exist_ok=True)
        if isinstance(content, bytes):
            system.pipe_file(name, content)
        else:
            system.put_file(str(content), name)


def _remove(url: str) -> None:
    with store(url) as (system, name):
        if system.exists(name):
            system.rm_file(name)


def _read(url: str, name: str) -> bytes | None:
    """A small file at a URL; None when there is none."""

    def read() -> bytes | None:
        with store(f"{url}/{name}") as (system, path), suppress(FileNotFoundError):
            system.invalidate_cache()
            return bytes(system.cat_file(path))
        return None

    return _try(url, read)


def _listing(url: str) -> dict[str, int]:
    """Names of the files below a URL, with their sizes in bytes."""

    def of() -> dict[str, int]:
        with store(url) as (system, path):
            system.invalidate_cache()
            found = system.find(path, detail=True)
            root = path.rstrip("/") + "/"
            return {name.removeprefix(root): int(info["size"]) for name, info in found.items()}

    return _try(url, of)


def _each(works: Mapping[str, Callable[[], None]], what: str) -> None:
    """Does the work of every file, several at once; each is tried again where that may help."""
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        done = pool.map(_try, works.keys(), works.values())
        try:
            for _ in track(done, what, total=len(works), unit="files"):
                pass
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _try(what: str, work: Callable[[], Any]) -> Any:
    """Does the work, again after each of `WAITS_S` when the store fails.

    Raises: UserError for what another try would not mend, else Unreachable.
    """
    for wait_s in (*WAITS_S, None):
        try:
            return work()
        except (FileNotFoundError, PermissionError) as error:
            raise UserError(f"{what}: {type(error).__name__}: {error}") from error
        except OSError as error:
            if wait_s is None:
                raise Unreachable(
                    f"{what} could not be had in {len(WAITS_S) + 1} tries, the last: {error}; when "
                    f"the store answers again, the same command goes on with what is missing"
                ) from error
            say(f"{what}: {error}; trying again in {wait_s} s")
            time.sleep(wait_s)
    raise AssertionError


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Holds the lock of a copy; other processes of the machine wait for it."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_name(f".{folder.name}.fetch-lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"waiting for another process that fetches to {folder}")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield
