"""What the first records of every source tell, before any source is read whole."""

import math
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from jina_jax.config import RunConfig, SourceConfig
from jina_jax.errors import UnusableError, UserError
from jina_jax.prepare.ingest import JUDGED_AFTER, judge
from jina_jax.prepare.ledger import Dropped, LedgerPart, open_ledger
from jina_jax.prepare.pipeline import Pipeline
from jina_jax.sources.read import empty_source, read_all
from jina_jax.system.hashing import content_key
from jina_jax.types import NO_PAIR, BadRecord

_AT_ONCE = 8


def records_needed(config: RunConfig) -> dict[str, int]:
    """How many training records each source has to have, by name.

    Returns: those of a batch, and of `max_epochs` times the records a batch too; 0 for a source
      that the mixture never draws from.
    """
    batch = config.feed.global_batch_size
    stages = config.mixture.stages
    needed = {}
    for source in config.data.sources:
        weights = [dict(stage.weights).get(source.name) for stage in stages]
        # What a stage does not name keeps the weight it had, which is above 0 at first.
        has_own = not stages or stages[0].from_step > 0 or weights[0] is None
        is_drawn = has_own or any(weights)
        of_batch = max(batch, math.ceil(batch / (source.max_epochs or 1)))
        needed[source.name] = of_batch if is_drawn else 0
    return needed


def look_first(run: Pipeline, needed: Mapping[str, int]) -> None:
    """Reads the first records of each source; bad ones that end it go to the ledger.

    Args:
      run: the preparation, with all fields named.
      needed: as `records_needed` gives it; nothing for a source that is not in it.
    Raises:
      UserError: a source is empty, cannot be read, or has fewer records than are needed.
      UnusableError: of the first thousand records of one, or of all, too many cannot be read.
    """
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        looks = [
            pool.submit(_look, source, needed.get(source.name, 0)) for source in run.config.sources
        ]
        try:
            for source, look in zip(run.config.sources, looks, strict=True):
                seen = look.result()
                _check(run, source, seen, needed.get(source.name, 0))
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


class _Seen(NamedTuple):
    """The first records of a source."""

    records: int
    bad: list[BadRecord]
    """Of the first `JUDGED_AFTER`, those that cannot be read."""
    unusable: int
    """Of all that were read, those that cannot be or give no pair."""
    is_all: bool
    """Whether the source has no others."""


def _look(source: SourceConfig, needed: int) -> _Seen:
    bad, read, unusable, wanted = list[BadRecord](), 0, 0, max(JUDGED_AFTER, needed)
    for chunk in read_all(source):
        unusable += len(chunk.bad)
        for place, record in chunk.bad:
            if record.reason != NO_PAIR and read + place < JUDGED_AFTER:
                bad.append(record)
        read += chunk.records
        if read >= wanted:
            return _Seen(read, bad, unusable, is_all=False)
    return _Seen(read, bad, unusable, is_all=True)


def _check(run: Pipeline, source: SourceConfig, seen: _Seen, needed: int) -> None:
    if not seen.records:
        raise empty_source(source)
    try:
        judged = min(seen.records, JUDGED_AFTER)
        judge(source, judged, len(seen.bad), run.config.max_bad_share, seen.bad)
    except UnusableError:
        rows = [Dropped(source.name, *r.origin, "read", r.reason, r.detail) for r in seen.bad]
        file = run.ledger("look", content_key(rows))
        with open_ledger(file) as writer:
            for row in rows:
                writer.write(row)
        run.ledgers.append(LedgerPart(file, len(rows)))
        raise
    usable = seen.records - seen.unusable
    if seen.is_all and usable < needed:
        raise UserError(
            f"source {source.name!r} has {usable:,} records, of which no batch can be made: "
            f"feed.global_batch_size and its max_epochs ask for {needed:,}. Lower the batch size, "
            f"give it more records, or take it out"
        )
