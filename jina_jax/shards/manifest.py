"""The manifest: what a prepared folder holds, where it came from, and how to tell it is whole.

It holds no time, no host and no path beyond those configured: the same input and configuration
give the same bytes.
"""

import dataclasses
import json
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import xxhash

from jina_jax.config import DataConfig, SourceConfig
from jina_jax.config.files import changed_since, unchangeable_fields
from jina_jax.errors import UserError
from jina_jax.system.hashing import file_sha256
from jina_jax.system.untrusted import from_json, inner_path, parse_json, read_bounded
from jina_jax.text.tokenizer import TOKENIZER_FILE

MANIFEST_FILE = "manifest.json"
LEDGER_FILE = "ledger.parquet"
_MAX_BYTES = 256 << 20
"""A million shards or input files."""
FORMAT_VERSION = 5
"""Raise it when the layout of the folder, of a shard or of this file changes."""


@dataclass(frozen=True)
class ShardFile:
    """One file of training records."""

    path: str
    """Relative to the prepared folder."""
    records: int
    size_bytes: int
    sha256: str
    ends_xxh3: str
    """Of its first and last bytes, as `verify.ends_xxh3` gives it."""


@dataclass(frozen=True)
class LengthStats:
    """Tokens per text, </s> included, after cutting to `max_text_tokens`; of training records."""

    mean: float
    p50: int
    p90: int
    p99: int


@dataclass(frozen=True)
class InputFile:
    """A file that a source was read from."""

    path: str
    size_bytes: int
    xxh3: str
    """xxh3-128 of its bytes as hex digits; empty for what is not on this file system."""


@dataclass(frozen=True)
class ScoreHistogram:
    """Records by score, in bins of equal width; what lies beyond the ends is in the outermost."""

    low: float
    high: float
    kept: tuple[int, ...]
    dropped: tuple[int, ...]

    def __add__(self, other: "ScoreHistogram") -> "ScoreHistogram":
        """Of the records of both, in the same bins."""
        kept = map(sum, zip(self.kept, other.kept, strict=True))
        dropped = map(sum, zip(self.dropped, other.dropped, strict=True))
        return ScoreHistogram(self.low, self.high, tuple(kept), tuple(dropped))


@dataclass(frozen=True)
class StageCounts:
    """What one filter did to a source."""

    stage: str
    records: int
    """Records that came in."""
    dropped: dict[str, int]
    """Reason → records that did not go on."""
    scores: ScoreHistogram | None
    """None for a filter without scores."""


@dataclass(frozen=True)
class SourceSummary:
    """What became of a source: read = bad + dropped + train + eval."""

    name: str
    licence: str
    record: str
    """`pair` or `triplet`."""
    inputs: tuple[InputFile, ...]
    read: int
    """Records read, bad ones included."""
    bad: dict[str, int]
    """Reason → records that could not be read."""
    dropped: dict[str, int]
    """Reason → records left out, by all stages together."""
    stages: tuple[StageCounts, ...]
    """Filters in the order in which they were applied."""
    train: int
    eval: int
    query_tokens: LengthStats
    positive_tokens: LengthStats
    negative_tokens: LengthStats | None
    """None for pairs."""
    shards: tuple[ShardFile, ...]
    eval_path: str | None
    """Held-out pairs as Parquet, relative to the prepared folder; None when there are none."""
    has_scores: bool
    """Whether its training records hold a teacher's scores."""
    prompts: tuple[str, str] = ("", "")
    """Before each query, and before each other text."""
    prompt_tokens: tuple[int, int] = (0, 0)
    """How many tokens a text begins with because of them."""

    @property
    def records(self) -> int:
        """Records in its shards: fewer than `train` where one holds several triplets of a pair."""
        return sum(shard.records for shard in self.shards)


@dataclass(frozen=True)
class Manifest:
    """A prepared folder."""

    format_version: int
    config: dict[str, Any]
    """The data section of the configuration, as `prepared_config` gives it."""
    filters: dict[str, int]
    """Version of everything that decides what is kept."""
    tokenizer_sha256: str
    """Of tokenizer.json."""
    vocab_size: int
    """Ids of the tokenizer, special ones included."""
    stages: dict[str, str]
    """Name of each configured filter → a hash of its configuration and its model."""
    models: dict[str, str]
    """Name of each filter with a model → the model's sha256."""
    sources: tuple[SourceSummary, ...]
    leaks: dict[str, dict[str, int]]
    """Evaluation set → its `texts`, the `texts_found` in sources and the `records_dropped`."""

    @property
    def train_records(self) -> int:
        """Training records of all sources."""
        return sum(source.train for source in self.sources)


def prepared_config(config: DataConfig) -> dict[str, Any]:
    """The part of the configuration that prepared data depends on, as field path → JSON value.

    A source's weight and epochs are left out: they say how often to draw from the shards, not what
    these hold; so are fields that change no result, such as the engine's.
    """
    values = unchangeable_fields(config)
    for source in values["sources"]:
        del source["weight"], source["max_epochs"]
    return values


def blank_data(config: DataConfig) -> DataConfig:
    """As many sources, and nothing set."""
    return DataConfig(sources=(SourceConfig(""),) * len(config.sources))


def changed_fields(manifest: Manifest, config: DataConfig) -> list[str]:
    """What the data were prepared with → what is configured, for each field that differs."""
    now, defaults = (prepared_config(c) for c in (config, blank_data(config)))
    return changed_since(manifest.config, now, defaults)


def save_manifest(manifest: Manifest, folder: Path) -> None:
    """Writes `manifest.json` into the folder."""
    text = json.dumps(dataclasses.asdict(manifest), indent=1, sort_keys=True, ensure_ascii=False)
    (folder / MANIFEST_FILE).write_text(text + "\n", encoding="utf-8")


def load_manifest(folder: Path) -> Manifest:
    """Reads `manifest.json`.

    Args:
      folder: as written by `prepare`.
    Raises: UserError when it is missing, damaged or of another version, or names a file that is
      not in the folder.
    """
    path = folder / MANIFEST_FILE
    if not path.exists():
        raise UserError(f"no prepared data in {folder}: run `jina-jax prepare` first")
    try:
        values = parse_json(read_bounded(path, _MAX_BYTES))
        version = values["format_version"]
        manifest = from_json(Manifest, values) if version == FORMAT_VERSION else None
    except (ValueError, KeyError, TypeError) as error:
        what = f"{type(error).__name__}: {error}"
        raise UserError(
            f"{path} is damaged ({what}): restore it or prepare the data again"
        ) from error
    if manifest is None:
        raise UserError(
            f"{path} has format version {version}, this jina-jax reads {FORMAT_VERSION}: delete "
            f"{folder} and run `jina-jax prepare` again (scores beside it are kept)"
        )
    for source in manifest.sources:
        for name in (*(shard.path for shard in source.shards), source.eval_path):
            if name is not None:
                inner_path(folder, name)
    return manifest


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
