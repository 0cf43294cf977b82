"""A small T5 trained in minutes on the documentation of the installed Python packages."""

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


def get_config() -> RunConfig:
    """Two layers of 256 dimensions, 8,000 pieces, batches of 128 pairs."""
    return RunConfig(
        name="demo",
        data=DataConfig(
            sources=(SourceConfig("pydocs", "pydocs", licence="per package"),),
            tokenizer=TokenizerConfig("train", vocab_size=8000),
            eval_pairs=2000,
        ),
        feed=FeedConfig(
            global_batch_size=128,
            query_tokens=48,
            positive_tokens=64,
            row_tokens=64,
        ),
        model=T5Config(
            vocab_size=8064,
            d_model=256,
            d_ff=1024,
            num_layers=2,
            num_heads=4,
            dropout_rate=0.0,
        ),
        optim=OptimConfig(learning_rate=7e-4, warmup_steps=30),
        train=TrainConfig(num_steps=350, checkpoint_every_steps=100),
    )
