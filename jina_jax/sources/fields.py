"""Which fields of a record are its texts: as they are named, or by the names that are common."""

import math
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from jina_jax.config import SourceConfig
from jina_jax.config.source import NUMBERS
from jina_jax.sources.chunks import Item, pair_or_triplet
from jina_jax.sources.lines import MAX_LINE_BYTES
from jina_jax.types import NO_PAIR, BadRecord, Origin, Record

QUERY_NAMES = (
    "query", "question", "anchor", "sentence1", "sentence_1", "premise", "text1", "title",
    "instruction", "prompt", "input",
)  # fmt: skip
POSITIVE_NAMES = (
    "positive", "positives", "pos", "positive_passages", "positive_ctxs", "passage", "context",
    "answer", "answers", "document", "sentence2", "sentence_2", "entailment", "text2", "abstract",
    "body", "text", "response", "output", "completion",
)  # fmt: skip
NEGATIVE_NAMES = (
    "negative", "negatives", "neg", "hard_negative", "hard_negatives", "hard_neg", "hard_negs",
    "negative_passages", "hard_negative_ctxs", "contradiction",
    *(f"{name}{line}{NUMBERS}" for name in ("negative", "neg", "hard_negative", "hard_neg")
      for line in ("_", "")),
)  # fmt: skip
"""In the order in which they are looked for, in any case of letters."""
_SCORED = ("sentence2", "sentence_2", "text2")
_SCORES = ("score", "label", "similarity", "similarity_score", "relatedness_score", "is_duplicate")
_LARGEST_SCORE = 3e38
"""That float32 holds."""
_MOST_TEXTS = 100_000
"""That lists of one record may make; more is no record but a damaged or foreign file."""


class Fields(NamedTuple):
    """Names of the fields that records are made of."""

    texts: tuple[str, ...]
    """Of the query, the positive and, for a source of triplets, the negative."""
    label: str = ""
    """Of the label; empty for none."""
    score: str = ""
    """Of the score of scored pairs; empty for none."""

    @property
    def beside(self) -> tuple[str, ...]:
        """Those of label and score that there are."""
        return tuple(name for name in (self.label, self.score) if name)

    @property
    def names(self) -> tuple[str, ...]:
        """All."""
        return (*self.texts, *self.beside)


def fields_of(source: SourceConfig) -> Fields:
    """The fields that a source names."""
    texts: tuple[str, ...] = (source.query_field, source.positive_field)
    if source.negative_field:
        texts = (*texts, source.negative_field)
    return Fields(texts, source.label_field, source.score_field)


def columns_of(field: str, present: Iterable[str]) -> list[str]:
    """Which columns a field names: the one of that name, those that it gives a number, or the one
    that its dotted path begins in.

    Example: `negative_*` names negative_1, negative_2 and negative_10, in that order.
    """
    names = list(present)
    if field in names:
        return [field]
    if NUMBERS in field:
        pattern = re.compile(re.escape(field).replace(re.escape(NUMBERS), r"(\d+)"))
        found = [(int(match[1]), name) for name in names if (match := pattern.fullmatch(name))]
        return [name for _, name in sorted(found)]
    parts = field.split(".")
    begins = (".".join(parts[:size]) for size in range(len(parts) - 1, 0, -1))
    return [begin for begin in begins if begin in names][:1]


def items_of(value: Any, fields: Fields, origin: Origin) -> list[Item]:
    """The pairs or triplets of the texts in fields of a record.

    A list of positives gives one each, and of negatives one with each positive. Without a negative
    a pair is kept: its negative is empty. All have the label and the score of the record.

    Args:
      value: a dict; anything else is a bad record.
      fields: of the texts, and of the label and the score where there are. A dot leads into an
        object, or into each object of a list; NUMBERS stands for a number.
      origin: where the record stands.
    Returns: as many as there are, or what is wrong: `wrong_type`, `missing_field`, `invalid_utf8`,
      `too_long`, `missing_label`, `wrong_label`, `missing_score`, `wrong_score` or NO_PAIR.
    """
    if not isinstance(value, dict):
        return [BadRecord("wrong_type", f"expected an object, got {kind_of(value)}", origin)]
    found = []
    for place, name in enumerate(fields.texts):
        is_needed = place < 2
        cells = [cell for cell in _cells(value, name) if is_needed or cell not in (None, "")]
        if is_needed and (not cells or None in cells):
            has = f"{name!r} is null" if cells else f"fields are {', '.join(value)[:200]}"
            return [BadRecord("missing_field", f"no text in {name!r}: {has}", origin)]
        texts = [text for cell in cells for text in (cell if isinstance(cell, list) else [cell])]
        if place == 0 and isinstance(cells[0], list):
            return [BadRecord("wrong_type", f"{name!r} holds an array, not a text", origin)]
        for text in texts:
            if flaw := _flaw(text):
                return [BadRecord(flaw[0], f"{name!r} holds {flaw[1]}", origin)]
        found.append(texts)
    (query, *_), positives, *negatives = found
    if not positives:
        return [BadRecord(NO_PAIR, f"the list {fields.texts[1]!r} is empty", origin)]
    label = _label(value, fields.label, origin) if fields.label else ""
    score = _score(value, fields.score, origin) if fields.score else None
    if isinstance(label, BadRecord):
        return [label]
    if isinstance(score, BadRecord):
        return [score]
    others = [text for text in negatives[0] if text] if negatives else []
    try:
        combined = each_with_each(query, positives, others)
    except ValueError as error:
        return [BadRecord("too_long", str(error), origin)]
    without = [""] if negatives else []
    return [
        pair_or_triplet((*texts, *without)[: len(fields.texts)], origin, label, score)
        for texts in combined
    ]


def _label(value: dict[str, Any], name: str, origin: Origin) -> str | BadRecord:
    """The label of a record as a text: 1, 1.0 and "1" are one label, and so are true and "true"."""
    found = _beside(value, name)
    if found is None:
        return BadRecord("missing_label", _nothing_in(value, name, "label"), origin)
    if isinstance(found, float) and found.is_integer():
        found = int(found)
    if isinstance(found, bool | int):
        return str(found).lower()
    if isinstance(found, str) and is_unicode(found):
        return found.strip()
    what = f"{name!r} holds {_shown(found)}; a label is a text, a whole number or a boolean"
    return BadRecord("wrong_label", what, origin)


def _score(value: dict[str, Any], name: str, origin: Origin) -> float | BadRecord:
    """The score of a record: a number, or a text that is one."""
    found = _beside(value, name)
    if found is None:
        return BadRecord("missing_score", _nothing_in(value, name, "score"), origin)
    try:
        is_number = isinstance(found, int | float | str) and not isinstance(found, bool)
        number = float(found) if is_number else math.nan
    except (ValueError, OverflowError):
        number = math.nan
    if abs(number) <= _LARGEST_SCORE:  # False for NaN.
        return number
    return BadRecord("wrong_score", f"{name!r} holds {_shown(found)}, not a finite number", origin)


def _beside(value: dict[str, Any], name: str) -> Any:
    """What stands in a field beside the texts; None for nothing or an empty text."""
    found = next(_cells(value, name), None)
    return None if isinstance(found, str) and not found.strip() else found


def _nothing_in(value: dict[str, Any], name: str, what: str) -> str:
    has = "it is empty" if columns_of(name, value) else f"fields are {', '.join(value)[:200]}"
    return f"no {what} in {name!r}: {has}"


def _shown(value: Any) -> str:
    is_plain = isinstance(value, str | int | float)
    return f"{value!r:.100}" if is_plain else kind_of(value)


def each_with_each(
    query: str, positives: Sequence[str], negatives: Sequence[str]
) -> list[tuple[str, ...]]:
    """A query with each positive, and that with each negative where there are any.

    Raises: ValueError where these are too many.
    """
    if len(positives) * len(negatives) > _MOST_TEXTS:
        raise ValueError(f"{len(positives):,} positives with {len(negatives):,} negatives each")
    if not negatives:
        return [(query, positive) for positive in positives]
    return [(query, positive, negative) for positive in positives for negative in negatives]


def _cells(record: dict[str, Any], field: str) -> Iterator[Any]:
    """What stands in a field: a value, or those of all fields that it gives a number."""
    for name in columns_of(field, record):
        is_path = field.startswith(f"{name}.")
        path = field.removeprefix(f"{name}.").split(".") if is_path else []
        yield from _within(record[name], path)


def _within(value: Any, path: Sequence[str]) -> Iterator[Any]:
    """What a path leads to: nothing where it ends too early, a list of all in objects of a list."""
    if not path:
        yield value
    elif isinstance(value, list):
        yield [found for item in value for found in _within(item, path)]
    elif isinstance(value, dict) and path[0] in value:
        yield from _within(value[path[0]], path[1:])


def _flaw(text: Any) -> tuple[str, str] | None:
    """Why a cell is no text: a reason for counting, and what it holds."""
    if isinstance(text, str):
        if len(text) > MAX_LINE_BYTES:
            return "too_long", f"a text of more than {MAX_LINE_BYTES:,} characters"
        return None if is_unicode(text) else ("invalid_utf8", "half of a surrogate pair")
    if isinstance(text, UnicodeDecodeError):
        return "invalid_utf8", f"what is not UTF-8: {text.reason}"
    return "wrong_type", f"{kind_of(text)}, not a text"


def kind_of(value: Any) -> str:
    """A value's kind in the words of JSON."""
    names = {dict: "an object", list: "an array", str: "a text", bool: "a boolean",
             UnicodeDecodeError: "what is not UTF-8"}  # fmt: skip
    return names.get(type(value), "null" if value is None else "a number")


def is_unicode(text: str) -> bool:
    """Whether the text can be encoded: JSON and Python can escape half of a surrogate pair."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


class Layout(NamedTuple):
    """What can be told of a source by one of its records."""

    file: str
    fields: tuple[str, ...]
    """All of an object."""
    query: str
    positive: str
    negative: str
    """Fields that go by common names, empty for none; where a list of objects, or an object, holds
    a `text`, that is meant."""
    texts: int
    """Of a record that is a list of two or three texts, or holds one in `texts` or `set`, as
    `embedding_texts` reads them; else 0."""
    score: str = ""
    """The field of a score or label beside two sentences: they need not belong together."""


def layout_of(record: Record) -> Layout:
    """Finds the fields of a record."""
    value = record.value
    fields = tuple(value) if isinstance(value, dict) else ()
    query, positive, negative = (
        _first(value, names) if fields else ""
        for names in (QUERY_NAMES, POSITIVE_NAMES, NEGATIVE_NAMES)
    )
    score = ""
    if not negative and positive.lower() in _SCORED:
        score = next(filter(_is_score, fields), "")
    return Layout(record.origin.file, fields, query, positive, negative, _texts(value), score)


def _texts(value: Any) -> int:
    if isinstance(value, dict):
        same = value.get("set")
        return _texts(value.get("texts")) or (_texts(same[:2]) if isinstance(same, list) else 0)
    is_list = isinstance(value, list) and len(value) in (2, 3)
    return len(value) if is_list and all(isinstance(text, str) for text in value) else 0


def _is_score(name: str) -> bool:
    return name.lower() in _SCORES


def _first(record: dict[str, Any], names: Sequence[str]) -> str:
    lowered = {name.strip().lower(): name for name in record}
    for name in names:
        if columns := columns_of(name, lowered):
            found = lowered[columns[0]] if NUMBERS not in name else _numbered(lowered, columns)
            return found + (".text" if _holds_text(record.get(found)) else "")
    return ""


def _numbered(lowered: dict[str, str], columns: Sequence[str]) -> str:
    """`Negative_*` of Negative_1, Negative_2, ..."""
    return re.sub(r"\d+$", lambda _: NUMBERS, lowered[columns[0]])


def _holds_text(value: Any) -> bool:
    if isinstance(value, list):
        return bool(value) and all(_holds_text(item) for item in value)
    return isinstance(value, dict) and "text" in value
