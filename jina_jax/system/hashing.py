"""Hashes of values, of files and, as a seal, of folders.

Orbax restores whatever bytes it finds. A seal is written when a folder is complete, and whoever
reads the folder compares first.
"""

import hashlib
import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import xxhash

from jina_jax.system.atomic import sync, write_atomically


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
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, xxhash.xxh3_128).hexdigest()


SEAL_FILE = "seal.json"
_THREADS = 8
"""Hashing lets go of Python's lock, and a network's disk likes several readers."""


def seal(folder: Path) -> None:
    """Writes `seal.json` into a folder whose files are complete; they are on the disk before it."""
    paths = (path for path in folder.rglob("*") if path.is_file() and path.name != SEAL_FILE)
    names = sorted(path.relative_to(folder).as_posix() for path in paths)
    for name in names:
        sync(folder / name)
    for inner in {(folder / name).parent for name in names}:
        sync(inner)
    with ThreadPoolExecutor(_THREADS) as threads:
        digests = threads.map(lambda name: _digest(folder / name), names)
        files = dict(zip(names, digests, strict=True))
    write_atomically(folder / SEAL_FILE, json.dumps({"sha256": files}, indent=0).encode())


def damage(folder: Path, *, below: Sequence[str] = (), share: tuple[int, int] = (0, 1)) -> str:
    """What is wrong with a sealed folder; empty where nothing is.

    Args:
      folder: with a seal.
      below: read files at the top and below these inner folders alone; all of them by default.
      share: (i, n) reads every n-th file from the i-th: n processes read all of them together.
    """
    try:
        files = json.loads((folder / SEAL_FILE).read_bytes())["sha256"]
        names = sorted(files)
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"{SEAL_FILE} cannot be read ({error})"
    if below:
        names = [name for name in names if "/" not in name or name.split("/")[0] in below]
    names = names[share[0] :: share[1]]
    with ThreadPoolExecutor(_THREADS) as threads:
        for name, problem in zip(
            names, threads.map(lambda n: _problem(folder / n, files[n]), names), strict=True
        ):
            if problem:
                return f"{name} {problem}"
    return ""


def _digest(path: Path) -> str:
    return f"{path.stat().st_size}:{file_sha256(path)}"


def _problem(path: Path, sealed: object) -> str:
    try:
        found = _digest(path)
    except FileNotFoundError:
        return "is missing"
    except OSError as error:
        return f"cannot be read ({error})"
    size = str(sealed).partition(":")[0]
    if found.partition(":")[0] != size:
        return f"has {found.partition(':')[0]} bytes and was sealed with {size}"
    return "" if found == sealed else "has other bytes than were sealed"
