"""Hashes of values and of files."""

import hashlib
import json
from pathlib import Path
from typing import Any

import xxhash

_CHUNK_BYTES = 1 << 20


def content_key(*parts: Any) -> str:
    """A hash of JSON values: equal for equal values, whatever the process or machine."""
    text = json.dumps(parts, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return xxhash.xxh3_128_hexdigest(text.encode("utf-8", "surrogatepass"))


def file_sha256(path: Path) -> str:
    """Hex digest of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def file_xxh3(path: str) -> str:
    """xxh3-128 of a file's bytes, as hex digits."""
    digest = xxhash.xxh3_128()
    with Path(path).open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()
