"""Suites of tasks of the Massive Text Embedding Benchmark (MTEB)."""

from dataclasses import dataclass


@dataclass(frozen=True)
class SuiteTask:
    """One task of MTEB."""

    name: str
    """As `mteb.get_task` knows it."""
    subsets: tuple[str, ...] = ()
    """Of a task in several languages, such as en-en; empty takes all."""
    splits: tuple[str, ...] = ()
    """Such as dev; empty takes the task's own."""


@dataclass(frozen=True)
class Suite:
    """Tasks that are run and averaged together."""

    name: str
    groups: dict[str, tuple[SuiteTask, ...]]
    """Name of a group → its tasks; each group has a mean of its own."""
