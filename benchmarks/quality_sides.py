"""Both sides of `quality.py`: what they train, and how."""

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from train_speed import TEMPERATURE

from jina_jax.config import (
    DataConfig,
    FeedConfig,
    LossConfig,
    OptimConfig,
    RunConfig,
    SourceConfig,
    T5Config,
    TokenizerConfig,
    TrainConfig,
)


@dataclass(frozen=True)
class Options:
    """What is trained, and on what."""

    seeds: tuple[int, ...] = (0, 1, 2)
    """Of weights and order; both sides train once with each."""
    steps: int = 150
    """Of training."""
    batch_size: int = 64
    """Pairs in a batch."""
    max_tokens: int = 256
    """Texts are cut to this many tokens."""
    learning_rate: float = 2e-3
    """Peak; a linear warm-up over a tenth of the steps, then linear to 0."""
    dropout: float = 0.0
    """On both sides. Above 0 they draw different masks."""
    d_model: int = 128
    layers: int = 2
    vocab_size: int = 8000
    held_out: int = 1000
    """Pairs that are searched and not trained on."""
    pairs: Path | None = None
    """JSON lines with `query` and `positive` instead of docstrings."""
    sts: Path | None = None
    """A file of the STS Benchmark, such as sts-dev.csv; without it there is no STS score."""
    threads: int = 2
    """Of torch; JAX takes the cores that there are."""
    results: Path | None = None
    """Keep the figures of each seed in this file, and show all that it has."""
    side: str = ""
    """Set by the benchmark itself: train one side in this process."""
    work: Path = Path()
    """Set by the benchmark itself: the folder with pairs, weights and models."""


def run_config(options: Options, work: Path, seed: int) -> RunConfig:
    """Our side as a user would configure it."""
    return RunConfig(
        name=f"quality-{seed}",
        workdir=str(work / f"ours-{seed}"),
        data_dir=str(work / "data"),
        data=DataConfig(
            (SourceConfig("pairs", paths=(str(work / "pairs.jsonl"),)),),
            TokenizerConfig(str(work / "tokenizer")),
            eval_pairs=options.held_out,
        ),
        feed=FeedConfig(
            options.batch_size, options.max_tokens, options.max_tokens,
            row_tokens=options.max_tokens,
        ),
        model=T5Config(
            vocab_size=-(-options.vocab_size // 128) * 128, d_model=options.d_model,
            d_ff=4 * options.d_model, num_layers=options.layers, num_heads=options.d_model // 64,
            dropout_rate=options.dropout,
        ),
        # sentence-transformers takes the mean of the two directions, and masks no equal texts.
        loss=LossConfig(
            temperature=TEMPERATURE, query_weight=0.5, positive_weight=0.5,
            mask_false_negatives=False,
        ),
        optim=OptimConfig(
            learning_rate=options.learning_rate, schedule="linear",
            warmup_steps=options.steps // 10, weight_decay=0.0,
        ),
        train=TrainConfig(
            options.steps, seed, str(work / f"initial-{seed}"), log_every_steps=1,
            checkpoint_every_steps=options.steps,
        ),
    )  # fmt: skip


def train_ours(options: Options, work: Path) -> dict[str, list[float]]:
    """Trains with `train`; losses and seconds of each step."""
    from jina_jax.train.loop import train
    from jina_jax.train.metrics.writer import read_metrics

    config = run_config(options, work, options.seeds[0])
    train(config)
    lines = read_metrics(config.run_path / "metrics.jsonl")
    return {"losses": [v["loss"] for v in lines], "seconds": [v["step_time_s"] for v in lines]}


def train_theirs(options: Options, work: Path) -> dict[str, list[float]]:
    """Trains with sentence-transformers' trainer; losses and seconds of each step."""
    seed = options.seeds[0]
    plan = json.loads((work / f"plan-{seed}.json").read_text(encoding="utf-8"))
    queries, positives = zip(*plan["pairs"], strict=True)
    return train_sentence_transformer(
        work / f"initial-{seed}", work / f"theirs-{seed}",
        {"query": queries, "positive": positives}, plan["rates"],
        Pieces(batch_size=options.batch_size, temperature=TEMPERATURE, direction_weight=0.5),
        seed=seed, threads=options.threads,
    )  # fmt: skip


@dataclass(frozen=True)
class Pieces:
    """What a training by sentence-transformers is made of, beside weights, texts and rates."""

    batch_size: int
    """Records in a batch."""
    temperature: float
    """Of InfoNCE in both directions, with the hard negatives of all queries."""
    direction_weight: float = 1.0
    """Of each direction."""
    margin: float = 0.0
    """Of cosines, between a query's positive and each of its hard negatives."""
    margin_weight: float = 0.0
    dims: tuple[int, ...] = ()
    """The loss is that of all dimensions plus those of so many of the first."""
    max_tokens: int | None = None
    """Texts are cut to this many; None keeps the model's own limit."""
    prompts: dict[str, str] | None = None
    """Saved with the model; the texts have theirs already."""


def train_sentence_transformer(
    start: Path,
    out: Path,
    columns: dict[str, Sequence[str]],
    rates: Sequence[float],
    pieces: Pieces,
    *,
    seed: int,
    threads: int,
) -> dict[str, list[float]]:
    """Trains with sentence-transformers' trainer and the loss that ours has.

    Args:
      start: folder of the model that training starts from.
      out: folder for the trained one.
      columns: queries, positives and any number of negatives, in the order of the batches.
      rates: learning rate of each step.
      pieces: batch, loss and lengths.
      seed: of dropout.
      threads: of torch.
    Returns: losses and seconds of each step.
    """
    import torch
    from datasets import Dataset
    from sentence_transformers import (
        SentenceTransformer,
        SentenceTransformerTrainer,
        SentenceTransformerTrainingArguments,
    )
    from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
    from torch.utils.data import BatchSampler, SequentialSampler
    from transformers import TrainerCallback

    torch.set_num_threads(threads)
    model = SentenceTransformer(str(start), device="cpu")
    model.max_seq_length = pieces.max_tokens or model.max_seq_length
    losses: list[float] = []

    class Loss(MultipleNegativesRankingLoss):
        """The mean of both directions, with a margin, and of the first dimensions alone."""

        def compute_loss_from_embeddings(self, embeddings: list[Any], labels: Any) -> Any:
            cosines = torch.nn.functional.cosine_similarity
            total = torch.zeros(())
            for dim in (None, *pieces.dims):
                query, positive, *negatives = cut = [e[:, :dim] for e in embeddings]
                both = super().compute_loss_from_embeddings(cut, labels)
                total = total + 2 * pieces.direction_weight * both
                own = pieces.margin - cosines(query, positive)
                hinges = [torch.relu(own + cosines(query, other)).mean() for other in negatives]
                total = total + pieces.margin_weight * sum(hinges) / max(len(hinges), 1)
            losses.append(total.item())
            return total

    loss = Loss(
        model, scale=1 / pieces.temperature, directions=("query_to_doc", "doc_to_query"),
        partition_mode="per_direction",
    )  # fmt: skip
    ends = [time.perf_counter()]

    class Clock(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            ends.append(time.perf_counter())

    optim = OptimConfig()
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=1.0, betas=(optim.b1, optim.b2), eps=optim.eps, weight_decay=0.0
    )
    # Our rates, with one beyond the last step, which is asked for and not used.
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, [*rates, 0.0].__getitem__)
    SentenceTransformerTrainer(
        model=model,
        args=SentenceTransformerTrainingArguments(
            output_dir=f"{out}-trainer", num_train_epochs=1, seed=seed,
            per_device_train_batch_size=pieces.batch_size, max_grad_norm=optim.clip_norm,
            batch_sampler=lambda dataset, batch_size, drop_last, **_: BatchSampler(
                SequentialSampler(dataset), batch_size, drop_last
            ),
            use_cpu=True, save_strategy="no", report_to="none", disable_tqdm=True,
        ),
        train_dataset=Dataset.from_dict(columns),
        loss=loss,
        optimizers=(optimizer, schedule),
        callbacks=[Clock()],
    ).train()  # fmt: skip
    model.prompts |= pieces.prompts or {}
    model.save_pretrained(str(out))
    return {"losses": losses, "seconds": np.diff(ends).tolist()}
