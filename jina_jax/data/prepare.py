"""Preparation: from sources to a folder of shuffled shards of token ids.

folder/manifest.json        what is here and where it came from
folder/train/SOURCE-NNNNN.arrayrecord
folder/eval/SOURCE.parquet  held-out pairs, as text
folder/tokenizer/           tokenizer.json, spiece.model
folder/ledger.parquet       what was left out, and why
"""

import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from jina_jax.config import DataConfig, UserError, difference
from jina_jax.data import tasks
from jina_jax.data.ledger import LEDGER_FILE, merge_ledgers
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
from jina_jax.data.tasks import DedupResult, EncodeResult, ReadResult, UnusableError
from jina_jax.data.tokenizer import TOKENIZER_FILE, build_tokenizer, load_tokenizer
from jina_jax.data.workspace import workspace
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
    """Names of the files that the tasks hand on."""

    folder: Path

    def make(self) -> None:
        (self.folder / "ledger").mkdir(parents=True)

    def ledger(self, stage: str, number: int) -> Path:
        return self.folder / "ledger" / f"{stage}-{number:05d}.parquet"

    def ledgers(self) -> list[Path]:
        stages = ("read", "dedup", "encode")
        return [p for s in stages for p in sorted((self.folder / "ledger").glob(f"{s}-*.parquet"))]

    def unique(self, part: int) -> Path:
        return self.folder / f"unique-{part:05d}.arrow"

    @property
    def held_out(self) -> Path:
        return self.folder / "held-out.arrow"


def _run(config: DataConfig, folder: Path, work: _Work, progress: bool) -> Manifest:
    work.make()
    for name in ("train", "eval", "tokenizer"):
        (folder / name).mkdir()
    sources = range(len(config.sources))
    reads = [
        tasks.read_task(config, i, work.folder, work.ledger("read", i), progress) for i in sources
    ]
    most = max(read.kept for read in reads)
    ranges = key_ranges(max(1, -(-most // config.records_per_shard)))
    parts = range(len(ranges))
    dedups = _dedup(config, reads, ranges, work, progress)
    unique = [sum(dedup.unique[i] for dedup in dedups) for i in sources]

    tables = [work.unique(part) for part in parts]
    wanted = [tasks.held_out_pairs(n, config.eval_pairs) for n in unique]
    evals = [folder / "eval" / f"{source.name}.parquet" for source in config.sources]
    taken = tasks.hold_out_task(tables, wanted, evals, work.held_out)

    texts = None
    if config.tokenizer.source == "train":
        most_texts = config.tokenizer.train_texts
        texts = track(
            tasks.training_texts(tables, taken, work.held_out, most_texts),
            "learn the vocabulary from", unit="texts", enabled=progress,
        )  # fmt: skip
    build_tokenizer(config.tokenizer, texts, folder / "tokenizer")
    encodes = _encode(config, tables, taken, folder, work, progress)
    manifest = _manifest(config, folder, reads, dedups, taken, encodes)
    save_manifest(manifest, folder)
    return manifest


def _dedup(
    config: DataConfig,
    reads: Sequence[ReadResult],
    ranges: Sequence[tuple[int, int]],
    work: _Work,
    progress: bool,
) -> list[DedupResult]:
    runs = [path for read in reads for path in read.runs]
    names = [source.name for source in config.sources]
    shown = track(ranges, "deduplicate", total=len(ranges), unit="parts", enabled=progress)
    return [
        tasks.dedup_task(runs, keys, names, work.unique(part), work.ledger("dedup", part))
        for part, keys in enumerate(shown)
    ]


def _shard_path(source: str, part: int) -> str:
    return f"train/{source}-{part:05d}.arrayrecord"


def _encode(
    config: DataConfig,
    tables: Sequence[Path],
    taken: Sequence[tuple[int, ...]],
    folder: Path,
    work: _Work,
    progress: bool,
) -> list[EncodeResult]:
    names = [source.name for source in config.sources]
    shown = track(tables, "tokenise", total=len(tables), unit="parts", enabled=progress)
    return [
        tasks.encode_task(
            table,
            taken[part],
            work.held_out,
            names,
            folder / "tokenizer",
            config.max_text_tokens,
            [folder / _shard_path(name, part) for name in names],
            work.ledger("encode", part),
        )
        for part, table in enumerate(shown)
    ]


def _manifest(
    config: DataConfig,
    folder: Path,
    reads: Sequence[ReadResult],
    dedups: Sequence[DedupResult],
    taken: Sequence[tuple[int, ...]],
    encodes: Sequence[EncodeResult],
) -> Manifest:
    summaries = []
    for i, (source, read) in enumerate(zip(config.sources, reads, strict=True)):
        dropped = Counter(read.dropped)
        dropped["duplicate"] += sum(dedup.duplicate[i] for dedup in dedups)
        dropped["held_out"] += sum(encode.held_out[i] for encode in encodes)
        held_out = sum(part[i] for part in taken)
        lengths = sum((encode.lengths[i] for encode in encodes), np.zeros(1, np.int64))
        summary = SourceSummary(
            name=source.name,
            licence=source.licence,
            read=read.read,
            bad=read.bad,
            dropped={reason: count for reason, count in dropped.items() if count},
            train=sum(encode.records[i] for encode in encodes),
            eval=held_out,
            query_tokens=length_stats(lengths[0]),
            positive_tokens=length_stats(lengths[1]),
            shards=_shards(folder, source.name, [encode.records[i] for encode in encodes]),
            eval_path=f"eval/{source.name}.parquet" if held_out else None,
        )
        _check_not_empty(summary)
        summaries.append(summary)
    return Manifest(
        format_version=FORMAT_VERSION,
        config=prepared_config(config),
        filters={"normalise": NORMALISE_VERSION, **tasks.VERSIONS},
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


def _check_not_empty(source: SourceSummary) -> None:
    if source.train == 0:
        lost = {**source.bad, **source.dropped, "held out for evaluation": source.eval}
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in lost.items() if count)
        raise UnusableError(
            f"source {source.name!r}: nothing is left to train on of {source.read:,} records "
            f"({reasons}); take the source out, give it more text, or lower data.eval_pairs"
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
