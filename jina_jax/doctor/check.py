"""A check of the doctor: what was looked at, how it is, and what helps."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

from jina_jax.errors import UserError

Verdict = Literal["ok", "warning", "failed"]


@dataclass(frozen=True)
class Check:
    """One line of the report."""

    subject: str
    verdict: Verdict
    detail: str
    """What was found."""
    remedy: str = ""
    """What helps; empty where nothing has to."""


Checks = Iterator[Check]


def guarded(subject: str, checks: Callable[[], Checks]) -> Checks:
    """The checks of a function; what it cannot read becomes a failed one of its subject.

    Args:
      subject: of the failed check.
      checks: may raise UserError, whose message says what helps.
    """
    try:
        yield from checks()
    except UserError as error:
        what, _, remedy = str(error).partition("; ")
        yield Check(subject, "failed", what, remedy or "restore it, or make it again")
