r"""The ablation on data cleaning (arXiv 2307.11224, section 4.3): no filter, one, or both.

The paper trains on Reddit, whose noise nobody has counted. Here noise is planted in a clean source:
of the training pairs 30% get another pair's passage and 15% are in another language. So beside what
cleaning does to retrieval it is known what the filters find and what they cost. All arms are
evaluated on the same clean pairs, which are held out before anything is planted.

Clean pairs are commands of tldr-pages with what they do, read from `raw/tldr_pages/*.jsonl.gz`, an
{"a", "b"} a line. They are hard enough to find that noise costs retrieval much, and enough of them
are left when the consistency filter has dropped 71 to 80%; of NLI pairs, a sixth as many, too few
are. Texts in other languages are read from `raw/multilingual/*.jsonl.gz`, a {"lang", "text"} a
line. Vocabulary and encoder come from the hub, or from folders:

    jina-jax ablate ablation_filters --injection.clean.paths 'DATA/tldr_pages/*.jsonl.gz' \
        --injection.foreign-paths 'DATA/multilingual/*.jsonl.gz' \
        --data.tokenizer.source DATA/t5_vocab --data.consistency.model MINILM
"""

from jina_jax.config import (
    Ablation,
    Arm,
    DataConfig,
    FeedConfig,
    InjectionConfig,
    OptimConfig,
    RunConfig,
    SourceConfig,
    T5Config,
    TrainConfig,
)

LANGUAGE = {"data.language.enabled": True}
CONSISTENCY = {"data.consistency.enabled": True}


def get_config() -> Ablation:
    """A small T5 from random weights: a minute on 2 CPU cores for each training."""
    return Ablation(
        base=RunConfig(
            name="ablation_filters",
            data=DataConfig(eval_pairs=0, max_text_tokens=64),
            feed=FeedConfig(
                global_batch_size=64, query_tokens=64, positive_tokens=64, row_tokens=64
            ),
            model=T5Config(
                d_model=128, d_kv=32, d_ff=512, num_layers=2, num_heads=4, dropout_rate=0.0
            ),
            optim=OptimConfig(learning_rate=1e-3, warmup_steps=30),
            train=TrainConfig(num_steps=150),
        ),
        arms=(
            Arm("none"),
            Arm("language", LANGUAGE),
            Arm("consistency", CONSISTENCY),
            Arm("both", LANGUAGE | CONSISTENCY),
        ),
        injection=InjectionConfig(
            clean=SourceConfig(
                "tldr",
                paths=("raw/tldr_pages/*.jsonl.gz",),
                query_field="a",
                positive_field="b",
                licence="CC BY 4.0",
            ),
            foreign_paths=("raw/multilingual/*.jsonl.gz",),
            held_out=1500,
        ),
    )
