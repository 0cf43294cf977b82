"""The demo's model, trained on with hard negatives that it mined from its own documentation.

    jina-jax run demo_hard_negatives

prepares and trains as `jina-jax demo` does, or takes what that left, mines and trains on.
"""

from dataclasses import replace

from jina_jax.config import (
    MixtureConfig,
    OptimConfig,
    RunConfig,
    SourceConfig,
    StageConfig,
    TrainConfig,
)
from jina_jax.configs import demo


def get_config() -> tuple[RunConfig, RunConfig]:
    """The demo, then 30 batches of 128 triplets, scored on the pairs that the demo holds out."""
    pairs = demo.get_config()
    (docs,) = pairs.data.sources
    mined = SourceConfig(
        "mined", paths=(str(pairs.mine_path / f"{docs.name}.jsonl"),), negative_field="negative",
        licence=docs.licence,
    )  # fmt: skip
    return pairs, replace(
        pairs,
        name="demo_hard_negatives",
        data=replace(pairs.data, sources=(docs, mined)),
        # The pairs are there for those that are held out of them alone.
        mixture=MixtureConfig(stages=(StageConfig(0, ((docs.name, 0.0),)),)),
        optim=OptimConfig(learning_rate=2e-5, warmup_steps=3),
        train=TrainConfig(num_steps=30, checkpoint_every_steps=15),
    )
