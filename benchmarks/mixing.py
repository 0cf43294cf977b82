"""How well an epoch mixes that goes by blocks and windows, beside one that is shuffled as a whole.

The source holds the docstrings of Python's packages in the order of their modules. Two runs train
on it from the same random weights: one whose windows hold all records, which shuffles them as a
whole, and one whose windows hold 16 batches, as those of a large source do, so that a batch mixes a
few of its blocks. Both are scored by nDCG@10 on held-out pairs; for each seed, and their mean and
spread. `prepare` puts records in the order of a hash; with --by-module the shards are written again
in the order of the source, the worst that a block can hold.

    python benchmarks/mixing.py
    python benchmarks/mixing.py --by-module

The pairs are those of `benchmarks/matryoshka.py`.
"""

import dataclasses
import json
import shutil
import statistics
from dataclasses import dataclass
from pathlib import Path

import matryoshka
import numpy as np
import tyro

from jina_jax.config import RunConfig
from jina_jax.evaluate.retrieval import load_task, rank_by_embedding, score
from jina_jax.feed.order import block_records, window_records
from jina_jax.inference.embedder import Embedder
from jina_jax.prepare.run import prepare
from jina_jax.shards.array_record import ShardWriter, encode_record
from jina_jax.shards.manifest import ShardFile, load_manifest, save_manifest
from jina_jax.shards.remote import open_source
from jina_jax.shards.verify import ends_xxh3
from jina_jax.sources.read import read_source
from jina_jax.system.hashing import file_sha256
from jina_jax.text.identity import text_hash
from jina_jax.train.loop import train
from jina_jax.types import Pair

PREPARED, BY_MODULE = "prepared", "by-module"
WHOLE, BLOCKS = "whole", "blocks"
MIXED = {WHOLE: 1 << 30, BLOCKS: 1}
"""`feed.mixed_records`."""


@dataclass(frozen=True)
class Options:
    """What to run."""

    workdir: Path = Path("runs/mixing")
    """Everything is kept below it, and a killed benchmark goes on there."""
    seeds: tuple[int, ...] = (0, 1, 2)
    steps: int = 300
    by_module: bool = False
    """Whether the shards have the order of the source."""


def configured(options: Options, kind: str, seed: int) -> RunConfig:
    """A run of one of both orders."""
    of_other = matryoshka.Options(steps=options.steps)
    config = matryoshka.configured(of_other, "plain", seed)
    shards = BY_MODULE if options.by_module else PREPARED
    return dataclasses.replace(
        config,
        name=f"{kind}-{seed}",
        workdir=str(options.workdir / f"{shards}-{kind}-{seed}"),
        data_dir=str(options.workdir / shards),
        feed=dataclasses.replace(config.feed, mixed_records=MIXED[kind]),
    )


def prepare_pairs(options: Options) -> None:
    """Prepares the pairs, and writes their shards again if they are to have the source's order."""
    config, shuffled = configured(options, WHOLE, 0), options.workdir / PREPARED
    prepare(config.data, shuffled)
    if config.data_path.exists():
        return
    manifest = load_manifest(shuffled)
    (source,), (configured_source,) = manifest.sources, config.data.sources
    place = {
        text_hash(pair.query) + text_hash(pair.positive): number
        for number, pair in enumerate(read_source(configured_source))
        if isinstance(pair, Pair)
    }
    shards = open_source(shuffled, source)
    records = shards.read_run(0, len(shards))
    keys = [record.tobytes() for record in records.hashes_NSx2]
    order = sorted(range(len(keys)), key=lambda number: place[keys[number]])
    part = options.workdir / f"{BY_MODULE}.part"
    shutil.rmtree(part, ignore_errors=True)
    shutil.copytree(shuffled, part)
    for shard in source.shards:
        (part / shard.path).unlink()
    path = part / source.shards[0].path
    with ShardWriter(path) as writer:
        for number in order:
            hashes = [text.tobytes() for text in records.hashes_NSx2[number]]
            writer.write(encode_record(hashes, [records.text(number, i) for i in (0, 1)]))
    written = ShardFile(
        source.shards[0].path, len(order), path.stat().st_size, file_sha256(path), ends_xxh3(path)
    )
    summary = dataclasses.replace(source, shards=(written,))
    save_manifest(dataclasses.replace(manifest, sources=(summary,)), part)
    part.rename(config.data_path)


def measured(options: Options, kind: str, seed: int) -> float:
    """nDCG@10 in percent."""
    config = configured(options, kind, seed)
    kept = config.run_path.with_suffix(".json")
    if not kept.exists():
        train(config)
        (source,) = load_manifest(config.data_path).sources
        task = load_task("docs", config.data_path / str(source.eval_path))
        ranking = rank_by_embedding(task, Embedder.load(config.run_path), 10)
        found = 100 * float(score(task, ranking, 10)["ndcg@10"])
        kept.write_text(json.dumps(found), encoding="utf-8")
    return float(json.loads(kept.read_text(encoding="utf-8")))


def main() -> None:
    """Runs the benchmark."""
    options = tyro.cli(Options, description=__doc__)
    options.workdir.mkdir(parents=True, exist_ok=True)
    prepare_pairs(options)
    config = configured(options, BLOCKS, 0)
    records = load_manifest(config.data_path).sources[0].records
    feed = config.feed
    pairs = feed.global_batch_size // feed.num_groups
    window = feed.num_groups * window_records(feed.num_groups, pairs, 1)
    epochs = options.steps * feed.global_batch_size / records
    print(
        f"{records:,} records in blocks of {block_records(records)}; windows of {window:,} beside "
        f"the whole; {feed.num_groups} groups; {epochs:.2f} epochs"
    )
    for kind in (WHOLE, BLOCKS):
        found = [measured(options, kind, seed) for seed in options.seeds]
        each = " ".join(f"{value:.2f}" for value in found)
        spread = statistics.stdev(found) if len(found) > 1 else np.nan
        print(f"{kind:<8} nDCG@10 {each}; mean {statistics.mean(found):.2f} ± {spread:.2f}")


if __name__ == "__main__":
    main()
