"""A prepared folder appears: its files are taken from the work store, and it is seen whole or not
at all.
"""

import errno
import functools
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from jina_jax.errors import UserError
from jina_jax.shards.manifest import (
    MANIFEST_FILE,
    Manifest,
    load_manifest,
    manifest_bytes,
    save_manifest,
)
from jina_jax.system.atomic import sync
from jina_jax.system.hashing import file_sha256
from jina_jax.system.objects import (
    copy_object,
    each,
    list_objects,
    put_object,
    read_object,
    remove_object,
)
from jina_jax.system.store import StoredFile
from jina_jax.system.terminal import say
from jina_jax.text.tokenizer import TOKENIZER_FILE

_AT_ONCE = 8
_NO_LINK = (errno.EXDEV, errno.EPERM, errno.EMLINK, errno.ENOTSUP, errno.EACCES)
"""Of an OSError: the file has to be copied."""
UPLOADING = ".uploading"
"""At a URL: the sha256 of the manifest whose files are being put there."""


class DamagedFile(UserError):
    """A file of the work store is not what its task wrote."""

    def __init__(self, file: StoredFile):
        """Args: the file, which should be removed and made anew."""
        super().__init__(f"{file.path} has other bytes than were written")
        self.file = file


@dataclass(frozen=True)
class Prepared:
    """All of a prepared folder, in a work store."""

    manifest: Manifest
    files: Mapping[str, StoredFile]
    """Name in the folder → file of the store; all but the manifest."""
    trusted_ns: int
    """What was written before this time is hashed and compared with the manifest, since whatever
    happened to another folder that links to it happened to it too."""

    def checked(self, name: str) -> Path:
        """A file on this machine.

        Raises: DamagedFile where it is a shard or the tokenizer, and not what the manifest says.
        """
        file = self.files[name]
        path, expected = file.local(), self._sums.get(name)
        is_old = file.store.is_remote or path.stat().st_mtime_ns < self.trusted_ns
        if expected and is_old and file_sha256(path) != expected:
            raise DamagedFile(file)
        return path

    @functools.cached_property
    def _sums(self) -> dict[str, str]:
        shards = (shard for source in self.manifest.sources for shard in source.shards)
        return {
            f"tokenizer/{TOKENIZER_FILE}": self.manifest.tokenizer_sha256,
            **{shard.path: shard.sha256 for shard in shards},
        }


def publish(prepared: Prepared, folder: Path) -> None:
    """Makes a prepared folder, of links to the files of the store where that is possible.

    Args:
      prepared: what it is to hold.
      folder: to appear, by one rename; absent or empty.
    Raises:
      DamagedFile: a shard or the tokenizer is not what the manifest says.
      UserError: the folder holds something.
    """
    if folder.exists() and any(folder.iterdir()):
        raise UserError(f"{folder} appeared meanwhile: another process made it; run again")
    part = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(part, ignore_errors=True)
    for parent in {(part / name).parent for name in prepared.files} | {part}:
        parent.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        for _ in pool.map(partial(_take, prepared, part), prepared.files):
            pass
    save_manifest(prepared.manifest, part)
    for path in (*_files(part), *part.rglob("*/"), part):
        sync(path)
    part.replace(folder)
    sync(folder.parent)


def publish_at(prepared: Prepared, url: str) -> None:
    """Puts a prepared folder at a URL, by copies within its store where that is possible.

    The manifest is put last: where it is, all is. Interrupted, it goes on with the files that are
    not there yet.

    Args:
      prepared: what it is to hold.
      url: to hold it.
    Raises:
      DamagedFile: a shard or the tokenizer is not what the manifest says.
      UserError: the store refuses.
      Unreachable: it does not answer in time.
    """
    manifest = manifest_bytes(prepared.manifest)
    mark = hashlib.sha256(manifest).hexdigest().encode()
    there = list_objects(url) if read_object(f"{url}/{UPLOADING}") == mark else {}
    remove_object(f"{url}/{MANIFEST_FILE}")
    put_object(mark, f"{url}/{UPLOADING}")
    missing = [name for name in prepared.files if name not in there]
    each({name: partial(_put, prepared, url, name) for name in missing}, f"put into {url}")
    put_object(manifest, f"{url}/{MANIFEST_FILE}")
    remove_object(f"{url}/{UPLOADING}")
    say(f"prepared data are in {url}")


def manifest_at(url: str) -> Manifest | None:
    """The manifest of the prepared folder at a URL; None where there is none.

    Raises: as `load_manifest`, and UserError or Unreachable when the store refuses or fails.
    """
    content = read_object(f"{url}/{MANIFEST_FILE}")
    if content is None:
        return None
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / MANIFEST_FILE).write_bytes(content)
        return load_manifest(Path(folder))


def _take(prepared: Prepared, part: Path, name: str) -> None:
    path = prepared.checked(name)
    try:
        os.link(path, part / name)
    except OSError as error:
        if error.errno not in _NO_LINK:
            raise
        shutil.copyfile(path, part / name)
    prepared.files[name].let_go()


def _put(prepared: Prepared, url: str, name: str) -> None:
    file = prepared.files[name]
    if not (file.store.is_remote and copy_object(file.path, f"{url}/{name}")):
        put_object(prepared.checked(name), f"{url}/{name}")
        file.let_go()


def _files(folder: Path) -> Iterable[Path]:
    return (path for path in folder.rglob("*") if path.is_file())
