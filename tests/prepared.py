"""A small prepared folder that several test modules share: real text, quick to make."""

import json
from pathlib import Path

from jina_jax.config import (
    DataConfig,
    FeedConfig,
    OptimConfig,
    RunConfig,
    SourceConfig,
    T5Config,
    TokenizerConfig,
    TrainConfig,
)

STEPS = 40
"""Of a run of `tiny_config`."""

CONFIG_FILE = """
from dataclasses import replace
from tests.prepared import tiny_config

def get_config():
    return tiny_config({folder!r})
"""


def write_jsonl(folder: Path, count: int = 200) -> Path:
    """Pairs of a number in words and in digits: a second source beside the documentation."""
    path = folder / "numbers.jsonl"
    words = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
    rows = [
        {"query": " ".join(words[int(d)] for d in str(n)), "positive": f"the number {n}"}
        for n in range(count)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def tiny_config(folder: str) -> RunConfig:
    """Two sources and a model that trains in seconds; everything lies below `folder`."""
    return RunConfig(
        name="tiny",
        workdir=f"{folder}/run",
        data_dir=f"{folder}/data",
        data=DataConfig(
            sources=(
                SourceConfig("docs", "pydocs", ("asyncio", "email", "logging"), weight=3.0),
                SourceConfig("numbers", "jsonl", (f"{folder}/numbers.jsonl",)),
            ),
            tokenizer=TokenizerConfig("train", vocab_size=500),
            eval_pairs=30,
        ),
        feed=FeedConfig(
            global_batch_size=16, query_tokens=24, positive_tokens=32, row_tokens=32,
            texts_per_row=8, rows_multiple=32,  # Every batch of pairs runs in one program.
        ),
        model=T5Config(
            vocab_size=512, d_model=32, d_kv=8, d_ff=64, num_layers=1, num_heads=4
        ),
        optim=OptimConfig(learning_rate=3e-3, warmup_steps=5),
        train=TrainConfig(num_steps=STEPS, log_every_steps=1, checkpoint_every_steps=7),
    )  # fmt: skip
