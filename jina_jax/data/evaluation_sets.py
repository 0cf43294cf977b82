"""The decontamination filter, and the evaluation sets that it reads.

Of evaluation sets, unlike training records, nothing that cannot be read is passed over.
"""

import csv
import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar

import pyarrow as pa

from jina_jax.data.decontaminate import (
    EvaluationIndex,
    EvaluationText,
    LeakReport,
    build_index,
    find_leaks,
)
from jina_jax.data.files import find_files, open_file
from jina_jax.data.filters import Records, Verdict, verdict
from jina_jax.data.lines import MAX_LINE_BYTES, Damage, read_lines
from jina_jax.data.records import decode, read_file_records
from jina_jax.errors import UserError
from jina_jax.filter_config import DecontaminationConfig, EvaluationSet
from jina_jax.types import BadRecord, Origin

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
    records: ClassVar[tuple[Records, ...]] = ("pair", "triplet")
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
        for path in _files(evaluation):
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
    for path in _files(evaluation):
        try:
            for row, value in _rows(evaluation, path):
                for text in _texts_of(evaluation, value, f"{path}:{row}"):
                    empty = False
                    yield EvaluationText(evaluation.name, text)
        except OSError as error:
            raise UserError(
                f"evaluation set {evaluation.name!r}: cannot read {path}: {error}"
            ) from error
    if empty:
        raise UserError(f"evaluation set {evaluation.name!r} has no text: check paths and fields")


def _files(evaluation: EvaluationSet) -> Iterator[str]:
    for pattern in evaluation.paths:
        found = find_files(pattern)
        if not found:
            raise UserError(
                f"evaluation set {evaluation.name!r}: {pattern!r} matches no file; "
                f"check data.decontamination.sets[...].paths"
            )
        yield from found


def _rows(evaluation: EvaluationSet, path: str) -> Iterator[tuple[int, Any]]:
    if evaluation.kind in ("csv", "tsv"):
        yield from _delimited(evaluation, path)
        return
    for record in read_file_records(path, evaluation.kind):
        if isinstance(record, BadRecord):
            raise _unreadable(evaluation, record)
        yield record.origin.row, record.value


def _delimited(evaluation: EvaluationSet, path: str) -> Iterator[tuple[int, dict[str, str]]]:
    csv.field_size_limit(MAX_LINE_BYTES)
    delimiter = "," if evaluation.kind == "csv" else "\t"
    rows = csv.DictReader(_lines(evaluation, path), delimiter=delimiter, strict=True)
    try:
        for row in rows:
            if None in row or None in row.values():
                raise csv.Error("the row has another number of cells than the header")
            yield rows.line_num, row
    except csv.Error as error:
        origin = Origin(path, rows.line_num)
        raise _unreadable(evaluation, BadRecord("malformed_row", str(error), origin)) from error


def _lines(evaluation: EvaluationSet, path: str) -> Iterator[str]:
    for row, line in read_lines(path):
        origin = Origin(path, row)
        if isinstance(line, Damage):
            raise _unreadable(evaluation, BadRecord(line.reason, line.detail, origin))
        text = decode(line, origin)
        if isinstance(text, BadRecord):
            raise _unreadable(evaluation, text)
        yield text + "\n"


def _unreadable(evaluation: EvaluationSet, bad: BadRecord) -> UserError:
    return UserError(
        f"evaluation set {evaluation.name!r}: {bad.origin.file}:{bad.origin.row} cannot be read "
        f"({bad.reason}: {bad.detail}); mend the file: a text that is not read is not looked for"
    )


def _texts_of(evaluation: EvaluationSet, value: Any, where: str) -> Iterator[str]:
    if evaluation.kind == "text":
        cells = value.split("\t")
        named = {str(number): cell for number, cell in enumerate(cells, start=1)}
        value = named if evaluation.fields else {"": value}
    if not isinstance(value, dict):
        raise UserError(f"evaluation set {evaluation.name!r}: {where} holds no object")
    for field in evaluation.fields or ("",):
        if field not in value:
            raise UserError(
                f"evaluation set {evaluation.name!r}: {where} has no field {field!r}; it has "
                f"{', '.join(value)[:200]}. Set data.decontamination.sets[...].fields"
            )
        cell = value[field]
        for text in cell if isinstance(cell, list) else [] if cell is None else [cell]:
            if not isinstance(text, str):
                raise UserError(
                    f"evaluation set {evaluation.name!r}: field {field!r} of {where} holds "
                    f"{type(text).__name__}, not a text"
                )
            if text.strip():
                yield text
