"""A small T5 trained from random weights on the documentation of the installed packages."""

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
    """Three layers of 128 dimensions, 8,000 pieces, batches of 128 pairs."""
    return RunConfig(
        name="demo_from_scratch",
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
            d_model=128,
            d_kv=32,
            d_ff=512,
            num_layers=3,
            num_heads=4,
            dropout_rate=0.0,
        ),
        optim=OptimConfig(learning_rate=1.2e-3, warmup_steps=50),
        train=TrainConfig(num_steps=500, checkpoint_every_steps=100),
    )
