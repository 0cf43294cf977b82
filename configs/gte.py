"""The recipe of GTE (arXiv 2308.03281): contrastive pretraining on pairs, over four directions.

What the paper gives: one partition over queries and documents in all four directions, cosines over
a temperature of 0.01, AdamW, 50,000 steps of 16,384 pairs of up to 128 tokens, from BERT, one
source a batch, sources sampled by the square root of their sizes. What it does not give: all of its
800 million pairs. The sources, which are those of Jina Embeddings, and the learning rate are ours.

    jina-jax run gte --data.sources.0.paths MY_PAIRS.jsonl
"""

from dataclasses import replace

from jina_jax.config import LossConfig, MixtureConfig, OptimConfig, RunConfig
from jina_jax.configs._sizes import bert_base


def get_config(machine: str = "") -> RunConfig:
    """The pair phase of the base size, from BERT base."""
    run = bert_base("gte", machine)
    return replace(
        run,
        mixture=MixtureConfig(temperature=2.0),
        loss=LossConfig(
            temperature=0.01, query_query_weight=1.0, positive_positive_weight=1.0,
            partition="joint", gather=run.loss.gather,
        ),
        optim=OptimConfig(learning_rate=2e-4, schedule="linear"),
        train=replace(run.train, num_steps=50_000),
    )  # fmt: skip
