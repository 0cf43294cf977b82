"""A run whose folder is kept: two sources, a filter, a learned vocabulary, 20 steps."""

from jina_jax.config import (
    DataConfig,
    FeedConfig,
    LengthConfig,
    LossConfig,
    OptimConfig,
    RunConfig,
    SourceConfig,
    T5Config,
    TokenizerConfig,
    TrainConfig,
)


def get_config():
    return RunConfig(
        name="kept",
        workdir="kept",
        data=DataConfig(
            sources=(
                SourceConfig("numbers", paths=("numbers.jsonl",), licence="CC0", weight=2.0),
                SourceConfig(
                    "sums", paths=("sums.jsonl",), licence="CC0", negative_field="negative"
                ),
            ),
            tokenizer=TokenizerConfig("train", vocab_size=56),
            lengths=LengthConfig(max_words=12),
            eval_pairs=12,
            records_per_shard=64,
            max_text_tokens=48,
        ),
        feed=FeedConfig(
            global_batch_size=8, query_tokens=32, positive_tokens=32, row_tokens=32, texts_per_row=4
        ),
        model=T5Config(vocab_size=64, d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2),
        loss=LossConfig(learn_temperature=True),
        optim=OptimConfig(learning_rate=3e-3, warmup_steps=5),
        train=TrainConfig(
            num_steps=20, log_every_steps=1, checkpoint_every_steps=10, keep_checkpoints=2
        ),
    )
