"""A near paraphrase of an English sentence by rule, where a rule applies; else none."""

import re

from jina_jax.negation.words import SYNONYMS, words_in

_FRONTED = re.compile(
    r"^(In|On|At|During|From|By|Near|Under|Inside|Outside)( [^,.;:!?]{2,60}?) ?, "
    r"([^,;:!?]+?)( ?[.])?\s*$"
)
_PRONOUN = re.compile(
    r"\b(he|she|it|we|they|i|you) (is|are|am|will|would have|have been|has been)(?= \w)",
    re.IGNORECASE,
)
_SHORT = {
    "is": "'s", "are": "'re", "am": "'m", "will": "'ll", "would have": "'d have",
    "have been": "'ve been", "has been": "'s been",
}  # fmt: skip
_LOWER_IN_A_SENTENCE = words_in("""
    the a an this these those he she it we they there his her its their our my your one two
    three some many most several another
""")
_PHRASE = re.compile(
    r"\b("
    + "|".join(sorted(map(re.escape, SYNONYMS), key=len, reverse=True))
    + r")\b(?= \w| ?[.,]?$)"
)
_MOST_SYNONYMS = 3


def paraphrase(text: str) -> str | None:
    """The same said otherwise.

    An adverbial at the start goes to the end, pronouns and their verbs are contracted, and a few
    words give way to synonyms.

    Args:
      text: an English sentence.
    Returns: another text, or None where no rule changes anything.
    Example: "In 1990, he began to paint." gives "He started to paint in 1990."
    """
    changed = _PRONOUN.sub(lambda m: m[1] + _SHORT[m[2].lower()], _unfronted(text))
    changed = _PHRASE.sub(lambda m: SYNONYMS[m[1]], changed, count=_MOST_SYNONYMS)
    return None if changed == text else changed


def _unfronted(text: str) -> str:
    match = _FRONTED.match(text)
    if match is None or not _is_clause(match[3]):
        return text
    preposition, phrase, clause, stop = match.groups(default="")
    return f"{clause[0].upper()}{clause[1:]} {preposition.lower()}{phrase}{stop}"


def _is_clause(text: str) -> bool:
    """Whether the rest begins with a subject, so that it can stand at the start."""
    first = text.split()[0]
    return first in _LOWER_IN_A_SENTENCE or first[0].isupper()
