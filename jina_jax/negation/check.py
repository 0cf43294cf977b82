"""What a triplet of a sentence, its entailment and its negation must be, whoever wrote it."""

from jina_jax.config import NegationCheckConfig
from jina_jax.negation.rules import negation_cues, words_of
from jina_jax.text.identity import text_hash


def flaw(anchor: str, entailment: str, negative: str, config: NegationCheckConfig) -> str:
    """Why a triplet is not to be trained on, or an empty text.

    Polarity is counted by words of negation: an antonym (`open`, `closed`) changes none.

    Args:
      anchor: a sentence.
      entailment: what follows from it, or a paraphrase.
      negative: what contradicts both.
      config: bounds.
    Returns: `same_text` (two of the three are one), `length`, `double_negation` (more than one
      negation in a text), `polarity` (anchor and entailment differ in it, or entailment and
      negative do not), `overlap` (the negative has too few words of the entailment) or nothing.
    """
    texts = (anchor, entailment, negative)
    if len({text_hash(text) for text in texts}) < 3:
        return "same_text"
    words = [words_of(text) for text in texts]
    if any(not config.min_words <= len(w) <= config.max_words for w in words):
        return "length"
    if config.polarity:
        cues = [negation_cues(text) for text in texts]
        if max(cues) > 1:
            return "double_negation"
        if cues[0] != cues[1] or cues[1] == cues[2]:
            return "polarity"
    kept = set(words[1]) & set(words[2])
    if len(kept) < config.min_overlap * len(set(words[1])):
        return "overlap"
    return ""
