"""A small ablation: pairs of numbers, German sentences to plant, and a model that trains fast."""

import json
from pathlib import Path

from jina_jax.config import (
    Ablation,
    Arm,
    DataConfig,
    FeedConfig,
    InjectionConfig,
    OptimConfig,
    RunConfig,
    SourceConfig,
    T5Config,
    TokenizerConfig,
    TrainConfig,
)
from tests.pairs import pair

STEPS = 12

CONFIG_FILE = """
from pathlib import Path
from tests.ablate.sources import {function}

def get_config():
    return {function}(Path({folder!r}))
"""


def write_sources(folder: Path, clean: int = 300, foreign: int = 120) -> InjectionConfig:
    """Files of clean pairs and of German texts, among them English ones that are not taken."""
    (folder / "clean.jsonl").write_text("".join(json.dumps(pair(i)) + "\n" for i in range(clean)))
    names = ("Anna", "Bernd", "Clara", "Dieter", "Emma", "Fritz", "Greta", "Hans", "Ida", "Jakob")
    rows = [
        {
            "lang": "de",
            "text": f"{names[i % 10]} läuft heute über die grüne Wiese, zum {i}. Mal. "
            f"Danach schläft {names[i // 10 % 10]} lange im Schatten, Nummer {i}.",
        }
        for i in range(foreign)
    ]
    rows.append({"lang": "en", "text": "It is raining. Nobody is out in the street."})
    (folder / "foreign.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return InjectionConfig(
        clean=SourceConfig("numbers", paths=(str(folder / "clean.jsonl"),), licence="CC0"),
        foreign_paths=(str(folder / "foreign.jsonl"),),
        held_out=40,
        pairs=200,
    )


def filters(folder: Path) -> Ablation:
    """No filter beside the language filter, on an injected source."""
    return Ablation(
        base=RunConfig(
            name="tiny",
            workdir=str(folder / "run"),
            data=DataConfig(
                tokenizer=TokenizerConfig("train", vocab_size=60), eval_pairs=0, max_text_tokens=32
            ),
            feed=FeedConfig(
                global_batch_size=16, query_tokens=24, positive_tokens=32, row_tokens=32
            ),
            model=T5Config(
                vocab_size=64, d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2,
                dropout_rate=0.0,
            ),
            optim=OptimConfig(learning_rate=3e-3, warmup_steps=2),
            train=TrainConfig(num_steps=STEPS, checkpoint_every_steps=3, log_every_steps=1),
        ),
        arms=(Arm("none"), Arm("language", {"data.language.enabled": True})),
        seeds=2,
        injection=write_sources(folder),
    )  # fmt: skip


def losses(folder: Path) -> Ablation:
    """Two losses on the same data, of which preparation holds pairs out."""
    ablation = filters(folder)
    assert ablation.injection is not None
    data = DataConfig((ablation.injection.clean,), TokenizerConfig("train", 60), 32, eval_pairs=40)
    base = RunConfig(
        name="tiny", workdir=str(folder / "run"), data=data, feed=ablation.base.feed,
        model=ablation.base.model, train=ablation.base.train, optim=ablation.base.optim,
    )  # fmt: skip
    return Ablation(base, (Arm("both"), Arm("query", {"loss.positive_weight": 0})), seeds=1)
