"""Is every file of a prepared folder the one that was prepared?"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from jina_jax.errors import UserError
from jina_jax.shards.bucket import BucketShard, remedy
from jina_jax.shards.manifest import Manifest, ShardFile, ends_xxh3
from jina_jax.shards.remote import places, shards_url
from jina_jax.system.hashing import file_sha256
from jina_jax.system.untrusted import inner_path
from jina_jax.text.tokenizer import TOKENIZER_FILE

_THREADS = 16
"""Most of the time goes into waiting for the disk or the network."""


def verify_shards(manifest: Manifest, folder: Path) -> None:
    """Checks the tokenizer, and of each shard the size and the first and last 64 KiB.

    A shard that passes may still be damaged inside; but each read checks what it reads
    (`shard_set.ShardSet`), so nothing damaged is ever trained on. Of shards at a URL only the
    tokenizer is looked at: `remote.fetch_prepared` has compared their sizes, and the rest is looked
    at when one is first read.

    Args:
      manifest: of the folder.
      folder: the prepared folder.
    Raises: UserError naming the first file that differs.
    """
    problems = _of_tokenizer if shards_url(folder) else data_problems
    for problem in problems(manifest, folder):
        raise UserError(problem)


def data_problems(manifest: Manifest, folder: Path, *, full: bool = False) -> Iterator[str]:
    """What is wrong with the tokenizer and the shards, here or at a URL.

    Args:
      manifest: of the folder.
      folder: the prepared folder.
      full: hash every byte; else sizes, and the first and last 64 KiB of each shard.
    Returns: a sentence of each file that differs, with what to do after its last semicolon.
    Raises: Unreachable where a store did not answer in time.
    """
    yield from _of_tokenizer(manifest, folder)
    found = [
        pair
        for source in manifest.sources
        for pair in zip(places(folder, source), source.shards, strict=True)
    ]
    with ThreadPoolExecutor(_THREADS) as threads:
        for problem in threads.map(partial(_of_shard, full), found):
            if problem:
                yield problem


def _of_tokenizer(manifest: Manifest, folder: Path) -> Iterator[str]:
    tokenizer = inner_path(folder, f"tokenizer/{TOKENIZER_FILE}")
    if not tokenizer.is_file():
        yield f"{tokenizer} is missing; restore it or prepare the data again"
    elif file_sha256(tokenizer) != manifest.tokenizer_sha256:
        yield (
            f"{tokenizer} is not the one that the shards were made with; restore it or prepare "
            f"the data again"
        )


def _of_shard(full: bool, found: tuple[Path | BucketShard, ShardFile]) -> str:
    place, shard = found
    try:
        wrong = _wrong(place, shard, full)
    except UserError as error:
        return str(error)
    except OSError as error:
        wrong = f"cannot be read ({error})"
    return wrong and f"shard {place} {wrong}; {remedy(place)}"


def _wrong(place: Path | BucketShard, shard: ShardFile, full: bool) -> str:
    if isinstance(place, Path):
        size_bytes = place.stat().st_size if place.is_file() else None
        if size_bytes is None:
            return "is missing"
        if size_bytes != shard.size_bytes:
            return f"has {size_bytes:,} bytes instead of {shard.size_bytes:,}"
        ends = ends_xxh3(place)
    else:
        ends = place.ends_xxh3()
    if ends != shard.ends_xxh3:
        return "is another one than the manifest's, or damaged: its first or last bytes differ"
    if full:
        sha256 = file_sha256(place) if isinstance(place, Path) else place.sha256()
        if sha256 != shard.sha256:
            return "is damaged: its sha256 differs from the manifest's"
    return ""
