"""The pair phase of Jina Embeddings v1 (arXiv 2307.11224): preparation of its pairs.

What the paper gives: the families of data; duplicates, empty and identical pairs dropped by hash;
items that are not English dropped with fastText; pairs dropped by a consistency filter with
all-MiniLM-L6-v2 against a sample of one million passages; 1.6 billion pairs before, 385 million
after. What it does not give: the data sets with their sizes, their sampling weights, the threshold
of the language filter, and for training the batch size, learning rate and number of steps. Data
sets are public ones of each family, weights are equal and the rest are defaults of ours: change
them here.

Files are read from `raw/`; `jina_jax/sources/catalogue.toml` says where each is had, and sources
of kind `hf` stream from the hub; the encoder of the consistency filter comes from the hub too, or
from a folder (`--data.consistency.model FOLDER`). Preparing all of them needs terabytes: take out
what you lack, or give sources a `limit`.
"""

from jina_jax.config import (
    ConsistencyConfig,
    DataConfig,
    DecontaminationConfig,
    EvaluationSet,
    LanguageConfig,
    RunConfig,
)
from jina_jax.sources.catalogue import catalogue_source

WEB_SEARCH = ("ms_marco",)
QUESTION_ANSWERING = (
    "natural_questions", "hotpotqa", "fever", "squad", "triviaqa", "gooaq", "eli5", "paq",
    "searchqa", "yahoo_answers", "opentrivia",
)  # fmt: skip
DUPLICATE_QUESTIONS = ("wikianswers", "stack_exchange_duplicates", "quora")
E_COMMERCE = ("amazon_qa", "amazon_reviews", "shopping_queries")
TITLE_AND_BODY = (
    "reddit", "stack_exchange", "cnn_dailymail", "xsum", "ccnews", "npr", "agnews", "wikihow",
)  # fmt: skip
NLI = ("snli",)
CAPTIONS = ("coco_captions", "flickr30k_captions")
CITATIONS = ("s2orc_abstracts", "s2orc_citations")
PARAPHRASES = ("sentence_compression", "simple_wiki", "altlex", "wikisplit")

SOURCES = (
    *WEB_SEARCH, *QUESTION_ANSWERING, *DUPLICATE_QUESTIONS, *E_COMMERCE, *TITLE_AND_BODY, *NLI,
    *CAPTIONS, *CITATIONS, *PARAPHRASES,
)  # fmt: skip

# Not in the paper. STS Benchmark's train split is left out of the sources for the same reason.
EVALUATION_SETS = (
    EvaluationSet("sts_benchmark", ("raw/sts_benchmark/sts-dev.csv",), "text", ("6", "7")),
)


def get_config() -> RunConfig:
    """T5 small (35 million parameters of encoder), the smallest of the paper's models."""
    return RunConfig(
        name="jina_v1_pairs",
        data=DataConfig(
            sources=tuple(catalogue_source(name) for name in SOURCES),
            language=LanguageConfig(enabled=True),
            decontamination=DecontaminationConfig(EVALUATION_SETS),
            # The sample and top_k are the paper's.
            consistency=ConsistencyConfig(enabled=True, top_k=2, sample_size=1_000_000),
        ),
    )
