"""Suites of tasks of the Massive Text Embedding Benchmark (MTEB), and of one's own sets."""

from dataclasses import dataclass

from jina_jax.config.evaluate import OwnSet


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
    groups: dict[str, tuple[SuiteTask | OwnSet, ...]]
    """Name of a group → its tasks, of MTEB or sets of one's own (`evaluate_config`), which run
    through MTEB's task classes; each group has a mean of its own."""
