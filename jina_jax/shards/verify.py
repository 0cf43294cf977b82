"""Whether a prepared folder is still what was prepared."""

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import xxhash

from jina_jax.errors import UserError
from jina_jax.shards.manifest import Manifest, ShardFile
from jina_jax.system.hashing import file_sha256
from jina_jax.system.untrusted import inner_path
from jina_jax.text.tokenizer import TOKENIZER_FILE

_END_BYTES = 1 << 16
_THREADS = 16
"""Most of the time goes into waiting for the disk or the network."""


def ends_xxh3(path: Path) -> str:
    """xxh3-128 of a file's first and last 64 KiB, as hex digits.

    A shard's index lies at its end and is as long as its records are many and large, so that
    another preparation's shard differs there, though shards are padded to the same few sizes.
    """
    with path.open("rb") as file:
        digest = xxhash.xxh3_128(file.read(_END_BYTES))
        file.seek(max(file.seek(0, os.SEEK_END) - _END_BYTES, 0))
        digest.update(file.read(_END_BYTES))
    return digest.hexdigest()


def verify_shards(manifest: Manifest, folder: Path, *, full: bool = False) -> None:
    """Checks that every shard and the tokenizer is the file that was prepared.

    A shard that passes may still be damaged inside, unless every byte is hashed; but each read
    checks what it reads (`shards.ShardSet`), so nothing damaged is ever trained on.

    Args:
      manifest: of the folder.
      folder: the prepared folder.
      full: hash every byte; else sizes, and the first and last 64 KiB of each shard.
    Raises: UserError naming the first file that differs.
    """
    for problem in data_problems(manifest, folder, full=full):
        raise UserError(problem)


def data_problems(manifest: Manifest, folder: Path, *, full: bool = False) -> Iterator[str]:
    """What `verify_shards` checks, with every file that differs."""
    tokenizer = inner_path(folder, f"tokenizer/{TOKENIZER_FILE}")
    if not tokenizer.is_file():
        yield f"{tokenizer} is missing; restore it or prepare the data again"
    elif file_sha256(tokenizer) != manifest.tokenizer_sha256:
        yield (
            f"{tokenizer} is not the one that the shards were made with; restore it or prepare "
            f"the data again"
        )
    shards = [shard for source in manifest.sources for shard in source.shards]
    with ThreadPoolExecutor(_THREADS) as threads:
        for shard, wrong in zip(
            shards, threads.map(partial(_wrong, folder, full), shards), strict=True
        ):
            if wrong:
                path = folder / shard.path
                yield f"shard {path} {wrong}; restore it or prepare the data again"


def _wrong(folder: Path, full: bool, shard: ShardFile) -> str:
    path = folder / shard.path
    try:
        size_bytes = path.stat().st_size if path.is_file() else None
        if size_bytes is None:
            return "is missing"
        if size_bytes != shard.size_bytes:
            return f"has {size_bytes:,} bytes instead of {shard.size_bytes:,}"
        if ends_xxh3(path) != shard.ends_xxh3:
            return "is another one than the manifest's, or damaged: its first or last bytes differ"
        if full and file_sha256(path) != shard.sha256:
            return "is damaged: its sha256 differs from the manifest's"
    except OSError as error:
        return f"cannot be read ({error})"
    return ""
