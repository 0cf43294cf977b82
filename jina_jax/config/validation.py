"""Checks of a configuration: bounds of fields, and what must hold between them."""

import dataclasses
import math
import re
from collections.abc import Iterator
from typing import Any

from jina_jax.config.evaluate import evaluate_problems
from jina_jax.config.export import export_problems
from jina_jax.config.fields import field_problems, leaves
from jina_jax.config.filters import filter_problems, guide_problems
from jina_jax.config.lora import lora_problems
from jina_jax.config.loss import loss_problems
from jina_jax.config.mine import mine_problems
from jina_jax.config.model import ModelConfig
from jina_jax.config.negation import negation_problems
from jina_jax.config.run import DistributedConfig, OptimConfig, RunConfig
from jina_jax.config.source import SourceConfig, mixture_problems
from jina_jax.errors import UserError, multiples_near
from jina_jax.system.credentials import credential_in
from jina_jax.system.files import is_url


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
    if source.extractor and source.kind == "pydocs":
        yield f"{which}: an extractor reads no {source.kind}; leave it empty"
    for name in ("label_field", "score_field"):
        if getattr(source, name) and (source.extractor or source.kind == "pydocs"):
            reader = source.extractor or source.kind
            yield f"{which}: {reader} reads texts alone; leave {name} empty, or name the fields"
    if source.score_field and source.negative_field:
        yield (
            f"{which}: scored pairs (score_field={source.score_field!r}) have no negatives; leave "
            f"negative_field={source.negative_field!r} or score_field empty"
        )
    if source.score_field and not source.in_batch:
        yield (
            f"{which}: scored pairs have no in-batch negatives to do without; leave in_batch at "
            f"True, or score_field empty"
        )


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
    yield from mixture_problems(config.mixture, {s.name: s.weight for s in config.data.sources})
    yield from filter_problems(config.data.language, config.data.decontamination)
    yield from guide_problems(config.data.guide)
    prompts = config.data.prompts
    names = [name for name, _ in prompts.named]
    if len(set(names)) < len(names):
        yield f"data.prompts.named gives a name twice: {', '.join(names)}"
    if prompts.default and prompts.default not in names:
        yield (
            f"data.prompts.default={prompts.default!r} is none of data.prompts.named: "
            f"{', '.join(names) or 'there are none'}"
        )


def _feed_problems(config: RunConfig) -> Iterator[str]:
    feed = config.feed
    if feed.global_batch_size == 1:
        yield "feed.global_batch_size=1 leaves no in-batch negatives; use 2 or more"
    longest = max(feed.query_tokens, feed.positive_tokens)
    if longest > feed.row_tokens:
        yield f"a text of {longest} tokens does not fit feed.row_tokens={feed.row_tokens}"
    positions = config.model.max_positions
    for name in ("query_tokens", "positive_tokens"):
        if positions is not None and getattr(feed, name) > positions:
            yield (
                f"feed.{name}={getattr(feed, name)} is more than the {positions} positions that "
                f"the model has; lower it"
            )
    if longest > config.data.max_text_tokens:
        yield (
            f"feed wants texts of {longest} tokens but data.max_text_tokens="
            f"{config.data.max_text_tokens} are stored; raise it or lower the feed's"
        )


def _training_problems(config: RunConfig) -> Iterator[str]:
    model, optim = config.model, config.optim
    pieces = config.data.tokenizer.vocab_size
    learns = bool(config.data.sources) and config.data.tokenizer.source == "train"
    if learns and pieces > model.vocab_size > 0:
        yield (
            f"data.tokenizer.vocab_size={pieces} pieces are more than model.vocab_size="
            f"{model.vocab_size}; raise model.vocab_size to {-(-pieces // 64) * 64}, or learn fewer"
        )
    if config.mesh.data < 1 and config.mesh.data != -1:
        yield f"mesh.data={config.mesh.data} must be above 0, or -1 for all devices that are left"
    if config.train.attention == "cudnn":
        yield from _cudnn_problems(config)
    if model.residual_dtype == "bfloat16" and model.compute_dtype != "bfloat16":
        yield "model.residual_dtype=bfloat16 wants model.compute_dtype=bfloat16 too"
    yield from loss_problems(
        config.loss,
        config.pooling.dimensions(model),
        [
            s.name
            for s in config.data.sources
            if not (s.negative_field or s.score_field or s.finds_negatives)
        ],
    )
    yield from _loss_of_data_problems(config)
    yield from _optim_problems(optim)
    yield from lora_problems(config.lora, model.matrices, config.train.initial_weights)
    if config.feed.global_batch_size % config.feed.num_groups:
        yield (
            f"feed.global_batch_size={config.feed.global_batch_size} does not divide by "
            f"feed.groups={config.feed.groups}; use "
            f"{multiples_near(config.feed.global_batch_size, config.feed.groups)}"
        )
    rows, chunk = config.feed.rows_multiple, config.train.grad_cache_rows
    if chunk and rows % chunk:
        yield (
            f"feed.rows_multiple={rows} does not divide by train.grad_cache_rows={chunk}; "
            f"use {multiples_near(rows, chunk)}"
        )
    if optim.warmup(config.train.num_steps) > config.train.num_steps:
        yield (
            f"optim.warmup_steps={optim.warmup_steps} must lie in 0..train.num_steps="
            f"{config.train.num_steps}"
        )
    yield from evaluate_problems(config.evaluate)
    scored = {s.name for s in config.data.sources if s.score_field}
    others = {s.name for s in config.data.sources} - scored
    for kind, held_out in (("retrieval", others), ("negation", others), ("sts", scored)):
        for number, one in enumerate(getattr(config.evaluate, kind)):
            if one.name in held_out:
                yield (
                    f"evaluate.{kind}.{number} ({one.name}): a source has that name, and its "
                    f"held-out records are a task too; choose another"
                )
    yield from mine_problems(config.mine)
    yield from negation_problems(config.negation)
    yield from export_problems(config.export)
    if config.export.adapter and not config.lora.rank:
        yield "export.adapter and lora.rank=0: without a rank there is no adapter; leave it out"


def _optim_problems(optim: OptimConfig) -> Iterator[str]:
    if optim.optimizer == "adafactor" and optim.moment_dtype != "float32":
        yield "optim.moment_dtype=bfloat16: adafactor keeps no first moment; leave it at float32"
    if optim.optimizer == "muon":
        return
    for name in ("muon_momentum", "muon_scale", "adam_learning_rate"):
        value = getattr(optim, name)
        if value != getattr(OptimConfig, name):
            yield (
                f"optim.{name}={value} is of optim.optimizer=muon, and it is {optim.optimizer}; "
                f"leave it out, or take muon"
            )


def _loss_of_data_problems(config: RunConfig) -> Iterator[str]:
    """Losses that want of the data what these don't hold."""
    loss, data = config.loss, config.data
    if loss.wants_guide and not data.guide.model:
        field = "mask_by='guide'" if loss.mask_by == "guide" else "distill_embeddings_weight"
        yield (
            f"loss.{field} wants a guide's embeddings: set data.guide.model to a folder or id of a "
            f"sentence encoder, which `prepare` runs over the texts"
        )
    elif loss.distill_embeddings_weight > 0 and not data.guide.dims:
        yield (
            "loss.distill_embeddings_weight learns a matrix into the guide's space: set "
            "data.guide.dims to the number of dimensions of data.guide.model, or to fewer"
        )


def _cudnn_problems(config: RunConfig) -> Iterator[str]:
    model, why = config.model, "train.attention=cudnn"
    if model.compute_dtype != "bfloat16":
        yield f"{why} computes in bfloat16: set model.compute_dtype to it, or use xla"
    if model.has_dropout:
        yield f"{why} has no dropout: set {_dropout_fields(model)} to 0, or use xla"
    if model.head_dimensions % 8 or model.head_dimensions > 128:
        yield (
            f"{why} takes heads of 8, 16, ... 128, and the model's are of {model.head_dimensions}; "
            f"use xla"
        )
    if config.feed.row_tokens % 2:
        yield f"{why} takes rows of an even length, and feed.row_tokens={config.feed.row_tokens}"


def _dropout_fields(model: ModelConfig) -> str:
    names = [field.name for field in dataclasses.fields(model) if "dropout" in field.name]
    return " and ".join(f"model.{name}" for name in names)


def check_distributed(given: DistributedConfig) -> None:
    """Checks what a command says of its processes.

    Raises: UserError.
    """
    if problems := list(_distributed_problems(given)):
        raise UserError("; ".join(problems))


def _distributed_problems(given: DistributedConfig) -> Iterator[str]:
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
    if is_url(config.cache_dir):
        yield f"cache_dir={config.cache_dir!r} is a URL: give a folder of each machine"
    for name in ("export", "mine", "negation"):
        if is_url(output := getattr(config, name).output_dir):
            yield (
                f"{name}.output_dir={output!r} is a URL: leave it out, and the folder is below a "
                f"workdir that may be one"
            )


def _engine_problems(config: RunConfig) -> Iterator[str]:
    if is_url(config.data.engine.cache_dir):
        yield (
            f"data.engine.cache_dir={config.data.engine.cache_dir!r} is a URL: give a folder that "
            f"each machine has for itself; what they share is data.engine.work_dir"
        )


def _number_problems(config: RunConfig) -> Iterator[str]:
    """NaN is neither too small nor too large, so no other check would find it."""
    for path, _, value in leaves(config):
        if isinstance(value, float) and math.isnan(value):
            yield f"{path} is NaN; give a number"


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
    """Checks types, bounds and what must hold between fields.

    Raises: UserError listing every field that is wrong.
    """
    check_credentials(config)
    problems = [*field_problems(config), *_number_problems(config)]
    if not problems:
        parts = (
            _folder_problems, _engine_problems, _data_problems, _feed_problems, _training_problems,
        )  # fmt: skip
        problems = [problem for part in parts for problem in part(config)]
        problems += _distributed_problems(config.distributed)
    if problems:
        raise UserError("the configuration cannot be used:\n  " + "\n  ".join(problems))
