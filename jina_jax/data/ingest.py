"""The first step: reads one source, drops what is no pair, and writes sorted runs."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from jina_jax.config import DataConfig, SourceConfig
from jina_jax.data.ledger import Dropped, LedgerWriter, UnusableError
from jina_jax.data.normalise import hash_normalised, normalise
from jina_jax.data.runs import RunWriter
from jina_jax.data.sources import read_source
from jina_jax.progress import track
from jina_jax.types import BadRecord

CLEAN_VERSION = 1
"""Goes into the manifest; raise it when what is dropped here changes."""
_JUDGED_AFTER = 1000
_SHOWN_BAD = 5


@dataclass(frozen=True)
class ReadResult:
    """What became of the records of one source."""

    runs: tuple[Path, ...]
    read: int
    bad: dict[str, int]
    dropped: dict[str, int]

    @property
    def kept(self) -> int:
        """Pairs in the runs."""
        return self.read - sum(self.bad.values()) - sum(self.dropped.values())


def read_task(
    config: DataConfig, index: int, folder: Path, ledger: Path, progress: bool
) -> ReadResult:
    """Reads a source, cleans it and writes it as sorted runs.

    Args:
      config: the data section.
      index: which of its sources.
      folder: for the runs.
      ledger: file for what is bad or dropped.
      progress: show it.
    Raises: UnusableError when more than `max_bad_share` of the records are bad, or no pair is left;
      UserError when the source cannot be read.
    """
    source = config.sources[index]
    runs = RunWriter(folder, index, config.seed)
    bad: Counter[str] = Counter()
    dropped: Counter[str] = Counter()
    shown: list[BadRecord] = []
    read = 0
    with LedgerWriter(ledger) as writer:
        for record in track(read_source(source), f"read {source.name}", enabled=progress):
            read += 1
            if isinstance(record, BadRecord):
                bad[record.reason] += 1
                shown = [*shown, record][:_SHOWN_BAD]
                reason, detail, origin = record
                writer.write(Dropped(source.name, *origin, "read", reason, detail))
                if read >= _JUDGED_AFTER:
                    _judge(source, read, bad.total(), config.max_bad_share, shown)
                continue
            query, positive = normalise(record.query), normalise(record.positive)
            if reason := _unclean(query, positive):
                dropped[reason] += 1
                writer.write(
                    Dropped(source.name, *record.origin, "clean", reason, "", None, *record[:2])
                )
                continue
            runs.add(record, hash_normalised(query), hash_normalised(positive), read)
        runs.flush()
    _judge(source, read, bad.total(), config.max_bad_share, shown)
    return ReadResult(tuple(runs.paths), read, dict(bad), dict(dropped))


def _unclean(query: str, positive: str) -> str:
    if not query:
        return "empty_query"
    if not positive:
        return "empty_positive"
    return "identical" if query == positive else ""


def _judge(
    source: SourceConfig, read: int, bad: int, max_bad_share: float, shown: Sequence[BadRecord]
) -> None:
    if bad <= max_bad_share * read:
        return
    examples = "\n".join(f"  {b.origin.file}:{b.origin.row} {b.reason}: {b.detail}" for b in shown)
    raise UnusableError(
        f"source {source.name!r}: {bad:,} of the first {read:,} records cannot be read "
        f"({bad / read:.1%}; data.max_bad_share allows {max_bad_share:.1%}). The first ones:\n"
        f"{examples}"
    )
