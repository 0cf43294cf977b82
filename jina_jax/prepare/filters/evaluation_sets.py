"""The decontamination filter, and the texts of the evaluation sets that it reads."""

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

import pyarrow as pa

from jina_jax.config import DecontaminationConfig, EvaluationSet
from jina_jax.errors import UserError
from jina_jax.prepare.filters.decontaminate import (
    EvaluationIndex,
    EvaluationText,
    LeakReport,
    build_index,
    find_leaks,
)
from jina_jax.prepare.filters.filter import Records, Verdict, verdict
from jina_jax.sources.rows import Row, evaluation_files, evaluation_rows
from jina_jax.system.files import open_file

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
