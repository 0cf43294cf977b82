"""Precision and recall of the filters on planted noise."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from jina_jax.ablate.inject import FOREIGN, MISMATCHED
from jina_jax.prepare.ledger import ledger_batches
from jina_jax.shards.manifest import SourceSummary

SOUGHT = {"language": FOREIGN, "consistency": MISMATCHED}
"""Filter → the kind of noise that it is there to find."""


@dataclass(frozen=True)
class Detection:
    """What one filter dropped, by what it was."""

    clean: int
    mismatched: int
    foreign: int
    kind: str
    """What the filter is there to find: `foreign` or `mismatched`."""
    sought: int
    """Pairs of that kind among those that reached it."""
    precision: float | None
    """Share of planted pairs, of either kind, in what it dropped; None of nothing."""
    recall: float | None
    """Share of what is sought that it dropped; None where there was nothing to find."""


def detection(dropped: Mapping[str, int], kind: str, sought: int) -> Detection:
    """Precision and recall from counts.

    Args:
      dropped: `clean`, `mismatched` and `foreign` pairs that a filter dropped.
      kind: what it is there to find.
      sought: pairs of that kind that reached it.
    Example: 10 clean and 30 mismatched pairs dropped, of 40 mismatched, give precision 0.75 and
      recall 0.75.
    """
    planted = dropped[MISMATCHED] + dropped[FOREIGN]
    total = planted + dropped["clean"]
    return Detection(
        **{name: dropped[name] for name in ("clean", MISMATCHED, FOREIGN)},
        kind=kind,
        sought=sought,
        precision=planted / total if total else None,
        recall=dropped[kind] / sought if sought else None,
    )


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
    by_filter = {}
    for stage in filters:
        lost = dropped.get(stage, Counter())
        if stage in SOUGHT:
            by_filter[stage] = detection(lost, SOUGHT[stage], left[SOUGHT[stage]])
        left -= lost
    return by_filter
