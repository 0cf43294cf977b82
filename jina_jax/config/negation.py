"""Values of the builder of negation triplets; part of `RunConfig`. None changes a training run."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from jina_jax.config.fields import (
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Share,
    changeable,
)

PROMPT = """\
Rewrite the sentence so that it says the contrary, by adding or removing exactly one word of \
negation such as "not" or "no". Change nothing else. Then write a paraphrase of the sentence that \
keeps its meaning and has no more and no fewer words of negation than it has.
Answer with a JSON object only: {{"entailment": "the paraphrase", "negative": "the contrary"}}

Sentence: {text}"""


@dataclass(frozen=True)
class NegationCheckConfig:
    """What every triplet must be, whoever wrote it."""

    min_words: PositiveInt = changeable(3)
    """Least words of each text."""
    max_words: int = changeable(60)
    polarity: bool = changeable(True)
    """The negative has one negation more or less than the entailment, no text has two, and anchor
    and entailment have as many as each other. Contradictions of NLI data mostly have none: set it
    to False to keep these."""
    min_overlap: Share = changeable(0.5)
    """Least share of the entailment's words that the negative has too."""


@dataclass(frozen=True)
class EndpointConfig:
    """A chat endpoint with the interface of OpenAI's that writes the triplets.

    The key is read from an environment variable, and nowhere written.
    """

    base_url: str = changeable("")
    """Up to and without `/chat/completions`, such as http://localhost:8000/v1."""
    model: str = changeable("")
    prompt: str = changeable(PROMPT)
    """Template with {text}, the sentence; other braces are doubled. The answer must be a JSON
    object with `entailment` and `negative`."""
    key_variable: str = changeable("OPENAI_API_KEY")
    """Environment variable that holds the key; where it is unset, none is sent."""
    temperature: float = changeable(0.0)
    max_answer_tokens: PositiveInt = changeable(256)
    concurrency: PositiveInt = changeable(8)
    """Requests under way at once."""
    timeout_s: PositiveFloat = changeable(60.0)
    """Longest wait for an answer."""
    retries: NonNegativeInt = changeable(6)
    """Further tries after 408, 429, 5xx, a time-out or a lost connection."""
    backoff_s: NonNegativeFloat = changeable(1.0)
    """Wait before the first of these; doubled each time, unless the server names a time."""
    price_per_million_input: NonNegativeFloat = changeable(0.0)
    """Price of a million tokens sent, for the estimate."""
    price_per_million_output: NonNegativeFloat = changeable(0.0)
    """Price of a million tokens answered."""


@dataclass(frozen=True)
class NegationConfig:
    """Triplets (sentence, entailment, negation) from the sources of `data`.

    A source of triplets, such as NLI data with the extractor nli_triplets, is only checked. In a
    source of pairs the positive entails the query and gets a negation; where both are the same
    text, a paraphrase becomes the positive.
    """

    method: Literal["rules", "endpoint"] = changeable("rules")
    """Who writes negations: rules for English, or the endpoint."""
    sources: tuple[str, ...] = changeable(())
    """Names of the sources of `data` to build from; empty takes all of them."""
    output_dir: str = changeable("")
    """Folder of the triplets; empty means `WORKDIR/negation`."""
    check: NegationCheckConfig = NegationCheckConfig()
    endpoint: EndpointConfig = EndpointConfig()


def negation_problems(negation: NegationConfig) -> Iterator[str]:
    """What is wrong with the values, one sentence each."""
    check, endpoint = negation.check, negation.endpoint
    if check.min_words > check.max_words:
        yield (
            f"negation.check.min_words={check.min_words} must lie in 1..max_words={check.max_words}"
        )
    try:
        has_text = "\0" in endpoint.prompt.format(text="\0")
    except (KeyError, IndexError, ValueError) as error:
        yield f"negation.endpoint.prompt is no template ({error!r}): double its other braces"
    else:
        if not has_text:
            yield "negation.endpoint.prompt has no {text}"
    if not endpoint.key_variable.isidentifier():
        yield "negation.endpoint.key_variable is no name of an environment variable"
    if negation.method == "endpoint":
        if not endpoint.base_url.startswith(("http://", "https://")):
            yield f"negation.endpoint.base_url={endpoint.base_url!r} must begin with http(s)://"
        if not endpoint.model:
            yield "negation.endpoint.model is empty: name the endpoint's model"
