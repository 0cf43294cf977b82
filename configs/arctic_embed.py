"""The recipe of Arctic-Embed (arXiv 2405.05374): pretraining on pairs, then on mined negatives.

What the report gives: two rounds, InfoNCE from queries; the first token's vector; in the first
round one source a batch, 16,384 pairs, queries of 32 and passages of 256 tokens; in the second hard
negatives alone, without those of the batch, ten a query, found with another model and kept below a
share of the positive's score (`jina-jax mine`). What it does not give: all of its 300 million
pairs. Learning rates, steps and temperature here are ours.

    jina-jax run arctic_embed:arctic_pairs --data.sources.0.paths MY_PAIRS.jsonl
    jina-jax mine arctic_embed:arctic_pairs
    jina-jax run arctic_embed:arctic_triplets
"""

from dataclasses import replace

from jina_jax.config import (
    DataConfig,
    FeedConfig,
    LossConfig,
    OptimConfig,
    RunConfig,
    SourceConfig,
)
from jina_jax.configs._sizes import bert_base


def get_config(machine: str = "") -> tuple[RunConfig, ...]:
    """Both rounds of the medium size, from BERT base."""
    run = bert_base("arctic_pairs", machine, pooling="cls")
    one_way = LossConfig(
        temperature=0.02, positive_weight=0.0, margin_weight=0.0, gather=run.loss.gather
    )
    pairs = replace(
        run,
        feed=replace(run.feed, query_tokens=32, positive_tokens=256, row_tokens=256),
        loss=one_way,
        optim=OptimConfig(learning_rate=2e-4, schedule="linear"),
    )
    mined = SourceConfig(
        "mined", paths=(str(pairs.mine_path / "*.jsonl"),), negative_field="negative",
        in_batch=False,
    )  # fmt: skip
    triplets = replace(
        pairs,
        name="arctic_triplets",
        data=DataConfig(
            sources=(mined,), tokenizer=run.data.tokenizer, negatives_per_record=10
        ),
        feed=FeedConfig(
            global_batch_size=256, query_tokens=512, positive_tokens=512, row_tokens=512,
            texts_per_row=8, rows_multiple=1024,
        ),
        optim=OptimConfig(learning_rate=1e-5, schedule="linear"),
        train=replace(run.train, num_steps=4000, initial_weights=str(pairs.run_path)),
    )  # fmt: skip
    return pairs, triplets
