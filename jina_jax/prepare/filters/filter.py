"""What a filter is: a pure function over Arrow batches that keeps each record or says why not.

A filter is a frozen dataclass: its fields are its configuration, and name, version and fields
together say what it does (`filter_key`). It must be picklable, and hold no open file or model:
those are opened when it is called, and may be cached by the module that needs them.

Every batch holds records of one source, with columns query, positive, query_hash, positive_hash
and, for triplets, negative and negative_hash.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal, NamedTuple, Protocol, runtime_checkable

import numpy as np
import pyarrow as pa

from jina_jax.config.files import unchangeable_fields
from jina_jax.errors import UserError
from jina_jax.system.hashing import content_key
from jina_jax.system.store import StoredFolder

Records = Literal["pair", "triplet", "scored"]
"""Kinds of records: pairs, triplets and scored pairs."""


class Verdict(NamedTuple):
    """What a filter says of N records."""

    reason_N: np.ndarray
    """str objects; an empty one keeps the record, another is the word it is counted under."""
    detail_N: np.ndarray
    """str objects: a sentence for a person, read where the record is dropped."""
    score_N: np.ndarray | None
    """float32, for the ledger and the histogram; None where the filter has none."""


@runtime_checkable
class Stage(Protocol):
    """What filters of both kinds have."""

    name: ClassVar[str]
    """Names the stage in the ledger and the manifest."""
    version: ClassVar[int]
    """Raised when the same configuration decides otherwise."""
    records: ClassVar[tuple[Records, ...]]
    """Kinds of records it looks at; others pass."""

    @property
    def score_range(self) -> tuple[float, float]:
        """Ends of the histogram of its scores."""
        ...


@runtime_checkable
class Filter(Stage, Protocol):
    """A filter that is cheap enough to run again when its configuration changes."""

    def __call__(self, batch: pa.RecordBatch) -> Verdict:
        """Judges a few thousand records at most."""
        ...


Batches = Iterator[pa.RecordBatch]
"""Records that a scorer learns from, some thousand at a time."""


@dataclass(frozen=True)
class Learnt:
    """What a scorer learnt of a source."""

    key: str
    """A hash of all that scores depend on besides the records."""
    folder: StoredFolder | None = None
    """As `Scorer.fit` left it; None where there is nothing to learn."""

    def local(self) -> Path:
        """The folder, on this machine."""
        assert self.folder is not None
        return self.folder.local()


@runtime_checkable
class Scorer(Stage, Protocol):
    """A filter in two halves: scores that cost much and are kept, and a cheap decision.

    A score depends on the record's texts, on the scorer and on what it learnt of the source; those
    of an earlier preparation are used again.
    """

    thresholds: ClassVar[tuple[str, ...]]
    """Fields that scores do not depend on, such as `config.top_k`, beyond what was learnt."""
    needs_accelerator: ClassVar[bool]
    """Its tasks go to workers with a TPU or GPU where there are any."""
    teaches: ClassVar[slice | None]
    """Columns of its scores that are of the query with each other text, to be distilled from; None
    where none are."""

    @property
    def sample_size(self) -> int:
        """Records of a source that it learns from: those with the lowest hashes of all unique ones,
        whatever other filters drop; 0 where it learns nothing.
        """
        ...

    def fit(self, batches: Batches, folder: Path) -> None:
        """Learns once per source what its scores depend on besides the record itself.

        Args:
          batches: the positives of the sample and their hashes, by ascending hash of the record.
          folder: empty; for what `score` is to read. The same records must give the same bytes.
        """
        ...

    def score(self, batch: pa.RecordBatch, learnt: Learnt) -> np.ndarray:
        """Scores records: float32 [N, S], as many numbers a record as `decide` reads.

        Args:
          batch: some thousand records of the source.
          learnt: of the source; equal for all of its batches.
        """
        ...

    def decide(self, batch: pa.RecordBatch, score_NS: np.ndarray, learnt: Learnt) -> Verdict:
        """Keeps or drops records by their scores."""
        ...


def filter_key(stage: Stage) -> str:
    """A hash of everything that decides what a filter does."""
    return content_key(stage.name, stage.version, unchangeable_fields(stage))


def score_key(scorer: Scorer) -> str:
    """A hash of everything that a scorer's scores depend on, its thresholds not among it."""
    fields = unchangeable_fields(scorer)
    assert set(scorer.thresholds) <= set(fields), f"{scorer.name} lacks a field of its thresholds"
    kept = {name: value for name, value in fields.items() if name not in scorer.thresholds}
    return content_key(scorer.name, scorer.version, kept)


def check_unchanged(model: str | Path, sha256: str, expected: str) -> None:
    """Raises UserError where a model is another one than the preparation began with."""
    if sha256 != expected:
        raise UserError(
            f"{model} is another model than the preparation began with (sha256 is not {expected}): "
            f"use the same file on every machine"
        )


def verdict(
    reasons: Sequence[str] | np.ndarray,
    details: Sequence[str] | np.ndarray | None = None,
    scores: np.ndarray | None = None,
) -> Verdict:
    """A Verdict of plain lists.

    Args:
      reasons: N words, empty to keep.
      details: N sentences; None for none.
      scores: float32 [N]; None for none.
    """
    reason_N = np.array(reasons, object)
    detail_N = np.full(len(reason_N), "", object) if details is None else np.array(details, object)
    return Verdict(reason_N, detail_N, scores)
