"""The first step: reads a block of a source, drops what is no record, and writes sorted runs."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from jina_jax.config import SourceConfig
from jina_jax.errors import UnusableError
from jina_jax.prepare.blocks import Block
from jina_jax.prepare.ledger import Dropped, LedgerWriter
from jina_jax.prepare.sorted_runs import RunWriter, schema
from jina_jax.sources.chunks import Chunk, chunked
from jina_jax.sources.pydocs import read_pydocs
from jina_jax.sources.read import read_all, read_file, text_fields
from jina_jax.text.identity import hash_normalised, normalise_all

CLEAN_VERSION = 2
"""Goes into the manifest; raise it when what is dropped here changes."""
_JUDGED_AFTER = 1000
_SHOWN_BAD = 5


@dataclass(frozen=True)
class ShownBad:
    """A record that could not be read, for an error message."""

    file: str
    row: int
    reason: str
    detail: str


@dataclass(frozen=True)
class ReadResult:
    """What became of the records of one block."""

    runs: tuple[str, ...]
    read: int
    bad: dict[str, int]
    dropped: dict[str, int]
    lines: int
    """Lines or rows of the file, blank ones included."""
    table_bytes: int
    """Of the records in the runs."""
    shown: tuple[ShownBad, ...]

    @property
    def kept(self) -> int:
        """Records in the runs."""
        return self.read - sum(self.bad.values()) - sum(self.dropped.values())


def read_task(
    source: SourceConfig, block: Block, texts: int, seed: int, max_bad_share: float, stem: Path,
    ledger: Path,
) -> ReadResult:  # fmt: skip
    """Reads a block, cleans it and writes it as sorted runs.

    Args:
      source: the block's.
      block: what to read.
      texts: as in `runs.schema`.
      seed: of the shuffle.
      max_bad_share: the first block of a source is left as soon as it has more bad records.
      stem: path of the runs.
      ledger: file for what is bad or dropped; rows count from the start of the block.
    Raises: UserError when the source cannot be read.
    """
    runs = RunWriter(stem, block.source, schema(texts), seed)
    bad: Counter[str] = Counter()
    dropped: Counter[str] = Counter()
    shown: list[ShownBad] = []
    read = lines = 0
    with LedgerWriter(ledger) as writer:
        for chunk in _read(source, block):
            lines = chunk.last_row
            for place, record in chunk.bad:
                reason, detail, origin = record
                bad[reason] += 1
                shown = [*shown, ShownBad(*origin, reason, detail)][:_SHOWN_BAD]
                writer.write(Dropped(source.name, *origin, "read", reason, detail))
                seen = read + place + 1
                if max_bad_share < 1 and seen >= _JUDGED_AFTER and bad.total() > max_bad_share * seen:  # noqa: E501  # fmt: skip
                    return ReadResult(
                        tuple(runs.paths), seen, dict(bad), dict(dropped), lines, 0, tuple(shown)
                    )
            read += chunk.records
            _clean(chunk, source.name, runs, dropped, writer)
        runs.flush()
    return ReadResult(
        tuple(runs.paths), read, dict(bad), dict(dropped), lines, runs.text_bytes, tuple(shown)
    )


def _read(source: SourceConfig, block: Block) -> Iterator[Chunk]:
    if not block.path:
        return read_all(source)
    if source.kind == "pydocs":
        return chunked(read_pydocs((block.path,)), len(text_fields(source)))
    return read_file(source, block.path, block.start, block.end)


def _clean(
    chunk: Chunk, source: str, runs: RunWriter, dropped: Counter[str], writer: LedgerWriter
) -> None:
    """Drops what is empty or identical and hands on the rest."""
    normal = [normalise_all(column) for column in chunk.texts]
    unclean = _unclean_pairs if len(normal) == 2 else _unclean_triplets
    reasons = unclean(*normal)
    files, rows, texts = chunk.files, chunk.rows, list(chunk.texts)
    if reasons:
        for i, reason in reasons.items():
            dropped[reason] += 1
            cells = [column[i] for column in texts]
            writer.write(Dropped(source, files[i], rows[i], "clean", reason, "", None, *cells))
        kept = [i for i in range(len(rows)) if i not in reasons]
        files, rows = [files[i] for i in kept], [rows[i] for i in kept]
        texts, normal = ([[c[i] for i in kept] for c in columns] for columns in (texts, normal))
    hashes = [[hash_normalised(text) for text in column] for column in normal]
    if rows:
        runs.add(texts, hashes, files, rows)


def _unclean_pairs(queries: Sequence[str], positives: Sequence[str]) -> dict[int, str]:
    found = {}
    for i, (query, positive) in enumerate(zip(queries, positives, strict=True)):
        if not query:
            found[i] = "empty_query"
        elif not positive:
            found[i] = "empty_positive"
        elif query == positive:
            found[i] = "identical"
    return found


def _unclean_triplets(
    queries: Sequence[str], positives: Sequence[str], negatives: Sequence[str]
) -> dict[int, str]:
    found = _unclean_pairs(queries, positives)
    texts = zip(queries, positives, negatives, strict=True)
    for i, (query, positive, negative) in enumerate(texts):
        if i in found:
            continue
        if not negative:
            found[i] = "empty_negative"
        elif negative == positive:
            found[i] = "negative_is_positive"
        elif negative == query:
            found[i] = "negative_is_query"
    return dict(sorted(found.items()))


def judge(
    source: SourceConfig, read: int, bad: int, max_bad_share: float, shown: Sequence[ShownBad]
) -> None:
    """Stops a preparation whose source has too many bad records.

    Args:
      source: to name.
      read: its records so far.
      bad: those of them that could not be read.
      max_bad_share: of `read`.
      shown: the first bad ones.
    Raises: UnusableError.
    """
    if bad <= max_bad_share * read:
        return
    examples = "\n".join(f"  {b.file}:{b.row} {b.reason}: {b.detail}" for b in shown[:_SHOWN_BAD])
    raise UnusableError(
        f"source {source.name!r}: {bad:,} of the first {read:,} records cannot be read "
        f"({bad / read:.1%}; data.max_bad_share allows {max_bad_share:.1%}). The first ones:\n"
        f"{examples}"
    )


def at_base(shown: ShownBad, row_base: int) -> ShownBad:
    """The record with its row counted from the start of the file."""
    return replace(shown, row=shown.row + row_base)
