"""What a preparation will take: tasks, bytes, hours and cost, told before it begins.

A sample of every source, a few ten MB in all, is prepared by the same functions in a folder of its
own, and what each stage took and wrote is scaled up to the size of the sources. These are not read:
the files' sizes, the row counts of Parquet and of data sets, and the length of the sampled records
tell how many records there are. What cannot be known so is said with the result: duplicates far
apart are rarer in a sample, and a model's speed is that of this machine unless it is given.
"""

import dataclasses
import gzip
import itertools
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import zstandard

from jina_jax.config import DataConfig, EngineConfig, SourceConfig
from jina_jax.config.forecast import ForecastOptions
from jina_jax.errors import UserError
from jina_jax.prepare.exchange import BUCKETS
from jina_jax.prepare.ingest import LARGEST_BLOCK_BYTES, plan_blocks
from jina_jax.prepare.ledger import FILE_ROWS
from jina_jax.prepare.pipeline import partition_count
from jina_jax.prepare.run import prepare
from jina_jax.prepare.scoring import TASK_ROWS
from jina_jax.shards.manifest import Manifest
from jina_jax.sources.datasets import data_set_extent
from jina_jax.sources.kinds import file_kind
from jina_jax.sources.lines import compression_suffix, unpacked
from jina_jax.sources.pydocs import read_pydocs
from jina_jax.sources.read import matched_files, read_source, with_fields
from jina_jax.sources.tables import count_rows
from jina_jax.system.files import file_state, find_files
from jina_jax.system.terminal import table
from jina_jax.types import BadRecord, Pair

_READ = ("read", "hash the input")
"""Stages that read the input; others read what tasks before them wrote."""
_SCORED_TEXTS = 256
_LEAST_BYTES = 1 << 16
"""Of a source's sample."""


@dataclass(frozen=True)
class StageForecast:
    """One stage at full size."""

    name: str
    tasks: int
    read_bytes: float
    written_bytes: float
    core_s: float
    """Seconds of one core; of a stage with a model of all accelerators of a machine."""
    has_model: bool = False


@dataclass(frozen=True)
class Forecast:
    """A preparation at full size."""

    options: ForecastOptions
    cores: int
    """Of each machine."""
    records: float
    trained: float
    stages: tuple[StageForecast, ...]
    notes: tuple[str, ...] = ()
    """What is not in it."""

    @property
    def hours(self) -> float:
        """On all machines."""
        return sum(map(self.stage_hours, self.stages))

    def stage_hours(self, stage: StageForecast) -> float:
        """Of one stage: no more tasks run at a time than it has."""
        each = 1 if stage.has_model else self.cores
        at_once = min(self.options.machines * each, stage.tasks)
        return stage.core_s / at_once / 3600

    @property
    def written_bytes(self) -> float:
        """By all stages, into the work store."""
        return sum(stage.written_bytes for stage in self.stages)

    def __str__(self) -> str:
        rows = [
            [
                stage.name, f"{stage.tasks:,}", _size(stage.read_bytes),
                _size(stage.written_bytes), f"{stage.core_s / 3600:,.2f}",
                f"{self.stage_hours(stage):,.3f}",
            ]
            for stage in self.stages
        ]  # fmt: skip
        total = [
            "all", f"{sum(stage.tasks for stage in self.stages):,}",
            _size(sum(stage.read_bytes for stage in self.stages)), _size(self.written_bytes),
            f"{sum(stage.core_s for stage in self.stages) / 3600:,.2f}", f"{self.hours:,.3f}",
        ]  # fmt: skip
        header = ["stage", "tasks", "read", "written", "core hours", "hours"]
        machines = self.options.machines
        lines = [
            table(header, [*rows, total]),
            f"{self.records:,.0f} records, of which {self.trained:,.0f} are trained on; "
            f"{self.hours:,.2f} hours on {machines} machine{'s' * (machines > 1)} of {self.cores} "
            f"cores as fast as this one's"
            + (" (a model's core hours are of a machine)" * any(s.has_model for s in self.stages)),
        ]
        if self.options.price_per_machine_hour:
            cost = self.hours * machines * self.options.price_per_machine_hour
            price = self.options.price_per_machine_hour
            lines.append(f"cost {cost:,.2f} at {price:g} a machine-hour")
        lines += self.notes
        lines.append(
            "A sample has fewer duplicates than the whole: later stages may take less. Bytes of a "
            "store at a URL are fetched and put besides."
        )
        return "\n".join(lines)


def _size(size_bytes: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if size_bytes < 1000:
            return f"{size_bytes:.3g} {unit}"
        size_bytes /= 1000
    return f"{size_bytes:,.3g} TB"


@dataclass(frozen=True)
class _Sampled:
    """A source of a few records, and how many times as many the whole has."""

    source: SourceConfig
    times: float


def forecast(config: DataConfig, options: ForecastOptions) -> Forecast:
    """Measures a sample of the sources, and scales it up.

    Args:
      config: of the preparation.
      options: for what to plan.
    Raises: UserError when a source or model is not at hand, and no size or speed of it was given.
    """
    if not config.sources:
        raise UserError("data.sources is empty: name at least one source of pairs")
    with tempfile.TemporaryDirectory(prefix="prepare-plan-") as temporary:
        folder = Path(temporary)
        notes: tuple[str, ...] = ()
        if options.pairs:
            sampled = _made_up(config.sources, options, folder)
            config, notes = _without_missing_sets(config)
        else:
            sampled = _samples(config.sources, options, folder)
        rates = _rates(config, options, sampled)
        seen: list[_Seen] = []
        manifest = _prepared(config, sampled, folder, seen)
        records = sum(s.read * one.times for s, one in zip(manifest.sources, sampled, strict=True))
        times = records / _read(manifest)
        trained = records * (options.kept or manifest.train_records / _read(manifest))
        blocks = 0 if options.pairs else len(plan_blocks(tuple(map(with_fields, config.sources))))
        size = _Size(times, records, trained, blocks)
        stages = [*_scaled(config, seen, size, manifest)]
        stages += _of_models(config, options, size, sampled, rates)
    return Forecast(
        options, options.cores or os.cpu_count() or 1, records, trained, tuple(stages), notes
    )


def _without_missing_sets(config: DataConfig) -> tuple[DataConfig, tuple[str, ...]]:
    """Without the evaluation sets whose files are not at hand, and a line that says so."""
    sets = config.decontamination.sets
    there = tuple(one for one in sets if all(find_files(path) for path in one.paths))
    found = dataclasses.replace(config.decontamination, sets=there)
    missing = ", ".join(one.name for one in sets if one not in there)
    note = (f"without data.decontamination: {missing} is not at hand",) if missing else ()
    return dataclasses.replace(config, decontamination=found), note


def _read(manifest: Manifest) -> int:
    return sum(source.read for source in manifest.sources)


@dataclass(frozen=True)
class _Size:
    """Of the whole."""

    times: float
    """The sample's."""
    records: float
    trained: float
    blocks: int
    """Of the input; 0 where it is not at hand."""


@dataclass(frozen=True)
class _Seen:
    """A stage of the sample."""

    what: str
    took_s: float
    processors_s: float
    written_bytes: int


def _prepared(
    config: DataConfig, sampled: Sequence[_Sampled], folder: Path, seen: list[_Seen]
) -> Manifest:
    """Prepares the sample, without filters that have a model, and notes what each stage took."""
    work = folder / "out.work"
    before = [0, time.process_time()]

    def watch(what: str, _: int, took_s: float) -> None:
        written = sum(path.stat().st_size for path in work.rglob("*") if path.is_file())
        now_s = time.process_time()
        seen.append(_Seen(what, took_s, now_s - before[1], int(written - before[0])))
        before[:] = written, now_s

    plain = dataclasses.replace(
        config,
        sources=tuple(one.source for one in sampled),
        engine=EngineConfig("local", 1),
        # Of the sample as few as of the whole.
        eval_pairs=min(config.eval_pairs, 10),
        max_bad_share=1.0,
        consistency=dataclasses.replace(config.consistency, enabled=False),
        margin=dataclasses.replace(config.margin, enabled=False),
        guide=dataclasses.replace(config.guide, model=""),
    )
    return prepare(plain, folder / "out", progress=False, watch=watch)


def _written(seen: Sequence[_Seen], what: str) -> int:
    return next((stage.written_bytes for stage in seen if stage.what == what), 0)


def _scaled(
    config: DataConfig,
    seen: Sequence[_Seen],
    size: _Size,
    manifest: Manifest,
) -> Iterator[StageForecast]:
    input_bytes = sum(file.size_bytes for source in manifest.sources for file in source.inputs)
    # One table a partition is what stages after deduplication read.
    table_bytes = _written(seen, "deduplicate")
    run_bytes = _written(seen, "read")
    lost = size.records - size.trained
    # Where the sources are not at hand, of the largest size.
    blocks = size.blocks or max(int(input_bytes * size.times / LARGEST_BLOCK_BYTES), 1)
    largest = max(source.read for source in manifest.sources) * size.times
    partitions = partition_count(largest, config.records_per_shard, table_bytes * size.times)
    for stage in seen:
        what, times, written = stage.what, size.times, stage.written_bytes
        read_bytes: float = table_bytes
        count = partitions
        if what in _READ:
            read_bytes, count = input_bytes, blocks
        elif what == "deduplicate":
            read_bytes = run_bytes
        elif what == "tokenise":
            times *= size.trained / max(size.records, 1) * _read(manifest) / manifest.train_records
            count = max(int(size.trained / config.records_per_shard), len(manifest.sources))
        elif what == "ledger":
            read_bytes, count = written, max(int(lost / FILE_ROWS), 1)
        elif what == "index":
            # Of every run a place for each bucket.
            written, read_bytes, times = (BUCKETS + 1) * 16 * blocks, run_bytes, 1
            count = 1
        elif what == "hold out":
            # Of each source so many pairs, however many it has.
            times, count, read_bytes = config.eval_pairs / 10, 1, written
        elif what == "vocabulary":
            # It is learned from so many texts at most.
            texts = 2 * manifest.train_records
            times, count = min(times, max(config.tokenizer.train_texts / max(texts, 1), 1)), 1
        # Of many tasks each has one processor, and here the one had all.
        core_s = stage.took_s if count == 1 else max(stage.took_s, stage.processors_s)
        yield StageForecast(what, count, read_bytes * times, written * times, core_s * times)


def _rates(
    config: DataConfig, options: ForecastOptions, sampled: Sequence[_Sampled]
) -> dict[str, float]:
    """Records a second of each filter that has a model, and of the guide."""
    models = {
        "consistency": config.consistency.model if config.consistency.enabled else "",
        "margin": config.margin.model if config.margin.enabled else "",
        "guide": config.guide.model,
    }
    rates = {}
    for name in (name for name, model in models.items() if model):
        try:
            rates[name] = options.scored_per_s or _scored_per_s(name, config, sampled)
        except UserError as error:
            hint = "To plan without the model at hand give --scored-per-s"
            raise UserError(f"{error}. {hint}") from error
    return rates


def _of_models(
    config: DataConfig, options: ForecastOptions, size: _Size, sampled: Sequence[_Sampled],
    rates: Mapping[str, float],
) -> Iterator[StageForecast]:  # fmt: skip
    """Filters with a model and the guide."""
    for name, per_s in rates.items():
        is_of = [bool(one.source.negative_field) == (name == "margin") for one in sampled]
        share = 1.0 if name == "guide" else sum(is_of) / len(is_of)
        records = share * (size.trained if name == "guide" else size.records)
        learnt = 0.0
        if name == "consistency":
            # Of the sample one of the two texts.
            learnt = min(config.consistency.sample_size * sum(is_of), records) / 2
        if records:
            # A score with what finds it and once in order; a guide's bytes.
            written = records * (64 if name != "guide" else 2 * (config.guide.dims or 384))
            tasks = max(int(records / TASK_ROWS), 1)
            yield StageForecast(
                f"{name} (model)", tasks, records * options.bytes_per_pair, written,
                (records + learnt) / per_s, has_model=True,
            )  # fmt: skip


def _scored_per_s(name: str, config: DataConfig, sampled: Sequence[_Sampled]) -> float:
    """Records that this machine scores in a second, compilation not counted."""
    from jina_jax.inference.embedder import Embedder
    from jina_jax.prepare.filters.margin import CrossEncoder, triplet_logits

    texts = [_texts(record) for record in _records(sampled)]
    if name == "margin":
        triplets = [(text[0], text[1], text[-1]) for text in texts]
        cross = CrossEncoder(config.margin.model)
        return len(texts) / _timed(lambda: triplet_logits(iter(triplets), cross))
    encoder = Embedder.load(config.guide.model if name == "guide" else config.consistency.model)
    both = [text for pair in texts for text in pair[:2]]
    took_s = _timed(lambda: encoder.encode(both)) / len(texts)
    if name == "consistency":
        took_s += _ranking_s(config, encoder)
    return 1 / took_s


def _ranking_s(config: DataConfig, encoder: Any) -> float:
    """Seconds to compare a pair with the whole sample."""
    from jina_jax.prepare.filters.consistency import Ranker, Sample

    chance, most = np.random.default_rng(0), config.consistency.sample_size
    rows = min(most, 1 << 15)
    z_MD = chance.standard_normal((rows, encoder.dimensions), np.float32)
    z_MD /= np.linalg.norm(z_MD, axis=1, keepdims=True)
    hash_Mx2 = chance.integers(0, 1 << 63, (rows, 2)).astype(np.uint64)
    ranker = Ranker(Sample(z_MD, hash_Mx2), config.consistency, encoder.mesh)
    some = slice(0, min(rows, 1024))
    took_s = _timed(lambda: ranker.ranks(z_MD[some], z_MD[some], hash_Mx2[some]))
    return took_s / (some.stop * rows) * most


def _timed(work: Callable[[], object]) -> float:
    """Seconds of the second call: the first compiles."""
    work()
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def _records(sampled: Sequence[_Sampled]) -> list[object]:
    found: list[object] = []
    for one in sampled:
        good = (r for r in read_source(one.source) if not isinstance(r, BadRecord))
        found += itertools.islice(good, -(-_SCORED_TEXTS // len(sampled)))
    return found


def _samples(
    sources: Sequence[SourceConfig], options: ForecastOptions, folder: Path
) -> list[_Sampled]:
    """Of every source the same share, in its own format."""
    named = []
    for source in sources:
        try:
            named.append(with_fields(source))
        except UserError as error:
            raise UserError(
                f"{error}. To plan without the sources at hand give --pairs and --bytes-per-pair"
            ) from error
    sizes = [_source_bytes(source) for source in named]
    share = options.sample_mb * 1e6 / max(sum(sizes), 1)
    found = []
    for number, (source, size_bytes) in enumerate(zip(named, sizes, strict=True)):
        part = folder / f"sample-{number:05d}"
        part.mkdir()
        found.append(_sample(source, size_bytes, max(share * size_bytes, _LEAST_BYTES), part))
    return found


def _source_bytes(source: SourceConfig) -> int:
    if source.kind in ("hf", "tfds"):
        return data_set_extent(source).size_bytes
    return sum(file_state(path).size_bytes for path in matched_files(source))


def _sample(source: SourceConfig, size_bytes: int, wanted: float, folder: Path) -> _Sampled:
    files = matched_files(source)
    kinds = {file_kind(path, source.kind) for path in files}
    if wanted >= size_bytes > 0:
        return _Sampled(source, 1.0)
    if source.limit is None and kinds and kinds <= {"jsonl", "csv", "tsv", "text"}:
        return _beginnings(source, files, size_bytes, wanted, folder)
    # The first records, at the speed of such a source.
    records = list(itertools.islice(read_source(source), 500))
    mean = sum(len("".join(_texts(r))) + 30 for r in records) / len(records)
    total = size_bytes / mean
    a_row = len(records) / max(r.origin.row for r in records)
    if source.kind in ("hf", "tfds"):
        extent = data_set_extent(source)
        total = extent.units * a_row
        if not extent.size_bytes:
            raise UserError(
                f"source {source.name!r}: how much {source.dataset} holds is not known before it "
                f"is read; give --pairs and --bytes-per-pair"
            )
    elif kinds == {"parquet"}:
        total = sum(map(count_rows, files)) * a_row
    if source.limit is not None:
        total = min(total, source.limit)
    limit = min(max(int(wanted / max(size_bytes, 1) * total), 100), max(int(total), 1))
    return _Sampled(dataclasses.replace(source, limit=limit), max(total / limit, 1))


def _texts(record: object) -> tuple[str, ...]:
    return () if isinstance(record, BadRecord) else getattr(record, "texts", ())


def _beginnings(
    source: SourceConfig, files: Sequence[str], size_bytes: int, wanted: float, folder: Path
) -> _Sampled:
    """Whole lines from the start of some of the files, packed as these are."""
    chosen = [files[i] for i in sorted({0, len(files) // 3, 2 * len(files) // 3, len(files) - 1})]
    paths, taken_bytes = [], 0
    for number, path in enumerate(chosen):
        packed = compression_suffix(path)
        ending = "".join(Path(path).suffixes[-2:]) if packed else Path(path).suffix
        most = wanted / len(chosen) * (4 if packed else 1)
        held = b""
        for chunk in unpacked(path):
            held += chunk
            if len(held) >= most:
                break
        data = held[: held.rfind(b"\n", 0, int(max(most, 1))) + 1] or held
        if packed == ".gz":
            data = gzip.compress(data, 6)
        elif packed:
            data = zstandard.ZstdCompressor().compress(data)
        to = folder / f"{number}{ending}"
        to.write_bytes(data)
        taken_bytes += len(data)
        paths.append(str(to))
    return _Sampled(
        dataclasses.replace(source, paths=tuple(paths)), max(size_bytes / max(taken_bytes, 1), 1)
    )


def _made_up(
    sources: Sequence[SourceConfig], options: ForecastOptions, folder: Path
) -> list[_Sampled]:
    """Sentences of docstrings, put together by chance; every source has as many."""
    pairs = itertools.islice(read_pydocs(("numpy",)), 2000)
    sentences = [r.positive for r in pairs if isinstance(r, Pair)]
    chance = np.random.default_rng(0)
    each = max(int(options.sample_mb * 1e6 / options.bytes_per_pair / len(sources)), 20)
    found = []
    for number, source in enumerate(sources):
        path = folder / f"{number}.jsonl"
        with path.open("w", encoding="utf-8") as file:
            for row in range(each):
                text = f"{number} {row}"
                while len(text) < options.bytes_per_pair:
                    text += " " + sentences[int(chance.integers(len(sentences)))]
                text = text[: int(options.bytes_per_pair)]
                cut = len(text) // 6
                record = {"query": text[:cut], "positive": text[cut:]}
                if source.negative_field:
                    record = record | {"negative": text[cut:][::-1]}
                file.write(json.dumps(record) + "\n")
        negative = "negative" if source.negative_field else ""
        plain = SourceConfig(
            source.name, paths=(str(path),), query_field="query", positive_field="positive",
            negative_field=negative,
        )  # fmt: skip
        found.append(_Sampled(plain, options.pairs / len(sources) / each))
    return found
