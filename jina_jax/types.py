"""The records that travel through the system, and the letters that name array axes.

Axis letters, used as suffixes of array names (`z_BD`) and in jaxtyping annotations:

| letter | axis |
|---|---|
| A | rank of an adapter |
| B | pairs or triplets of the global batch |
| C | passages of a corpus |
| D | embedding dimension (`d_model`) |
| E | first dimensions of an embedding |
| F | feed-forward dimension (`d_ff`) |
| H | attention heads |
| I, O | what a linear map takes and gives |
| K | dimension of one head (`d_kv`) |
| L | token positions of a row |
| M | sampled passages that pairs are compared with |
| N | any number of texts or records |
| Q, P | query and key positions inside attention |
| R | packed rows |
| S | segments (texts) of a packed row |
| T | texts of a record: query, positive and hard negatives |
| V | vocabulary |
"""

from typing import Any, NamedTuple


class Origin(NamedTuple):
    """Where a record was read."""

    file: str
    """Path as configured, or a module name for `pydocs`."""
    row: int
    """1-based line of a text file, 1-based row of a table, or line of a docstring's owner."""


class Record(NamedTuple):
    """A record as its source has it."""

    value: Any
    """Field → value, another JSON value, or a line of text."""
    origin: Origin


class Pair(NamedTuple):
    """One (query, positive) pair as a source gave it."""

    query: str
    positive: str
    origin: Origin
    label: str = ""
    """Of a source with labels."""
    score: float | None = None
    """Of a source of scored pairs."""

    @property
    def texts(self) -> tuple[str, str]:
        """Query and positive."""
        return self.query, self.positive


class Triplet(NamedTuple):
    """One (query, positive, negative) triplet as a source gave it."""

    query: str
    positive: str
    negative: str
    """Empty where a source of triplets has a pair without one."""
    origin: Origin
    label: str = ""
    """Of a source with labels."""

    @property
    def texts(self) -> tuple[str, str, str]:
        """Query, positive and negative."""
        return self.query, self.positive, self.negative


NO_PAIR = "no_pair"
"""Reason of a record that can be read and of which no pair is wanted; it counts as dropped."""


class BadRecord(NamedTuple):
    """A record that gives no pair: it is counted and written to the ledger, never raised."""

    reason: str
    """A word for counting: `malformed_json`, `missing_field`, `wrong_type`, `invalid_utf8`, ..."""
    detail: str
    """A sentence for a person."""
    origin: Origin
