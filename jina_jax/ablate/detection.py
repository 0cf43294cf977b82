"""What a filter found of the noise that was planted: its precision and its recall."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from jina_jax.ablate.inject import FOREIGN, MISMATCHED
from jina_jax.data.ledger import ledger_batches
from jina_jax.data.manifest import SourceSummary

SOUGHT = {"language": FOREIGN, "consistency": MISMATCHED}
"""Filter → the kind of noise that it is there to find."""


@dataclass(frozen=True)
class Detection:
    """What one filter dropped, by what it was."""

    clean: int
    mismatched: int
    foreign: int
    sought: int
    """Pairs of the kind that the filter is there to find, among those that reached it."""
    kind: str
    """That kind."""

    @property
    def precision(self) -> float | None:
        """Share of planted pairs, of either kind, in what was dropped; None of nothing."""
        dropped = self.clean + self.mismatched + self.foreign
        return (self.mismatched + self.foreign) / dropped if dropped else None

    @property
    def recall(self) -> float | None:
        """Share of what is sought that was dropped; None where there is nothing to find."""
        return getattr(self, self.kind) / self.sought if self.sought else None


def detections(
    data: Path, source: SourceSummary, planted: Mapping[int, str]
) -> dict[str, Detection]:
    """What each filter of a preparation found.

    Args:
      data: the prepared folder.
      source: that the noise was planted in.
      planted: row → kind.
    Returns: filter → what it found, in the order in which they were applied.
    Raises: UserError when there is no readable ledger.
    """
    dropped: dict[str, Counter[str]] = {}
    for batch in ledger_batches(data):
        for row in batch.select(["source", "row", "stage"]).to_pylist():
            if row["source"] == source.name:
                kind = planted.get(row["row"], "clean")
                dropped.setdefault(row["stage"], Counter())[kind] += 1
    filters = [s.stage for s in source.stages]
    left = Counter(planted.values())
    for stage in dropped.keys() - {*filters, "split"}:
        left -= dropped[stage]
    found = {}
    for stage in filters:
        lost = dropped.get(stage, Counter())
        if stage in SOUGHT:
            kind = SOUGHT[stage]
            found[stage] = Detection(
                lost["clean"], lost[MISMATCHED], lost[FOREIGN], left[kind], kind
            )
        left -= lost
    return found
