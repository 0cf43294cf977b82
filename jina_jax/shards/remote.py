"""Prepared folders at a URL: each machine keeps a copy of all files but the shards, which it reads
from there, as much as it needs.

The manifest is written last, so that there is never one beside files that are not all there.
"""

import fcntl
import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from jina_jax.config import RunConfig
from jina_jax.errors import UserError
from jina_jax.shards.bucket import BucketShard
from jina_jax.shards.manifest import (
    LEDGER,
    MANIFEST_FILE,
    OLD_LEDGER_FILE,
    Manifest,
    SourceSummary,
    load_manifest,
)
from jina_jax.shards.publish import UPLOADING
from jina_jax.shards.shard_set import ShardSet
from jina_jax.system.atomic import atomic_file, write_atomically
from jina_jax.system.files import again, store
from jina_jax.system.hashing import file_sha256
from jina_jax.system.objects import each, list_objects, read_object
from jina_jax.system.terminal import say
from jina_jax.system.untrusted import inner_path
from jina_jax.text.tokenizer import TOKENIZER_FILE

_INDEXES = "indexes"
"""Folder of a folder whose shards are at a URL: what was learnt of those."""
_SOURCE_FILE = ".source"
"""Of a folder whose shards are at a URL: the URL, and the sha256 of the manifest that all its files
were checked against."""


def fetch_prepared(config: RunConfig) -> None:
    """Brings the prepared data of a run to `config.data_path`, when they lie at a URL.

    These are all files but the shards, which are read from there and must have the sizes of the
    manifest. What is here and whole is not fetched again. Processes of one machine do it once.

    Args:
      config: of the run.
    Raises:
      UserError: there are none, or they are not whole at the URL.
      Unreachable: the store did not answer in time.
    """
    if not config.data_url:
        return
    with _alone(config.data_path):
        if not _fetch(config.data_url.rstrip("/"), config.data_path):
            raise UserError(
                f"no prepared data in {config.data_url}: run `jina-jax prepare` with the same "
                f"--data-dir first"
            )


def open_shards(config: RunConfig, manifest: Manifest) -> dict[str, ShardSet]:
    """The shards of a run's prepared data, wherever they are, after `fetch_prepared`.

    Args:
      config: of the run.
      manifest: of its data.
    Returns: source → its shards, none of which is opened yet.
    """
    return {source.name: open_source(config.data_path, source) for source in manifest.sources}


def open_source(folder: Path, source: SourceSummary) -> ShardSet:
    """The shards of one source of a prepared folder, none of which is opened yet."""
    return ShardSet(places(folder, source), [shard.records for shard in source.shards])


def places(folder: Path, source: SourceSummary) -> list[Path | BucketShard]:
    """Where the shards of a source of a prepared folder are, in their order."""
    if url := shards_url(folder):
        return [BucketShard(f"{url}/{s.path}", s, folder / _INDEXES) for s in source.shards]
    return [folder / shard.path for shard in source.shards]


def shards_url(folder: Path) -> str:
    """The URL that a prepared folder's shards are at; empty where they are in the folder."""
    source = folder / _SOURCE_FILE
    return source.read_text("utf-8").splitlines()[0] if source.is_file() else ""


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
    """Makes `folder` what `url` holds but the shards; False when that holds nothing prepared."""
    content = read_object(f"{url}/{MANIFEST_FILE}")
    if content is None:
        return False
    coming = folder / ".coming"
    coming.mkdir(parents=True, exist_ok=True)
    (coming / MANIFEST_FILE).write_bytes(content)
    manifest, there = load_manifest(coming), list_objects(url)
    (coming / MANIFEST_FILE).unlink()
    coming.rmdir()
    shards = {shard.path: shard for source in manifest.sources for shard in source.shards}
    for name, shard in shards.items():
        if there.get(name) != shard.size_bytes:
            raise UserError(
                f"{url}/{name} has {there.get(name, 'no')} bytes instead of "
                f"{shard.size_bytes:,}: put the prepared folder there again"
            )
    source, manifest_path = folder / _SOURCE_FILE, folder / MANIFEST_FILE
    mark = f"{url}\n{hashlib.sha256(content).hexdigest()}\n".encode()
    if (
        source.is_file()
        and source.read_bytes() == mark
        and manifest_path.is_file()
        and manifest_path.read_bytes() == content
    ):
        return True
    manifest_path.unlink(missing_ok=True)
    source.unlink(missing_ok=True)
    wanted = _wanted(manifest, {name: there[name] for name in there if name not in shards}, folder)
    missing = [file for file in wanted if not file.is_whole(folder / file.name)]
    size_mb = sum(file.size_bytes for file in missing) / 1e6
    say(f"fetching {len(missing)} of {len(wanted)} files ({size_mb:.1f} MB) from {url} to {folder}")
    works = {
        f.name: partial(again, f"{url}/{f.name}", partial(_get, url, folder, f)) for f in missing
    }
    each(works, "fetch")
    for name in shards:  # Earlier versions copied these.
        (folder / name).unlink(missing_ok=True)
    write_atomically(source, mark)
    write_atomically(manifest_path, content)
    return True


def _wanted(manifest: Manifest, there: Mapping[str, int], folder: Path) -> list[_Wanted]:
    """The files but the manifest and the ledger, which only people read."""
    sums = {f"tokenizer/{TOKENIZER_FILE}": manifest.tokenizer_sha256}
    left_out = (MANIFEST_FILE, OLD_LEDGER_FILE, UPLOADING)
    names = sorted(n for n in there if n not in left_out and not n.startswith(f"{LEDGER}/"))
    for name in names:
        inner_path(folder, name)
    return [_Wanted(name, there[name], sums.get(name, "")) for name in names]


def _get(url: str, folder: Path, file: _Wanted) -> None:
    path = folder / file.name
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path) as part:
        with store(f"{url}/{file.name}") as (system, name):
            system.get_file(name, str(part))
        if not file.is_whole(part):
            raise OSError("what came is not what the manifest has: its size or sha256 differs")


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
