"""A configuration with a teacher, and random batches for it, for steps in this process."""

import numpy as np

from jina_jax.config import FeedConfig, LossConfig, OptimConfig, RunConfig, T5Config, TrainConfig
from jina_jax.feed.batch import pack_batch
from jina_jax.shards.array_record import TokenisedRecords

CONFIG = RunConfig(
    name="tiny",
    feed=FeedConfig(
        global_batch_size=16, query_tokens=8, positive_tokens=16, row_tokens=16, texts_per_row=2
    ),
    model=T5Config(vocab_size=50, d_model=16, d_kv=4, d_ff=32, num_layers=1, num_heads=2),
    loss=LossConfig(distill_weight=1.0, learn_temperature=True),
    optim=OptimConfig(learning_rate=1e-2, schedule="constant", warmup_steps=2),
    train=TrainConfig(num_steps=10),
)


def make_batch(seed):
    """A batch of pairs with a teacher's scores."""
    rng = np.random.default_rng(seed)
    lengths = np.full((16, 2), 8)
    ids = rng.integers(2, 50, lengths.sum()).astype(np.uint16)
    ids[7::8] = 1
    hashes = rng.integers(0, 2**60, (16, 2, 2)).astype(np.uint64)
    starts = np.arange(32).reshape(16, 2) * 8
    scores = rng.uniform(0, 1, (16, 1)).astype(np.float32)
    return pack_batch(TokenisedRecords(ids, starts, lengths, hashes, scores), CONFIG.feed)
