"""Alarms: signs of a collapse, read off the logged metrics of each source."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from jina_jax.config import AlarmConfig

_REMEDY = {
    "alike": (
        "the embeddings have become alike: lower optim.learning_rate, lengthen "
        "optim.warmup_steps, or begin from an earlier checkpoint"
    ),
    "no_gap": (
        "own positives are no nearer than others: look whether query_field and positive_field "
        "belong together (jina-jax inspect), lower optim.learning_rate or loss.temperature"
    ),
    "chance": (
        "positives are found no more often than by guessing: look whether query_field and "
        "positive_field belong together (jina-jax inspect), lower optim.learning_rate, or leave "
        "the source out"
    ),
}


class Alarm(NamedTuple):
    """An alarm that is raised or cleared at a step."""

    kind: str
    """`alike`, `no_gap` or `chance`."""
    source: str
    state: Literal["raised", "cleared"]
    message: str
    """For a person: the source, the figures and what to try."""


class _Sign(NamedTuple):
    shows: bool
    figures: str


class Alarms:
    """Judges one logged line after another, and needs nothing else."""

    def __init__(
        self, config: AlarmConfig, sources: Sequence[str], *, batch_size: int, warmup_steps: int
    ):
        self._config, self._sources = config, list(sources)
        self._first_step = max(config.from_step, warmup_steps + 1)
        self._chance = 1 - (1 - 1 / batch_size) ** config.guesses
        self._raised: set[tuple[str, str]] = set()
        self._lines: dict[tuple[str, str], int] = {}
        """How many lines in a row contradict the present state of the alarm."""

    def judge(self, line: Mapping[str, Any]) -> list[Alarm]:
        """The alarms that a line of metrics raises or clears.

        A value that is not finite is ignored.

        Args:
          line: `step`, and `source/NAME/...` as `SourceMetrics` names them.
        """
        if not self._config.lines or line["step"] < self._first_step:
            return []
        return [
            self._alarm(kind, source, sign, line["step"])
            for source in self._sources
            for kind, sign in self._signs(line, source)
            if self._turns((kind, source), sign.shows)
        ]

    def _signs(self, line: Mapping[str, Any], source: str) -> Iterator[tuple[str, _Sign]]:
        names = [
            f"source/{source}/{name}" for name in ("accuracy", "positive_cosine", "in_batch_cosine")
        ]
        if not all(line.get(n) is not None and math.isfinite(line[n]) for n in names):
            return
        accuracy, positive, others = (line[name] for name in names)
        config = self._config
        are_alike = others > config.alike
        cosines = f"mean cosine {others:.3f} with the positives of others"
        yield "alike", _Sign(are_alike, f"{cosines} (alarms.alike={config.alike})")
        if not are_alike:
            yield (
                "no_gap",
                _Sign(
                    positive - others < config.min_gap,
                    f"mean cosine {positive:.3f} with the own positive, {others:.3f} with those of "
                    f"others (alarms.min_gap={config.min_gap})",
                ),
            )
        yield (
            "chance",
            _Sign(
                accuracy <= self._chance,
                f"accuracy {accuracy:.4g}, chance {self._chance:.4g} "
                f"(alarms.guesses={config.guesses})",
            ),
        )

    def _turns(self, key: tuple[str, str], shows: bool) -> bool:
        """Counts a line; whether the alarm is raised or cleared by it."""
        is_new = shows != (key in self._raised)
        self._lines[key] = self._lines.get(key, 0) + 1 if is_new else 0
        if self._lines[key] < self._config.lines:
            return False
        self._lines[key] = 0
        self._raised ^= {key}
        return True

    def _alarm(self, kind: str, source: str, sign: _Sign, step: int) -> Alarm:
        where = f"source {source} at step {step}"
        if sign.shows:
            text = f"ALARM {where}: {sign.figures}; {_REMEDY[kind]}"
            return Alarm(kind, source, "raised", text)
        return Alarm(kind, source, "cleared", f"alarm cleared, {where}: {sign.figures}")
