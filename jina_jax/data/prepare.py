"""Preparation: from sources to a folder of shuffled shards of token ids.

folder/manifest.json        what is here and where it came from
folder/train/SOURCE-NNNNN.arrayrecord
folder/eval/SOURCE.parquet  held-out pairs, as text
folder/tokenizer/           tokenizer.json, spiece.model
folder/ledger.parquet       what was left out, and why
"""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jina_jax.config import DataConfig, difference
from jina_jax.data.dedup import DEDUP_VERSION, DedupResult, dedup_task
from jina_jax.data.encode import encode_task, training_texts
from jina_jax.data.ingest import CLEAN_VERSION, ReadResult, read_task
from jina_jax.data.ledger import LEDGER_FILE, UnusableError, merge_ledgers
from jina_jax.data.manifest import (
    FORMAT_VERSION,
    MANIFEST_FILE,
    LengthStats,
    Manifest,
    ShardFile,
    SourceSummary,
    file_sha256,
    flat_config,
    load_manifest,
    prepared_config,
    save_manifest,
)
from jina_jax.data.normalise import NORMALISE_VERSION
from jina_jax.data.runs import key_ranges
from jina_jax.data.split import (
    SPLIT_VERSION,
    SplitResult,
    held_out_pairs,
    hold_out_task,
    split_task,
)
from jina_jax.data.tokenizer import TOKENIZER_FILE, build_tokenizer, load_tokenizer
from jina_jax.data.workspace import workspace
from jina_jax.errors import UserError
from jina_jax.progress import say, track


def prepare(config: DataConfig, out_dir: Path, progress: bool = True) -> Manifest:
    """Reads, cleans, deduplicates, shuffles, splits and tokenises the sources.

    The same configuration and input give the same bytes. The folder appears when it is complete;
    a run that is killed leaves none. Memory stays within one key range: about `records_per_shard`
    pairs of each source, and their texts.

    Args:
      config: the data section.
      out_dir: the folder to make. One that was prepared with the same configuration is kept.
      progress: show it on standard error.
    Returns: the manifest of the folder.
    Raises: UserError when a source cannot be used, nothing is left, or `out_dir` holds something
      else.
    """
    if not config.sources:
        raise UserError("data.sources is empty: name at least one source of pairs")
    out_dir = out_dir.absolute()
    prepared = _already_prepared(config, out_dir)
    if prepared is not None:
        say(f"{out_dir} is already prepared with this configuration", enabled=progress)
        return prepared
    rejected = out_dir.with_name(f"{out_dir.name}.rejected.parquet")
    with workspace(out_dir) as folder:
        rejected.unlink(missing_ok=True)
        work = _Work(folder / "work")
        try:
            manifest = _run(config, folder, work, progress)
        except UnusableError as error:
            merge_ledgers(work.ledgers(), rejected)
            raise UserError(f"{error}\nEach such record and its reason: {rejected}") from error
        merge_ledgers(work.ledgers(), folder / LEDGER_FILE)
        shutil.rmtree(work.folder)
    say(f"prepared {manifest.train_records:,} training pairs in {out_dir}", enabled=progress)
    return manifest


def _already_prepared(config: DataConfig, out_dir: Path) -> Manifest | None:
    if not out_dir.exists() or (out_dir.is_dir() and not any(out_dir.iterdir())):
        return None
    if not (out_dir / MANIFEST_FILE).is_file():
        raise UserError(
            f"{out_dir} exists and is no prepared data: give another data_dir, or remove it"
        )
    manifest = load_manifest(out_dir)
    fields = difference(flat_config(manifest.config), flat_config(prepared_config(config)))
    if fields:
        raise UserError(
            f"{out_dir} was prepared with another configuration:\n  data."
            + "\n  data.".join(fields)
            + "\ngive another data_dir, or delete the folder to prepare it again"
        )
    return manifest


@dataclass(frozen=True)
class _Work:
    """Names of the files that the steps hand on."""

    folder: Path

    def make(self) -> None:
        (self.folder / "ledger").mkdir(parents=True)

    def ledger(self, stage: str, number: int) -> Path:
        return self.folder / "ledger" / f"{stage}-{number:05d}.parquet"

    def ledgers(self) -> list[Path]:
        stages = ("read", "dedup", "split")
        return [p for s in stages for p in sorted((self.folder / "ledger").glob(f"{s}-*.parquet"))]

    def unique(self, part: int) -> Path:
        return self.folder / f"unique-{part:05d}.arrow"

    def train(self, part: int) -> Path:
        return self.folder / f"train-{part:05d}.arrow"

    @property
    def held_out(self) -> Path:
        return self.folder / "held-out.arrow"


@dataclass(frozen=True)
class _Counts:
    """What became of the pairs, before they are tokenised."""

    reads: list[ReadResult]
    dedups: list[DedupResult]
    taken: list[tuple[int, ...]]
    splits: list[SplitResult]

    def summary(self, index: int) -> dict[str, Any]:
        """`read`, `bad`, `dropped`, `train` and `eval` of one source."""
        read = self.reads[index]
        dropped = dict(read.dropped)
        dropped["duplicate"] = sum(part.duplicate[index] for part in self.dedups)
        dropped["held_out"] = sum(part.shared[index] for part in self.splits)
        return {
            "read": read.read,
            "bad": read.bad,
            "dropped": {reason: count for reason, count in dropped.items() if count},
            "train": sum(part.train[index] for part in self.splits),
            "eval": sum(part[index] for part in self.taken),
        }


def _run(config: DataConfig, folder: Path, work: _Work, progress: bool) -> Manifest:
    work.make()
    for name in ("train", "eval", "tokenizer"):
        (folder / name).mkdir()
    learn = config.tokenizer.source == "train"
    if not learn:
        # First, so that a vocabulary that cannot be had is found before hours of reading.
        build_tokenizer(config.tokenizer, None, folder / "tokenizer")
    counts = _select(config, folder, work, progress)
    for index, source in enumerate(config.sources):
        _check_not_empty(source.name, **counts.summary(index))

    tables = [work.train(part) for part in range(len(counts.splits))]
    if learn:
        most = config.tokenizer.train_texts
        texts = track(
            training_texts(tables, most), "learn the vocabulary from", unit="texts",
            enabled=progress,
        )  # fmt: skip
        build_tokenizer(config.tokenizer, texts, folder / "tokenizer")

    lengths = np.zeros((len(config.sources), 2, config.max_text_tokens + 1), np.int64)
    shown = track(tables, "tokenise", total=len(tables), unit="parts", enabled=progress)
    for part, table in enumerate(shown):
        shards = [folder / _shard_path(source.name, part) for source in config.sources]
        lengths += encode_task(table, folder / "tokenizer", config.max_text_tokens, shards)
    manifest = _manifest(config, folder, counts, lengths)
    save_manifest(manifest, folder)
    return manifest


def _select(config: DataConfig, folder: Path, work: _Work, progress: bool) -> _Counts:
    """Decides for every record whether it is trained on, held out or dropped."""
    names = [source.name for source in config.sources]
    reads = [
        read_task(config, index, work.folder, work.ledger("read", index), progress)
        for index in range(len(names))
    ]
    most = max(read.kept for read in reads)
    ranges = key_ranges(max(1, -(-most // config.records_per_shard)))
    runs = [path for read in reads for path in read.runs]
    shown = track(ranges, "deduplicate", total=len(ranges), unit="parts", enabled=progress)
    dedups = [
        dedup_task(runs, keys, names, work.unique(part), work.ledger("dedup", part))
        for part, keys in enumerate(shown)
    ]
    tables = [work.unique(part) for part in range(len(ranges))]
    unique = [sum(dedup.unique[index] for dedup in dedups) for index in range(len(names))]
    wanted = [held_out_pairs(count, config.eval_pairs) for count in unique]
    evals = [folder / _eval_path(name) for name in names]
    taken = hold_out_task(tables, wanted, evals, work.held_out)
    splits = [
        split_task(
            table, taken[part], work.held_out, names, work.train(part), work.ledger("split", part)
        )
        for part, table in enumerate(tables)
    ]
    return _Counts(reads, dedups, taken, splits)


def _shard_path(source: str, part: int) -> str:
    return f"train/{source}-{part:05d}.arrayrecord"


def _eval_path(source: str) -> str:
    return f"eval/{source}.parquet"


def _check_not_empty(
    name: str, read: int, bad: dict[str, int], dropped: dict[str, int], train: int, eval: int
) -> None:
    if train == 0:
        lost = {**bad, **dropped, "held out for evaluation": eval}
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in lost.items() if count)
        raise UnusableError(
            f"source {name!r}: nothing is left to train on of {read:,} records ({reasons}); "
            f"take the source out, give it more text, or lower data.eval_pairs"
        )


def _manifest(
    config: DataConfig, folder: Path, counts: _Counts, lengths_SxTxL: np.ndarray
) -> Manifest:
    summaries = []
    for index, source in enumerate(config.sources):
        summary = counts.summary(index)
        summaries.append(
            SourceSummary(
                name=source.name,
                licence=source.licence,
                **summary,
                query_tokens=length_stats(lengths_SxTxL[index, 0]),
                positive_tokens=length_stats(lengths_SxTxL[index, 1]),
                shards=_shards(folder, source.name, [part.train[index] for part in counts.splits]),
                eval_path=_eval_path(source.name) if summary["eval"] else None,
            )
        )
    return Manifest(
        format_version=FORMAT_VERSION,
        config=prepared_config(config),
        filters={
            "normalise": NORMALISE_VERSION,
            "clean": CLEAN_VERSION,
            "dedup": DEDUP_VERSION,
            "held_out": SPLIT_VERSION,
        },
        tokenizer_sha256=file_sha256(folder / "tokenizer" / TOKENIZER_FILE),
        vocab_size=load_tokenizer(folder / "tokenizer").get_vocab_size(),
        sources=tuple(summaries),
    )


def _shards(folder: Path, source: str, records: Sequence[int]) -> tuple[ShardFile, ...]:
    named = [(_shard_path(source, part), count) for part, count in enumerate(records) if count]
    return tuple(
        ShardFile(path, count, (folder / path).stat().st_size, file_sha256(folder / path))
        for path, count in named
    )


def length_stats(count_L: np.ndarray) -> LengthStats:
    """Mean and percentiles of a histogram.

    Args:
      count_L: int64; how many texts have each length 0, 1, 2, ...
    Returns: percentile p is the least length that at least p % of the texts do not exceed.
    """
    total = int(count_L.sum())
    if total == 0:
        return LengthStats(0.0, 0, 0, 0)
    cumulative_L = np.cumsum(count_L)
    p50, p90, p99 = (int(np.argmax(cumulative_L * 100 >= p * total)) for p in (50, 90, 99))
    mean = int((count_L * np.arange(len(count_L))).sum()) / total
    return LengthStats(round(mean, 2), p50, p90, p99)
