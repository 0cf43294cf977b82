"""Decontamination: drops pairs that hold a text of an evaluation set, or a long run of one.

Texts are compared as sequences of words: normalised (case, whitespace, composition) and without
punctuation. A pair leaks when a field of it
  is, as a whole, an evaluation text, or
  shares a run of `ngram_words` words with one, or
  holds all of one that has fewer words than that, but at least `min_words`.

The index is a sorted array of 64-bit hashes for each length of a run; a batch is looked up in it
array-wise. A run is taken for another with probability 2⁻⁶⁴ a comparison.
"""

import hashlib
import re
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar, NamedTuple

import numpy as np
import pyarrow as pa
import xxhash

from jina_jax.config import DecontaminationConfig, EvaluationSet
from jina_jax.errors import UserError
from jina_jax.prepare.filters.filter import Records, Verdict, verdict
from jina_jax.sources.rows import Row, evaluation_files, evaluation_rows
from jina_jax.system.files import open_file
from jina_jax.text.identity import HASH_BYTES, hash_normalised, normalise

_WORD = re.compile(r"\w+")
_FIELDS = ("query", "positive", "negative")
_WHOLE = f"S{HASH_BYTES}"


class EvaluationText(NamedTuple):
    """A text of an evaluation set."""

    task: str
    text: str


@dataclass(frozen=True)
class EvaluationIndex:
    """What `find_leaks` looks up; plain arrays, so it can be pickled to workers."""

    tasks: tuple[str, ...]
    texts_per_task: tuple[int, ...]
    """Different texts of each task, as words."""
    task_of_text_N: np.ndarray
    whole: tuple[np.ndarray, np.ndarray]
    """Of whole texts: sorted hashes, as bytes, and the number of the text of each; one that several
    tasks have is there as often."""
    runs: dict[int, tuple[np.ndarray, np.ndarray]]
    """Words of a run → (sorted hashes, number of the text of each)."""


@dataclass(frozen=True)
class LeakReport:
    """What was found, per task; sums over batches."""

    hit_texts: frozenset[int] = frozenset()
    """Numbers of the evaluation texts that training pairs held."""
    dropped: tuple[int, ...] = ()
    """Records dropped, by task; one that holds texts of two tasks counts for both."""

    def __add__(self, other: "LeakReport") -> "LeakReport":
        """The report of both batches, in whichever order."""
        longest = max(len(self.dropped), len(other.dropped))
        padded = [r.dropped + (0,) * (longest - len(r.dropped)) for r in (self, other)]
        total = tuple(a + b for a, b in zip(*padded, strict=True))
        return LeakReport(self.hit_texts | other.hit_texts, total)

    def by_task(self, index: EvaluationIndex) -> dict[str, dict[str, int]]:
        """For the manifest: task → `texts`, `texts_found` and `records_dropped`."""
        found = np.bincount(
            index.task_of_text_N[sorted(self.hit_texts)], minlength=len(index.tasks)
        )
        dropped = self.dropped or (0,) * len(index.tasks)
        return {
            task: {
                "texts": index.texts_per_task[number],
                "texts_found": int(found[number]),
                "records_dropped": dropped[number],
            }
            for number, task in enumerate(index.tasks)
        }


def build_index(
    texts: Iterable[EvaluationText], *, ngram_words: int, min_words: int
) -> EvaluationIndex:
    """Hashes evaluation texts.

    Args:
      texts: of all tasks; one that occurs twice in a task counts once.
      ngram_words: longest run that is looked for.
      min_words: a text of fewer words is found only as a whole.
    """
    tasks: dict[str, int] = {}
    seen: set[bytes] = set()
    whole, task_of_text = bytearray(), array("i")
    hashes: dict[int, list[np.ndarray]] = {}
    owners: dict[int, array[int]] = {}
    for task, text in texts:
        words = _words(text)
        key = _whole_hash(text, words)
        task_number = tasks.setdefault(task, len(tasks))
        if (of_task := task_number.to_bytes(4, "big") + key) in seen:
            continue
        seen.add(of_task)
        number = len(task_of_text)
        task_of_text.append(task_number)
        whole += key
        if len(words) >= min_words:
            length = min(len(words), ngram_words)
            found = np.unique(_run_hashes(_word_hashes(words), length))
            hashes.setdefault(length, []).append(found)
            owners.setdefault(length, array("i")).append(number)
    task_of_text_N = np.array(task_of_text, np.int32)
    runs = {}
    for length in sorted(hashes):
        of_texts = hashes.pop(length)
        owner_G = np.repeat(np.array(owners[length], np.int32), [len(h) for h in of_texts])
        runs[length] = _sorted(np.concatenate(of_texts), owner_G)
    numbers_N = np.arange(len(task_of_text_N), dtype=np.int32)
    return EvaluationIndex(
        tasks=tuple(tasks),
        texts_per_task=tuple(np.bincount(task_of_text_N, minlength=len(tasks)).tolist()),
        task_of_text_N=task_of_text_N,
        whole=_sorted(np.frombuffer(bytes(whole), _WHOLE), numbers_N),
        runs=runs,
    )


class Leaks(NamedTuple):
    """What `find_leaks` says of the records of a batch."""

    reasons: list[str]
    details: list[str]
    report: LeakReport


def find_leaks(batch: pa.RecordBatch, index: EvaluationIndex) -> Leaks:
    """Finds the records that hold evaluation texts.

    Args:
      batch: with string columns `query`, `positive` and, of triplets, `negative`.
      index: of the evaluation sets.
    Returns: reasons: `evaluation_text` where a field is one as a whole, `evaluation_ngram` where
      it shares a run of words, empty to keep; details such as `positive shares 13 words with
      sts-dev`; and the report of this batch.
    """
    hits: list[dict[int, str]] = [{} for _ in range(batch.num_rows)]
    reasons = [""] * batch.num_rows
    for field in _FIELDS:
        if field not in batch.schema.names:
            continue
        texts = batch.column(field).to_pylist()
        words_N = [_words(text) for text in texts]
        for row, number in _whole_texts(texts, words_N, index):
            hits[row].setdefault(number, f"{field} is a text of")
            reasons[row] = "evaluation_text"
        for row, number, length in _shared_runs(words_N, index):
            hits[row].setdefault(number, f"{field} shares {length} words with")
            reasons[row] = reasons[row] or "evaluation_ngram"
    details = [_detail(found, index) for found in hits]
    dropped = np.zeros(len(index.tasks), int)
    for found in hits:
        dropped[list({int(index.task_of_text_N[number]) for number in found})] += 1
    report = LeakReport(frozenset().union(*hits), tuple(dropped.tolist()))
    return Leaks(reasons, details, report)


def _words(text: str) -> list[str]:
    return _WORD.findall(normalise(text))


def _whole_hash(text: str, words: list[str]) -> bytes:
    # A text of punctuation alone is compared as it is.
    return hash_normalised(" ".join(words) or normalise(text))


def _word_hashes(words: list[str]) -> np.ndarray:
    hashes = (xxhash.xxh3_64_intdigest(word.encode()) for word in words)
    return np.fromiter(hashes, np.uint64, len(words))


def _run_hashes(word_hashes_W: np.ndarray, length: int) -> np.ndarray:
    """Hash of the run that starts at each word; one for each of the W − length + 1 runs."""
    count = len(word_hashes_W) - length + 1
    total = np.zeros(max(count, 0), np.uint64)
    for place in range(length):
        # An odd multiplier for each place: the order of words counts, and no word is lost.
        multiplier = np.uint64(xxhash.xxh3_64_intdigest(b"%d" % place) | 1)
        total += word_hashes_W[place : place + len(total)] * multiplier
    return total


def _sorted(hashes_G: np.ndarray, owners_G: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    order = np.lexsort((owners_G, hashes_G))
    return hashes_G[order], owners_G[order]


def _whole_texts(
    texts: list[str], words_N: list[list[str]], index: EvaluationIndex
) -> Iterator[tuple[int, int]]:
    """(row, number of the evaluation text) of every text that is one."""
    hashes, owners = index.whole
    keys = b"".join(_whole_hash(t, words) for t, words in zip(texts, words_N, strict=True))
    key_N = np.frombuffer(keys, _WHOLE)
    first_N, last_N = (np.searchsorted(hashes, key_N, side) for side in ("left", "right"))
    for row in np.flatnonzero(last_N > first_N).tolist():
        for number in owners[first_N[row] : last_N[row]].tolist():
            yield row, number


def _shared_runs(
    words_N: list[list[str]], index: EvaluationIndex
) -> Iterable[tuple[int, int, int]]:
    """(row, number of the evaluation text, words of the run) of every run that is shared."""
    row_of_word_W = np.repeat(np.arange(len(words_N)), [len(words) for words in words_N])
    word_hashes_W = _word_hashes([word for words in words_N for word in words])
    for length, (hashes_G, owners_G) in index.runs.items():
        runs = _run_hashes(word_hashes_W, length)
        # A run lies within one text.
        rows = row_of_word_W[: len(runs)]
        inside = rows == row_of_word_W[length - 1 :]
        runs, rows = runs[inside], rows[inside]
        first = np.searchsorted(hashes_G, runs, "left")
        for at in np.flatnonzero(hashes_G[np.minimum(first, len(hashes_G) - 1)] == runs):
            last = np.searchsorted(hashes_G, runs[at], "right")
            for number in owners_G[first[at] : last]:
                yield int(rows[at]), int(number), length


def _detail(found: dict[int, str], index: EvaluationIndex) -> str:
    tasks: dict[str, str] = {}
    for number, what in found.items():
        tasks.setdefault(index.tasks[index.task_of_text_N[number]], what)
    return "; ".join(f"{what} {task}" for task, what in tasks.items())


_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True)
class DecontaminationFilter:
    """Drops what `find_leaks` finds; `decontamination_filter` makes one.

    It holds no index, so that it travels between processes: each reads the sets once.
    """

    config: DecontaminationConfig
    sets_sha256: str
    """Of the evaluation files: other files under the same names make another filter."""
    name: ClassVar[str] = "decontamination"
    version: ClassVar[int] = 1
    records: ClassVar[tuple[Records, ...]] = ("pair", "triplet", "scored")
    score_range: ClassVar[tuple[float, float]] = (0.0, 1.0)

    def __call__(self, batch: pa.RecordBatch) -> Verdict:
        """Reasons `evaluation_text` and `evaluation_ngram`; it gives no score."""
        leaks = find_leaks(batch, load_index(self.config, self.sets_sha256))
        return verdict(leaks.reasons, leaks.details)


def decontamination_filter(config: DecontaminationConfig) -> DecontaminationFilter:
    """The filter with the hash of its sets, which are read once here, before hours of work.

    Raises: UserError when a file or a field is missing or cannot be read.
    """
    sha256 = _sets_sha256(config)
    load_index(config, sha256)
    return DecontaminationFilter(config, sha256)


@lru_cache(maxsize=1)
def load_index(config: DecontaminationConfig, sha256: str) -> EvaluationIndex:
    """Reads all evaluation sets and hashes their texts, once in a process.

    Args:
      config: the sets and the lengths of runs.
      sha256: of their files.
    Raises: UserError when a file or a field is missing or cannot be read, or a file changed.
    """
    if _sets_sha256(config) != sha256:
        raise UserError(
            "the files of data.decontamination.sets are not those the preparation began with: "
            "use the same files on every machine and leave them as they are"
        )
    texts = (text for evaluation in config.sets for text in evaluation_texts(evaluation))
    return build_index(texts, ngram_words=config.ngram_words, min_words=config.min_words)


def leak_report(
    batches: Iterable[pa.RecordBatch], stage: DecontaminationFilter
) -> dict[str, dict[str, int]]:
    """What was found of each task: `texts`, `texts_found` and `records_dropped`.

    Args:
      batches: all records that the filter dropped, such as its rows of the ledger; those that it
        kept would change nothing.
      stage: the filter.
    """
    index = load_index(stage.config, stage.sets_sha256)
    total = sum((find_leaks(batch, index).report for batch in batches), LeakReport())
    return total.by_task(index)


def _sets_sha256(config: DecontaminationConfig) -> str:
    digest = hashlib.sha256()
    for evaluation in config.sets:
        for path in evaluation_files(evaluation):
            with open_file(path) as file:
                while chunk := file.read(_CHUNK_BYTES):
                    digest.update(chunk)
            digest.update(b"\0")
    return digest.hexdigest()


def evaluation_texts(evaluation: EvaluationSet) -> Iterator[EvaluationText]:
    """The texts of a set, in the order of its files.

    Args:
      evaluation: files, their kind, and the fields that hold texts or lists of texts. A null or
        blank field holds none.
    Raises: UserError naming the file and row that cannot be read or lacks a field, and when there
      is no text at all: a leak that is not looked for is found too late.
    """
    empty = True
    for row in evaluation_rows(evaluation):
        for text in _texts_of(evaluation, row):
            empty = False
            yield EvaluationText(evaluation.name, text)
    if empty:
        raise UserError(f"evaluation set {evaluation.name!r} has no text: check paths and fields")


def _texts_of(evaluation: EvaluationSet, row: Row) -> Iterator[str]:
    for field in evaluation.fields or ("",):
        cell = row.field(field)
        for text in cell if isinstance(cell, list) else [] if cell is None else [cell]:
            if not isinstance(text, str):
                raise row.error(f"holds {type(text).__name__} in field {field!r}, not a text")
            if text.strip():
                yield text
