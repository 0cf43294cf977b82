"""Negates an English declarative sentence by rule, where a rule is sure enough; else gives none.

There is no parser here. The first word that can be the verb of the main clause is negated, with
`not` behind an auxiliary or with `do` for other verbs, and a sentence that one of the guards below
knows to go wrong is left alone: an order of magnitude more sentences are to be had than triplets
are needed, and a bad negation teaches the contrary of what it should.
"""

import re
import tomllib
from importlib import resources

from jina_jax.config import NegationCheckConfig
from jina_jax.text.identity import text_hash

_FILE = resources.files("jina_jax.negation") / "words.toml"
_TABLES = tomllib.loads(_FILE.read_text("utf-8"))
"""Words, all lower case; the file says what each list is for."""
_WORDS = {name: frozenset(words.split()) for name, words in _TABLES.items() if type(words) is str}
NEGATIONS = _WORDS["negations"]
AUXILIARIES = _WORDS["auxiliaries"]
DETERMINERS = _WORDS["determiners"]
QUANTIFIERS = _WORDS["quantifiers"]
SUBORDINATORS = _WORDS["subordinators"]
QUESTION_WORDS = _WORDS["question_words"]
ADVERBS_THAT_RESIST = _WORDS["adverbs_that_resist"]
POLARITY_ITEMS = _WORDS["polarity_items"]
POSITIVE_ITEMS = _WORDS["positive_items"]
PARTICIPLES = _WORDS["participles"]
_LOWER_IN_A_SENTENCE = _WORDS["lower_in_a_sentence"]
PRESENT = _TABLES["present"]
IRREGULAR_PAST = _TABLES["irregular_past"]
SYNONYMS = _TABLES["synonyms"]

_WORD = re.compile(r"[^\W_]+(?:[-'’][^\W_]+)*")
_SENTENCE_END = re.compile(r"[.!?]['\")\]]*\s+(?=[A-Z\"'])")
_CONTRACTED = re.compile(r"(?:i|you|he|she|it|we|they|there|that|who)['’](?:m|re|s|ve|d|ll)")
_FORBIDDEN = re.compile(r"[?\"“”:;«»]|[\[(]|--|\.\.\.|``|''")
_NOT = re.compile(r"\b([a-z]+)(n['’]t| not)\b")
_WHOLE = {"ca": "can", "wo": "will", "sha": "shall"}


def words_of(text: str) -> list[str]:
    """The words of a text in lower case, without marks."""
    return [word.lower().replace("’", "'") for word in _WORD.findall(text)]


def negation_cues(text: str) -> int:
    """How many words of a text negate: not, never, no, nobody, without, isn't, ..."""
    return sum(word in NEGATIONS or word.endswith("n't") for word in words_of(text))


def negate(text: str) -> str | None:
    """The sentence with the other polarity.

    Args:
      text: an English declarative sentence, or several, of which the first is negated.
    Returns: the text with one negation more, or, where it had one of the form `is not`, without
      it; None where no rule applies.
    Example: "A man is playing a guitar." gives "A man is not playing a guitar."
    """
    end = match.end() if (match := _SENTENCE_END.search(text)) else len(text)
    first, rest = text[:end], text[end:]
    if _FORBIDDEN.search(first) or negation_cues(rest):
        return None
    cues = negation_cues(first)
    negated = _affirmed(first) if cues == 1 else _negated(first) if cues == 0 else None
    return None if negated is None else negated + rest


def _negated(sentence: str) -> str | None:
    words = list(_WORD.finditer(sentence))
    lower = [word.group().lower() for word in words]
    if not words or lower[0] in QUESTION_WORDS or lower[0] in AUXILIARIES:
        return None
    for place, word in enumerate(lower):
        if word in SUBORDINATORS or word in QUANTIFIERS or _CONTRACTED.fullmatch(word):
            return None
        is_verb = word in AUXILIARIES or word in PRESENT or word in IRREGULAR_PAST
        if place == 0 or words[place].group() != word or not is_verb:
            continue
        before, after = lower[place - 1], (*lower[place + 1 :], "", "")
        if before in DETERMINERS or after[0] in ADVERBS_THAT_RESIST or not after[0]:
            return None
        if POSITIVE_ITEMS & set(after) or before in ("and", "or", "to"):
            return None
        verb = _negated_verb(word, after[0], after[1])
        if verb is None:
            return None
        return sentence[: words[place].start()] + verb + sentence[words[place].end() :]
    return None


def _negated_verb(word: str, after: str, then: str) -> str | None:
    """The verb with `not` behind it, or with a form of `do` and `not` before it."""
    if word in ("has", "have", "had"):
        if _is_participle(after) or (after.endswith("ly") and _is_participle(then)):
            return f"{word} not"
        if after in DETERMINERS or after.isdigit() or after in QUANTIFIERS:
            return {"has": "does", "have": "do", "had": "did"}[word] + " not have"
        return None
    if word in AUXILIARIES:
        # `is to` is no statement of what is; in `the tin can is open` the first is a noun.
        if after == "to" or (after in AUXILIARIES and after != "have"):
            return None
        return "cannot" if word == "can" else f"{word} not"
    if word in PRESENT:
        return f"does not {PRESENT[word]}"
    return f"did not {IRREGULAR_PAST[word]}"


def _is_participle(word: str) -> bool:
    return word in PARTICIPLES or (len(word) > 4 and word.endswith("ed"))


def _affirmed(sentence: str) -> str | None:
    """Takes the `not` out of `is not`, `isn't`, `cannot` and their like."""
    sentence_ = re.sub(r"\bcannot\b", "can not", sentence)
    match = _NOT.search(sentence_)
    if match is None:
        return None
    verb = _WHOLE.get(match[1], match[1]) if match[2] != " not" else match[1]
    before = {word.lower() for word in _WORD.findall(sentence_[: match.start()])}
    after = [word.lower() for word in _WORD.findall(sentence_[match.end() :])]
    if verb not in AUXILIARIES or not after or not before or before & SUBORDINATORS:
        return None
    if set(after) & POLARITY_ITEMS or after[0] in ("only", "just", "to") or "but" in after:
        return None
    if next(iter(_WORD.findall(sentence_))).lower() in QUESTION_WORDS:
        return None
    return sentence_[: match.start()] + verb + sentence_[match.end() :]


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
