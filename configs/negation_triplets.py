r"""Triplets with negations from natural language inference, for `negation_minilm`.

Contradictions are what annotators wrote. Rules negate the entailed hypothesis as well as the
premise, so that a negation is of the shorter text at times and of the longer one at others.

    jina-jax negation negation_triplets

SNLI comes from the hub; for its files say, for each of the three sources,

        --data.sources.0.kind jsonl --data.sources.0.dataset "" --data.sources.0.paths DATA/*.jsonl
"""

from dataclasses import replace

from jina_jax.config import DataConfig, RunConfig
from jina_jax.sources.catalogue import catalogue_source

CONTRADICTED, ENTAILED, ENTAILING = "contradicted", "entailed", "entailing"


def get_config() -> RunConfig:
    """Three files of triplets below `runs/negation_triplets/negation`."""
    pairs = catalogue_source("snli")
    return RunConfig(
        name="negation_triplets",
        data=DataConfig(
            sources=(
                replace(catalogue_source("snli_triplets"), name=CONTRADICTED),
                replace(pairs, name=ENTAILED),
                replace(pairs, name=ENTAILING, extractor="nli_reversed"),
            )
        ),
    )
