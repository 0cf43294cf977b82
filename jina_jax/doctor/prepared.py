"""A prepared folder: manifest, shards, tokenizer, held-out pairs."""

from pathlib import Path

from jina_jax.config import RunConfig
from jina_jax.config.files import difference
from jina_jax.doctor.check import Check, Checks, guarded
from jina_jax.errors import UserError
from jina_jax.shards.array_record import ShardSet
from jina_jax.shards.manifest import Manifest, flat_config, load_manifest, prepared_config
from jina_jax.shards.verify import data_problems
from jina_jax.system.untrusted import inner_path
from jina_jax.text.tokenizer import load_tokenizer

_SHOWN = 5


def prepared_checks(folder: Path, *, full: bool, config: RunConfig | None = None) -> Checks:
    """The checks of a prepared folder.

    Args:
      folder: with manifest.json.
      full: hash every byte of the shards.
      config: of the run that is to be trained on it; None for none.
    """
    try:
        manifest = load_manifest(folder)
    except UserError as error:
        yield Check("prepared data", "failed", str(error), f"jina-jax prepare into {folder}")
        return
    yield Check(
        "prepared data", "ok",
        f"{folder}: {len(manifest.sources)} sources, {manifest.train_records:,} training records",
    )  # fmt: skip
    yield from _shards(manifest, folder, full)
    yield from guarded("tokenizer of the data", lambda: _tokenizer(manifest, folder))
    yield from _held_out(manifest, folder)
    if config is not None:
        yield from _fits(manifest, config)


def _shards(manifest: Manifest, folder: Path, full: bool) -> Checks:
    shards = [shard for source in manifest.sources for shard in source.shards]
    size_gb = sum(shard.size_bytes for shard in shards) / 1e9
    problems = list(data_problems(manifest, folder, full=full))
    for problem in problems[:_SHOWN]:
        what, _, remedy = problem.rpartition("; ")
        yield Check("shards", "failed", what, remedy)
    if len(problems) > _SHOWN:
        yield Check("shards", "failed", f"{len(problems) - _SHOWN} more files are wrong")
    if not problems:
        how = "every byte hashed" if full else "sizes and ends compared; --full hashes every byte"
        yield Check("shards", "ok", f"{len(shards)} of {size_gb:.2f} GB: {how}")
        yield from guarded("records", lambda: _records(manifest, folder))


def _records(manifest: Manifest, folder: Path) -> Checks:
    """Opens each shard, and reads its first and last record."""
    for source in manifest.sources:
        for shard in source.shards:
            records = ShardSet([folder / shard.path])
            if len(records) != shard.records:
                raise UserError(
                    f"shard {folder / shard.path} has {len(records):,} records instead of "
                    f"{shard.records:,}; restore it or prepare the data again"
                )
            records.read([0, len(records) - 1])
    yield Check("records", "ok", "the first and last of each shard are readable")


def _tokenizer(manifest: Manifest, folder: Path) -> Checks:
    size = load_tokenizer(folder / "tokenizer").get_vocab_size()
    if size == manifest.vocab_size:
        yield Check("tokenizer of the data", "ok", f"{size:,} pieces")
    else:
        yield Check(
            "tokenizer of the data", "failed",
            f"{size:,} pieces instead of {manifest.vocab_size:,}",
            "restore the folder tokenizer/ or prepare the data again",
        )  # fmt: skip


def _held_out(manifest: Manifest, folder: Path) -> Checks:
    for source in manifest.sources:
        if source.eval_path and not inner_path(folder, source.eval_path).is_file():
            yield Check(
                "held-out pairs", "failed", f"{folder / source.eval_path} is missing",
                "restore it or prepare the data again",
            )  # fmt: skip


def _fits(manifest: Manifest, config: RunConfig) -> Checks:
    """Whether the data are those that a configuration asks for, and enough for it."""
    changes = difference(flat_config(manifest.config), flat_config(prepared_config(config.data)))
    if changes:
        yield Check(
            "data and config", "failed", "prepared otherwise: " + "; ".join(changes[:_SHOWN]),
            "undo the change, or prepare into another folder (--data-dir)",
        )  # fmt: skip
    else:
        yield Check("data and config", "ok", "prepared as the configuration says")
    if manifest.vocab_size > config.model.vocab_size:
        yield Check(
            "vocabulary", "failed",
            f"{manifest.vocab_size:,} pieces, model.vocab_size={config.model.vocab_size}",
            "raise model.vocab_size to at least the number of pieces",
        )  # fmt: skip
    batch = config.feed.global_batch_size
    for source in manifest.sources:
        if source.records < batch:
            yield Check(
                f"source {source.name}", "failed",
                f"{source.records:,} training records, feed.global_batch_size={batch}",
                "lower the batch size or leave the source out",
            )  # fmt: skip
