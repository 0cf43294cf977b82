"""Checks of a configuration that types cannot express."""

import dataclasses
import math
import re
from collections.abc import Iterator
from typing import Any

from jina_jax.config.alarms import alarm_problems
from jina_jax.config.evaluate import evaluate_problems
from jina_jax.config.export import export_problems
from jina_jax.config.faults import fault_problems
from jina_jax.config.filters import filter_problems
from jina_jax.config.loss import loss_problems
from jina_jax.config.mine import mine_problems
from jina_jax.config.mixture import mixture_problems
from jina_jax.config.negation import negation_problems
from jina_jax.config.run import RunConfig, SourceConfig
from jina_jax.errors import UserError, multiples_near
from jina_jax.system.credentials import credential_in


def _positive(section: str, config: Any, *names: str) -> Iterator[str]:
    for name in names:
        if getattr(config, name) <= 0:
            yield f"{section}.{name}={getattr(config, name)} must be above 0"


def _source_problems(which: str, source: SourceConfig) -> Iterator[str]:
    if source.kind in ("tfds", "hf"):
        if not source.dataset:
            yield f"{which} is of kind {source.kind} and names no dataset"
        if not source.split:
            yield f"{which} has an empty split; data sets mostly have train"
    elif source.kind != "pydocs" and not source.paths:
        yield f"{which} has no paths"
    if source.kind == "text" and not source.extractor:
        yield f"{which} is of kind text: its lines need an extractor"
    if source.extractor and source.kind in ("csv", "tsv", "pydocs"):
        yield f"{which}: an extractor reads no {source.kind}; leave it empty"


def _data_problems(config: RunConfig) -> Iterator[str]:
    for what, name in [("name", config.name)] + [
        (f"data.sources.{i}.name", s.name) for i, s in enumerate(config.data.sources)
    ]:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", name):
            yield f"{what}={name!r} may hold only ASCII letters, digits, '_', '-' and '.'"
    names = [s.name for s in config.data.sources]
    for name in sorted({n for n in names if names.count(n) > 1}):
        yield f"two sources are named {name!r}: names must differ"
    for name in config.data.source_priority:
        if name not in names:
            yield f"data.source_priority: no source is named {name!r}; they are {', '.join(names)}"
    for i, source in enumerate(config.data.sources):
        yield from _source_problems(f"data.sources.{i} ({source.name})", source)
        for field in ("weight", "max_epochs"):
            if getattr(source, field) is not None:
                yield from _positive(f"data.sources.{i}", source, field)
    yield from mixture_problems(config.mixture, {s.name: s.weight for s in config.data.sources})
    if not 0 <= config.data.max_bad_share <= 1:
        yield f"data.max_bad_share={config.data.max_bad_share} must lie in 0..1"
    yield from _positive(
        "data", config.data, "max_text_tokens", "records_per_shard", "negatives_per_record"
    )
    if config.data.max_text_tokens > 65535:
        yield f"data.max_text_tokens={config.data.max_text_tokens} must not exceed 65535"
    if config.data.negatives_per_record > 100:
        yield f"data.negatives_per_record={config.data.negatives_per_record} must not exceed 100"
    if config.data.engine.workers < 0:
        yield f"data.engine.workers={config.data.engine.workers} must not be negative"
    if config.data.eval_pairs < 0:
        yield f"data.eval_pairs={config.data.eval_pairs} must not be negative"
    yield from filter_problems(config.data.language, config.data.decontamination)
    near_duplicates, consistency = config.data.near_duplicates, config.data.consistency
    yield from _positive("data.near_duplicates", near_duplicates, "shingle_words", "permutations")
    yield from _positive(
        "data.consistency", consistency, "top_k", "sample_size", "query_block", "sample_block"
    )
    if not 0 < near_duplicates.threshold <= 1:
        yield (
            f"data.near_duplicates.threshold={near_duplicates.threshold} must lie above 0 and at "
            f"most at 1"
        )
    if consistency.tie_tolerance < 0:
        yield f"data.consistency.tie_tolerance={consistency.tie_tolerance} must not be negative"


def _feed_problems(config: RunConfig) -> Iterator[str]:
    feed = config.feed
    yield from _positive(
        "feed", feed, "global_batch_size", "query_tokens", "positive_tokens", "row_tokens",
        "texts_per_row", "rows_multiple", "prefetch_batches",
    )  # fmt: skip
    if feed.global_batch_size < 2:
        yield "feed.global_batch_size=1 leaves no in-batch negatives; use 2 or more"
    longest = max(feed.query_tokens, feed.positive_tokens)
    if longest > feed.row_tokens:
        yield f"a text of {longest} tokens does not fit feed.row_tokens={feed.row_tokens}"
    if longest > config.data.max_text_tokens:
        yield (
            f"feed wants texts of {longest} tokens but data.max_text_tokens="
            f"{config.data.max_text_tokens} are stored; raise it or lower the feed's"
        )


def _chunk_problems(rows_multiple: int, grad_cache_rows: int) -> Iterator[str]:
    if grad_cache_rows < 0:
        yield f"train.grad_cache_rows={grad_cache_rows} must not be negative"
    elif grad_cache_rows and rows_multiple % grad_cache_rows:
        yield (
            f"feed.rows_multiple={rows_multiple} does not divide by train.grad_cache_rows="
            f"{grad_cache_rows}; use {multiples_near(rows_multiple, grad_cache_rows)}"
        )


def _training_problems(config: RunConfig) -> Iterator[str]:
    model, optim = config.model, config.optim
    yield from _positive(
        "model", model, "vocab_size", "d_model", "d_kv", "d_ff", "num_layers", "num_heads"
    )
    pieces = config.data.tokenizer.vocab_size
    learns = bool(config.data.sources) and config.data.tokenizer.source == "train"
    if learns and pieces > model.vocab_size > 0:
        yield (
            f"data.tokenizer.vocab_size={pieces} pieces are more than model.vocab_size="
            f"{model.vocab_size}; raise model.vocab_size to {-(-pieces // 64) * 64}, or learn fewer"
        )
    yield from _positive("mesh", config.mesh, "fsdp", "tensor")
    if config.mesh.data != -1:
        yield from _positive("mesh", config.mesh, "data")
    if not 0 <= model.dropout_rate < 1:
        yield f"model.dropout_rate={model.dropout_rate} must lie in 0..1"
    if config.train.attention == "cudnn":
        yield from _cudnn_problems(config)
    yield from loss_problems(
        config.loss, model.d_model, [s.name for s in config.data.sources if not s.negative_field]
    )
    yield from _positive("optim", optim, "learning_rate", "clip_norm")
    if optim.optimizer == "adafactor" and optim.moment_dtype != "float32":
        yield "optim.moment_dtype=bfloat16: adafactor keeps no first moment; leave it at float32"
    yield from _positive(
        "train", config.train, "num_steps", "log_every_steps", "checkpoint_every_steps",
        "keep_checkpoints",
    )  # fmt: skip
    if config.train.profile_steps < 0:
        yield f"train.profile_steps={config.train.profile_steps} must not be negative"
    yield from _chunk_problems(config.feed.rows_multiple, config.train.grad_cache_rows)
    if optim.warmup_steps < 0 or optim.warmup_steps > config.train.num_steps:
        yield (
            f"optim.warmup_steps={optim.warmup_steps} must lie in 0..train.num_steps="
            f"{config.train.num_steps}"
        )
    yield from alarm_problems(config.alarms)
    yield from fault_problems(config.faults)
    yield from evaluate_problems(config.evaluate)
    sources = {s.name for s in config.data.sources}
    for kind in ("retrieval", "negation"):
        for number, one in enumerate(getattr(config.evaluate, kind)):
            if one.name in sources:
                yield (
                    f"evaluate.{kind}.{number} ({one.name}): a source has that name, and its "
                    f"held-out records are a task too; choose another"
                )
    yield from mine_problems(config.mine)
    yield from negation_problems(config.negation)
    yield from export_problems(config.export)


def _cudnn_problems(config: RunConfig) -> Iterator[str]:
    model, why = config.model, "train.attention=cudnn"
    if model.compute_dtype != "bfloat16":
        yield f"{why} computes in bfloat16: set model.compute_dtype to it, or use xla"
    if model.dropout_rate > 0:
        yield f"{why} has no dropout: set model.dropout_rate to 0, or use xla"
    if model.d_kv % 8 or model.d_kv > 128:
        yield f"{why} takes heads of 8, 16, ... 128, and model.d_kv={model.d_kv}; use xla"
    if config.feed.row_tokens % 2:
        yield f"{why} takes rows of an even length, and feed.row_tokens={config.feed.row_tokens}"


def _distributed_problems(config: RunConfig) -> Iterator[str]:
    given = config.distributed
    yield from _positive("distributed", given, "timeout_s")
    if given.coordinator in ("", "auto"):
        if given.processes is not None or given.process_id is not None:
            yield (
                "distributed.processes and process_id belong to a distributed.coordinator=HOST:PORT"
            )
        return
    if not re.fullmatch(r".+:\d+", given.coordinator):
        yield f"distributed.coordinator={given.coordinator!r} is neither HOST:PORT nor auto"
    if given.processes is None or given.process_id is None:
        yield "distributed.coordinator=HOST:PORT needs distributed.processes and process_id"
    elif not 0 <= given.process_id < given.processes:
        yield (
            f"distributed.process_id={given.process_id} must lie in 0..{given.processes - 1}, "
            f"below distributed.processes"
        )


def _folder_problems(config: RunConfig) -> Iterator[str]:
    for name in ("workdir", "cache_dir"):
        if "://" in getattr(config, name):
            yield (
                f"{name}={getattr(config, name)!r} is a URL: give a folder, local or, for workdir, "
                f"mounted on all machines"
            )


def _number_problems(config: Any, prefix: str = "") -> Iterator[str]:
    """NaN is neither too small nor too large, so no other check would find it."""
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            yield from _number_problems(value, f"{prefix}{field.name}.")
        elif isinstance(value, float) and math.isnan(value):
            yield f"{prefix}{field.name} is NaN; give a number"


def check_credentials(config: Any) -> None:
    """Refuses a configuration with a password, key or token in it, without repeating it.

    Args:
      config: a dataclass that may hold others.
    Raises: UserError naming the fields.
    """
    found = [f"{path} holds {kind}" for path, kind in _credentials(config)]
    if found:
        raise UserError(
            "the configuration is printed, and saved with every checkpoint and model card; "
            "credentials belong into the environment (HF_TOKEN, AWS_ACCESS_KEY_ID, "
            "GOOGLE_APPLICATION_CREDENTIALS, ...) or the files of their libraries:\n  "
            + "\n  ".join(found)
        )


def _credentials(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    if dataclasses.is_dataclass(value):
        for field in dataclasses.fields(value):
            yield from _credentials(getattr(value, field.name), f"{path}.{field.name}".lstrip("."))
    elif isinstance(value, tuple | list):
        for number, item in enumerate(value):
            yield from _credentials(item, f"{path}.{number}")
    elif isinstance(value, str) and (kind := credential_in(value)):
        yield path, kind


def validate(config: RunConfig) -> None:
    """Checks what types cannot say.

    Raises: UserError listing every field that is wrong.
    """
    check_credentials(config)
    parts = (
        _number_problems, _folder_problems, _data_problems, _feed_problems, _training_problems,
        _distributed_problems,
    )  # fmt: skip
    problems = [problem for part in parts for problem in part(config)]
    if problems:
        raise UserError("the configuration cannot be used:\n  " + "\n  ".join(problems))
