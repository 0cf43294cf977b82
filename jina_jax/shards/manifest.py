"""The manifest: what a prepared folder holds, where it came from, and how to tell it is whole.

It holds no time, no host and no path beyond those configured: the same input and configuration
give the same bytes.
"""

import dataclasses
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import xxhash

from jina_jax.config import DataConfig, SourceConfig
from jina_jax.config.files import changed_since, unchangeable_fields
from jina_jax.errors import UserError
from jina_jax.system.untrusted import from_json, inner_path, parse_json, read_bounded

MANIFEST_FILE = "manifest.json"
LEDGER = "ledger"
OLD_LEDGER_FILE = "ledger.parquet"
"""What earlier versions wrote in its place."""
_MAX_BYTES = 256 << 20
"""A million shards or input files."""
FORMAT_VERSION = 6
"""Raise it when the layout of the folder, of a shard or of this file changes."""
_READ_VERSIONS = (5, FORMAT_VERSION)
"""5 had neither labels nor scored pairs nor a guide."""


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
    """`pair`, `triplet` or `scored`."""
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
    has_labels: bool = False
    """Whether its records have labels."""

    @property
    def records(self) -> int:
        """Records in its shards: fewer than `train` where one holds several triplets of a pair."""
        return sum(shard.records for shard in self.shards)


@dataclass(frozen=True)
class Guide:
    """The model whose embeddings of all training texts are in the shards."""

    model: str
    """As configured."""
    sha256: str
    dims: int
    """Of an embedding, a byte each: the model's first ones."""
    query_prompt: str
    document_prompt: str

    @property
    def prompts(self) -> tuple[str, str]:
        """Before each query, and before each other text."""
        return self.query_prompt, self.document_prompt


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
    guide: Guide | None = None
    """None where the shards hold no guide's embeddings."""

    @property
    def train_records(self) -> int:
        """Training records of all sources."""
        return sum(source.train for source in self.sources)


def prepared_config(config: DataConfig) -> dict[str, Any]:
    """The part of the configuration that prepared data depends on, as field path → JSON value.

    A source's weight, epochs and in-batch negatives are left out: they say how the shards are
    trained on, not what they hold; so are fields that change no result, such as the engine's.
    """
    values = unchangeable_fields(config)
    for source in values["sources"]:
        del source["weight"], source["max_epochs"], source["in_batch"]
    return values


def blank_data(config: DataConfig) -> DataConfig:
    """As many sources, and nothing set."""
    return DataConfig(sources=(SourceConfig(""),) * len(config.sources))


def changed_fields(manifest: Manifest, config: DataConfig) -> list[str]:
    """What the data were prepared with → what is configured, for each field that differs."""
    now, defaults = (prepared_config(c) for c in (config, blank_data(config)))
    return changed_since(manifest.config, now, defaults)


def manifest_bytes(manifest: Manifest) -> bytes:
    """What `manifest.json` holds."""
    text = json.dumps(dataclasses.asdict(manifest), indent=1, sort_keys=True, ensure_ascii=False)
    return f"{text}\n".encode()


def save_manifest(manifest: Manifest, folder: Path) -> None:
    """Writes `manifest.json` into the folder."""
    (folder / MANIFEST_FILE).write_bytes(manifest_bytes(manifest))


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
        manifest = from_json(Manifest, values) if version in _READ_VERSIONS else None
    except (ValueError, KeyError, TypeError) as error:
        what = f"{type(error).__name__}: {error}"
        raise UserError(
            f"{path} is damaged ({what}): restore it or prepare the data again"
        ) from error
    if manifest is None:
        raise UserError(
            f"{path} has format version {version}, this jina-jax reads "
            f"{' and '.join(map(str, reversed(_READ_VERSIONS)))}: delete {folder} and run "
            f"`jina-jax prepare` again (scores beside it are kept)"
        )
    for source in manifest.sources:
        for name in (*(shard.path for shard in source.shards), source.eval_path):
            if name is not None:
                inner_path(folder, name)
    return manifest


def check_guide(manifest: Manifest, folder: Path, asked_by: str) -> None:
    """Raises: UserError where a guide is asked for and the shards hold no embeddings.

    Args:
      manifest: of the prepared folder.
      folder: to name.
      asked_by: the field that asks, with its value.
    """
    if manifest.guide is None:
        raise UserError(
            f"{asked_by} needs a guide's embeddings, and the shards in {folder} have none: set "
            f"data.guide.model, delete {folder} and prepare again (the scores of filters are kept)"
        )


END_BYTES = 1 << 16
"""Of each end of a shard, that tell it from others."""


def ends_xxh3(path: Path) -> str:
    """xxh3-128 of a file's first and last 64 KiB, as hex digits.

    A shard's index lies at its end and is as long as its records are many and large, so that
    another preparation's shard differs there, though shards are padded to the same few sizes.
    """
    with path.open("rb") as file:
        first = file.read(END_BYTES)
        file.seek(max(file.seek(0, os.SEEK_END) - END_BYTES, 0))
        return ends_digest(first, file.read(END_BYTES))


def ends_digest(first: bytes, last: bytes) -> str:
    """`ends_xxh3` of the first and last 64 KiB themselves."""
    digest = xxhash.xxh3_128(first)
    digest.update(last)
    return digest.hexdigest()
