"""From whole records to pairs and triplets, for sources that name an extractor or a data set."""

from collections.abc import Callable, Hashable, Iterable, Iterator
from typing import Any, NamedTuple

from jina_jax.config import SourceConfig
from jina_jax.errors import UserError
from jina_jax.sources.chunks import Item, pair_or_triplet
from jina_jax.sources.datasets import read_hf, read_tfds
from jina_jax.sources.fields import each_with_each, fields_of, is_unicode, items_of, kind_of
from jina_jax.sources.kinds import file_kind
from jina_jax.sources.records import read_file_records
from jina_jax.types import NO_PAIR, BadRecord, Origin, Pair, Record, Triplet

Texts = tuple[str, ...]
"""Two of a pair, three of a triplet."""


def embedding_texts(record: Any) -> list[Texts]:
    """A line of sentence-transformers/embedding-training-data, in any of its five shapes.

    `[a, b]` is a pair and `[anchor, positive, negative]` a triplet; `{"texts": [...]}`, which the
    collections of flax-sentence-embeddings have, is read as such a list. Of `{"set": [...]}` the
    first text is paired with each other one: pairs that share a query are masked in the loss,
    chains would not be. `{"query", "pos": [...]}` gives a pair for each positive, and with
    `"neg": [...]` each positive with each negative; a pair alone where that is empty.
    """
    if isinstance(record, dict) and "texts" in record:
        record = _texts(record["texts"])
    if isinstance(record, list):
        if len(record) not in (2, 3):
            raise ValueError(f"expected 2 or 3 texts, got {len(record)}")
        return [tuple(record)]
    if "set" in record:
        first, *others = record["set"]
        return [(first, other) for other in others]
    return each_with_each(record["query"], _texts(record["pos"]), _texts(record.get("neg") or []))


def _texts(value: Any) -> list[str]:
    if isinstance(value, str):
        return [value]
    if not isinstance(value, list):
        raise TypeError(f"expected a list of texts, got {type(value).__name__}")
    return value


class Judged(NamedTuple):
    """A query, and the texts that were judged to answer it or not to, which are taken once."""

    query: str
    positives: Iterable[str]
    negatives: Iterable[str]

    def pairs(self) -> list[Texts]:
        """The query with each positive."""
        return [(self.query, positive) for positive in self.positives]

    def triplets(self) -> list[Texts]:
        """Triplets in which each positive and each negative occurs at least once."""
        positives, negatives = list(self.positives), list(self.negatives)
        if not positives or not negatives:
            return []
        return [
            (self.query, positives[i % len(positives)], negatives[i % len(negatives)])
            for i in range(max(len(positives), len(negatives)))
        ]


def _ms_marco(record: Any) -> Judged:
    """MS MARCO question answering: the passages that an annotator selected or was only shown."""
    passages = record["passages"]
    marked = list(zip(passages["passage_text"], passages["is_selected"], strict=True))
    return Judged(
        record["query"],
        (text for text, mark in marked if mark == 1),
        (text for text, mark in marked if mark != 1),
    )


def _hotpotqa(record: Any) -> Judged:
    """HotpotQA: the paragraphs that hold a supporting fact, and the other ones."""
    context, titles = record["context"], set(record["supporting_facts"]["title"])

    def paragraphs(supporting: bool) -> Iterator[str]:
        for title, sentences in zip(context["title"], context["sentences"], strict=True):
            if (title in titles) == supporting:
                yield f"{title} {''.join(sentences).strip()}"

    return Judged(record["question"], paragraphs(True), paragraphs(False))


def answer_list(record: Any) -> list[Texts]:
    """NQ-open: `question` with each text of the list `answer`."""
    return [(record["question"], answer) for answer in _texts(record["answer"])]


def triviaqa_pairs(record: Any) -> list[Texts]:
    """TriviaQA: the question with its answer."""
    return [(record["question"], record["answer"]["value"])]


def duplicate_questions(record: Any) -> list[Texts]:
    """Quora question pairs as in GLUE: `question1` and `question2` where `label` is 1."""
    return [(record["question1"], record["question2"])] if record["label"] == 1 else []


def stack_exchange_votes(record: Any) -> list[Texts]:
    """A Stack Exchange question with an answer voted up and one voted down."""
    return [(record["title_body"], record["upvoted_answer"], record["downvoted_answer"])]


def wikisplit(record: Any) -> list[Texts]:
    """A line of WikiSplit: a sentence, a tab, and its two halves parted by `<::::>`."""
    sentence, halves = record.split("\t")
    first, second = halves.split("<::::>")
    return [(sentence, f"{first.strip()} {second.strip()}")]


def sts_pairs(record: Any) -> list[Texts]:
    """A line of STS Benchmark: the two sentences where the score is 4 or more of 5."""
    _, _, _, _, score, first, second, *_ = record.split("\t")
    return [(first, second)] if float(score) >= 4 else []


class Grouped(NamedTuple):
    """An extractor that needs several records at once."""

    key: Callable[[Any, Hashable], Hashable]
    """(record, key of the record before or None) → key of its group."""
    texts: Callable[[list[Any]], list[Texts]]
    """Records of one group, in the order of the source → texts."""


_NLI_LABELS = {0: "entailment", 1: "neutral", 2: "contradiction"}


def _nli(group: list[Any]) -> Judged:
    # Hub and TFDS number the labels, the original files name them; -1 or '-' is no consensus.
    labels = [_NLI_LABELS.get(r["label"], r["label"]) for r in group]

    def hypotheses(label: str) -> Iterator[str]:
        return (r["hypothesis"] for r, given in zip(group, labels, strict=True) if given == label)

    return Judged(group[0]["premise"], hypotheses("entailment"), hypotheses("contradiction"))


def _esci(group: list[Any]) -> Judged:
    american = [r for r in group if r["product_locale"] == "us"]

    def titles(label: str) -> Iterator[str]:
        return (r["product_title"] for r in american if r["esci_label"] in (label, label[0]))

    return Judged(group[0]["query"], titles("Exact"), titles("Irrelevant"))


def _trivia_block(line: Any, before: Hashable) -> Hashable:
    assert before is None or isinstance(before, int)
    return (before or 0) + line.startswith("#Q ")


def _opentrivia(block: list[Any]) -> list[Texts]:
    answer = next(i for i, line in enumerate(block) if line.startswith("^ "))
    question = " ".join(line.strip() for line in block[:answer])
    if not question.startswith("#Q "):
        raise ValueError("the block does not start with #Q")
    return [(question.removeprefix("#Q ").strip(), block[answer].removeprefix("^ ").strip())]


PER_RECORD: dict[str, Callable[[Any], list[Texts]]] = {
    "answer_list": answer_list,
    "duplicate_questions": duplicate_questions,
    "embedding_texts": embedding_texts,
    "esci_pairs": lambda record: _esci([record]).pairs(),
    "hotpotqa_pairs": lambda record: _hotpotqa(record).pairs(),
    "hotpotqa_triplets": lambda record: _hotpotqa(record).triplets(),
    "ms_marco_pairs": lambda record: _ms_marco(record).pairs(),
    "ms_marco_triplets": lambda record: _ms_marco(record).triplets(),
    "nli_pairs": lambda record: _nli([record]).pairs(),
    "nli_reversed": lambda record: [pair[::-1] for pair in _nli([record]).pairs()],
    "stack_exchange_votes": stack_exchange_votes,
    "sts_pairs": sts_pairs,
    "triviaqa_pairs": triviaqa_pairs,
    "wikisplit": wikisplit,
}
GROUPED: dict[str, Grouped] = {
    "esci_triplets": Grouped(
        lambda record, _: record["query"], lambda group: _esci(group).triplets()
    ),
    "nli_triplets": Grouped(
        lambda record, _: record["premise"], lambda group: _nli(group).triplets()
    ),
    "opentrivia": Grouped(_trivia_block, _opentrivia),
}
"""Values of `SourceConfig.extractor`, in these two tables."""


MAX_HELD_GROUPS = 250_000
"""Groups kept open at once. MNLI has 130,000 premises whose three hypotheses stand far apart."""
MAX_GROUP_RECORDS = 1_000
"""A larger group is given out as it is and begun anew, so that memory stays bounded."""
_WRONG_SHAPE = (KeyError, TypeError, IndexError, ValueError, AttributeError, StopIteration)


def reads_records(source: SourceConfig) -> bool:
    """Whether `read_extracted` reads this source, rather than a reader of two columns."""
    return bool(source.extractor) or source.kind in ("text", "tfds", "hf")


def read_extracted(
    source: SourceConfig, files: Iterable[str], start: int = 0, end: int | None = None
) -> Iterator[Item]:
    """Reads whole records and takes the texts out of them.

    Args:
      source: one that `reads_records`.
      files: of the source; none for `tfds` and `hf`.
      start: of `tfds` and `hf`, the first unit, as for their readers.
      end: the unit after the last; None reads to the end.
    Returns: triplets where the source names a `negative_field`, without a negative where the record
      has none, else pairs; in the order of the source, or for a grouping extractor in the order in
      which groups begin; a BadRecord for each record, or group, that is not of the expected shape
      or of which nothing is wanted.
    Raises: UserError when there is no such extractor, or a file or data set cannot be read.
    """
    for item in _read(source, read_records(source, files, start, end)):
        if isinstance(item, Pair) and source.negative_field:
            yield Triplet(item.query, item.positive, "", item.origin, item.label)
        elif isinstance(item, Triplet) and not source.negative_field:
            what = "a triplet, but the source names no negative_field: name it for triplets"
            yield BadRecord("wrong_shape", what, item.origin)
        else:
            yield item


def _read(source: SourceConfig, records: Iterable[Record | BadRecord]) -> Iterator[Item]:
    name, fields = source.extractor, fields_of(source)
    if name in GROUPED:
        yield from _grouped(records, GROUPED[name], name)
        return
    if name and name not in PER_RECORD:
        raise UserError(
            f"source {source.name!r}: no extractor {name!r}; there are "
            f"{', '.join(sorted(PER_RECORD | GROUPED))}"
        )
    for record in records:
        if isinstance(record, BadRecord):
            yield record
        elif name:
            yield from _extracted(PER_RECORD[name], record.value, name, record.origin)
        else:
            yield from items_of(record.value, fields, record.origin)


def read_records(
    source: SourceConfig, files: Iterable[str], start: int = 0, end: int | None = None
) -> Iterator[Record | BadRecord]:
    """The records of a source, as they are.

    Args:
      source: of files, `tfds` or `hf`.
      files: of the source; none for `tfds` and `hf`.
      start: as for `read_extracted`.
      end: as for `read_extracted`.
    Raises: UserError when a file or data set cannot be read.
    """
    if source.kind == "hf":
        yield from read_hf(source, start, end)
    elif source.kind == "tfds":
        yield from read_tfds(source, start, end)
    else:
        has_header = not any(map(str.isdecimal, fields_of(source).names))
        for path in files:
            kind = file_kind(path, source.kind)
            yield from read_file_records(path, kind, has_header=has_header)


def _extracted(
    extract: Callable[[Any], list[Texts]], value: Any, name: str, origin: Origin
) -> Iterator[Item]:
    try:
        found = extract(value)
    except _WRONG_SHAPE as error:
        what = f"not what {name} reads: {type(error).__name__}: {error}"
        yield BadRecord("wrong_shape", what, origin)
        return
    if not found:
        yield BadRecord(NO_PAIR, f"{name} takes nothing from it", origin)
    for texts in found:
        if wrong := [text for text in texts if not isinstance(text, str)]:
            yield BadRecord("wrong_type", f"{name} found {kind_of(wrong[0])}, not a text", origin)
        elif not all(map(is_unicode, texts)):
            yield BadRecord("invalid_utf8", f"{name} found half of a surrogate pair", origin)
        else:
            yield pair_or_triplet(texts, origin)


def _grouped(records: Iterable[Record | BadRecord], grouped: Grouped, name: str) -> Iterator[Item]:
    """Collects groups whose records may stand apart; the oldest goes first when too many wait."""
    held: dict[Hashable, list[Record]] = {}
    key: Hashable = None
    for record in records:
        if isinstance(record, BadRecord):
            yield record
            continue
        try:
            key = grouped.key(record.value, key)
            hash(key)  # A list where a text should be has none: a TypeError.
        except _WRONG_SHAPE as error:
            what = f"not what {name} reads: {type(error).__name__}: {error}"
            yield BadRecord("wrong_shape", what, record.origin)
            continue
        group = held.setdefault(key, [])
        group.append(record)
        if len(group) == MAX_GROUP_RECORDS:
            yield from _group(held.pop(key), grouped, name)
        elif len(held) > MAX_HELD_GROUPS:
            yield from _group(held.pop(next(iter(held))), grouped, name)
    for group in held.values():
        yield from _group(group, grouped, name)


def _group(group: list[Record], grouped: Grouped, name: str) -> Iterator[Item]:
    values = [record.value for record in group]
    yield from _extracted(grouped.texts, values, name, group[0].origin)
