"""The triplet phase of Jina Embeddings v1 (arXiv 2307.11224): preparation of its triplets.

What the paper gives: triplets of queries, matching and non-matching texts, the negation set among
them; neither deduplication nor the language filter is applied to them; a triplet is kept when
cross-encoder/ms-marco-MiniLM-L-6-v2 scores its positive above its negative by more than 0.2,
without saying whether on logits or probabilities. What it does not give: the other data sets,
their sizes and sampling weights, and the values of training.

Sources stream from the hub, but for files below `raw/`; see `jina_jax/sources/catalogue.toml`.
The cross-encoder comes from the hub too, or from a folder (`--data.margin.model FOLDER`).
"""

from jina_jax.config import DataConfig, MarginConfig, RunConfig
from jina_jax.sources.catalogue import catalogue_source

SOURCES = (
    # Web search: passages shown to annotators and not selected, and mined ones.
    "ms_marco_triplets",
    "ms_marco_mined",
    # Question answering: paragraphs without a supporting fact, and answers that were voted down.
    "hotpotqa_triplets",
    "stack_exchange_votes",
    # Duplicate questions.
    "quora_triplets",
    # E-commerce: products judged irrelevant.
    "shopping_queries_triplets",
    # NLI: an entailed and a contradicted hypothesis of a premise.
    "snli_triplets",
    "mnli_triplets",
    # Scientific citations.
    "specter",
    # Negation: made for the paper.
    "negation",
)


def get_config() -> RunConfig:
    """As `jina_v1_pairs`; `jina_v1` starts its training from the end of that run."""
    return RunConfig(
        name="jina_v1_triplets",
        data=DataConfig(
            sources=tuple(catalogue_source(name) for name in SOURCES),
            margin=MarginConfig(enabled=True, threshold=0.2, scale="logit"),
        ),
    )
