"""A run that is quick to compile."""

from jina_jax.config import FeedConfig, RunConfig, T5Config

CONFIG = RunConfig(
    name="tiny",
    feed=FeedConfig(global_batch_size=32, query_tokens=16, positive_tokens=16, row_tokens=16),
    model=T5Config(vocab_size=64, d_model=32, d_kv=8, d_ff=64, num_layers=1, num_heads=4),
)
