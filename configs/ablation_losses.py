r"""Terms of the triplet loss (arXiv 2307.11224, section 3.2), and what came since: what each adds.

The loss of the paper's second phase is NCE⁺ from queries to positives and all hard negatives of the
batch, InfoNCE from positives to queries, and a margin of 0.05 between a query's positive and its
own hard negative; the paper tried several combinations. The first arms leave terms out; the others
add one of docs/losses.md each. The held-out triplets are the same in all, as the arms differ in the
loss alone: nDCG@10 tells of retrieval, easy and hard negation of contradictions, which SNLI's hard
negatives are.

SNLI comes from the hub; for its files say

    jina-jax ablate ablation_losses --data.sources.0.kind jsonl --data.sources.0.dataset "" \
        --data.sources.0.paths DATA/snli_*.jsonl --data.tokenizer.source DATA/t5_vocab
"""

from jina_jax.config import (
    Ablation,
    Arm,
    DataConfig,
    FeedConfig,
    OptimConfig,
    RunConfig,
    T5Config,
    TrainConfig,
)
from jina_jax.sources.catalogue import catalogue_source


def get_config() -> Ablation:
    """A small T5 from random weights: a minute or two on 2 CPU cores for each training."""
    return Ablation(
        base=RunConfig(
            name="ablation_losses",
            data=DataConfig(
                sources=(catalogue_source("snli_triplets"),), eval_pairs=500, max_text_tokens=64
            ),
            feed=FeedConfig(
                global_batch_size=64, query_tokens=64, positive_tokens=64, row_tokens=64
            ),
            model=T5Config(d_model=128, d_kv=32, d_ff=512, num_layers=2, num_heads=4),
            optim=OptimConfig(learning_rate=1e-3, warmup_steps=30),
            train=TrainConfig(num_steps=300),
        ),
        arms=(
            Arm("all"),
            Arm("without-margin", {"loss.margin_weight": 0.0}),
            Arm("without-positive", {"loss.positive_weight": 0.0}),
            Arm("query-alone", {"loss.positive_weight": 0.0, "loss.margin_weight": 0.0}),
            Arm("margin-alone", {"loss.query_weight": 0.0, "loss.positive_weight": 0.0}),
            Arm(
                "one-partition",
                {
                    "loss.query_query_weight": 1.0,
                    "loss.positive_positive_weight": 1.0,
                    "loss.partition": "joint",
                },
            ),
            Arm("masked", {"loss.mask_by": "model", "loss.mask_margin_kind": "relative"}),
            Arm("hardness", {"loss.in_batch_hardness": 9.0, "loss.hard_negative_hardness": 5.0}),
            Arm("spread", {"loss.spread_weight": 1.0}),
        ),
    )
