"""Reads the sources block by block: records are hashed, cleaned and written as sorted runs."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

from jina_jax.config import SourceConfig
from jina_jax.errors import UnusableError
from jina_jax.prepare.ledger import Dropped, LedgerWriter, open_ledger
from jina_jax.prepare.sorted_runs import RunWriter, schema
from jina_jax.sources.chunks import Chunk, chunked
from jina_jax.sources.extract import GROUPED
from jina_jax.sources.fields import text_fields
from jina_jax.sources.kinds import file_kind, looks_like
from jina_jax.sources.lines import compression_suffix
from jina_jax.sources.pydocs import package_stamps, read_pydocs
from jina_jax.sources.read import is_of_files, matched_files, read_all, read_file
from jina_jax.sources.tables import row_group_bytes
from jina_jax.system.files import file_state
from jina_jax.text.identity import NO_TEXT, hash_normalised, normalise_all
from jina_jax.types import NO_PAIR, BadRecord

BLOCK_BYTES = 16 << 20
"""Input read by one task, where the format lets a file be cut: small enough that the last tasks
end together, and that a task holds little."""
_LARGEST_BLOCK_BYTES = 64 << 20
_BLOCKS_PER_FILE = 256
"""A larger file has larger blocks, since every block is a file that every partition opens."""


@dataclass(frozen=True)
class Block:
    """A part of a source; the parts in their order are the whole."""

    source: int
    """Position among the configured sources."""
    path: str
    """File, package of a `pydocs` source, or empty: all of the source in one."""
    start: int
    end: int | None
    """As in `sources.read_file`."""
    size_bytes: int
    """Of the input, roughly; 0 when that is not known."""
    stamp: str
    """Changes when the input does."""


def plan_blocks(sources: Sequence[SourceConfig]) -> list[Block]:
    """Blocks of all sources, source by source.

    Plain JSONL is cut at bytes and Parquet at row groups. What is compressed or CSV can only be
    read from its start, and what an extractor reads is: each file is one block. A source with a
    limit is a single block, since only counting tells where it ends; so is one whose extractor
    groups records.

    Raises: UserError when a path matches nothing or a file cannot be read.
    """
    return [block for i, source in enumerate(sources) for block in _of_source(i, source)]


def _of_source(index: int, source: SourceConfig) -> Iterator[Block]:
    if source.kind == "pydocs" and source.limit is None:
        for package, size_bytes, stamp in package_stamps(source.paths):
            yield Block(index, package, 0, None, size_bytes, stamp)
    elif not is_of_files(source):
        yield Block(index, "", 0, None, 0, "")
    elif source.limit is not None or source.extractor in GROUPED:
        states = [file_state(path) for path in matched_files(source)]
        total = sum(state.size_bytes for state in states)
        yield Block(index, "", 0, None, total, repr(states))
    else:
        for path in matched_files(source):
            state = file_state(path)
            for start, end, size_bytes in _cuts(source, path, state.size_bytes):
                stamp = f"{state.size_bytes} {state.stamp}"
                yield Block(index, path, start, end, size_bytes, stamp)


def _cuts(source: SourceConfig, path: str, size_bytes: int) -> list[tuple[int, int | None, int]]:
    if source.extractor:
        return [(0, None, size_bytes)]
    block_bytes = max(min(size_bytes // _BLOCKS_PER_FILE, _LARGEST_BLOCK_BYTES), BLOCK_BYTES)
    kind = file_kind(path, source.kind)
    if compression_suffix(path):
        return [(0, None, size_bytes)]
    if kind == "parquet":
        sizes = row_group_bytes(path)
        if not sizes:
            return [(0, None, 0)]
        # A row group belongs to the block in which its first byte lies.
        block = [
            (end - size) // block_bytes for size, end in zip(sizes, accumulate(sizes), strict=True)
        ]
        firsts = [i for i in range(len(sizes)) if i == 0 or block[i] != block[i - 1]]
        ends = [*firsts[1:], len(sizes)]
        return [(i, end, sum(sizes[i:end])) for i, end in zip(firsts, ends, strict=True)]
    if kind == "jsonl" and size_bytes > block_bytes:
        cuts = range(0, size_bytes, block_bytes)
        return [(cut, min(cut + block_bytes, size_bytes), block_bytes) for cut in cuts]
    return [(0, None, size_bytes)]


CLEAN_VERSION = 3
"""Goes into the manifest; raise it when what is dropped here changes."""
JUDGED_AFTER = 1000
"""Records, or all of a source, before its share of bad ones means anything."""
_SHOWN_BAD = 5


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
    shown: tuple[BadRecord, ...]
    """The first that could not be read."""

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
    shown: list[BadRecord] = []
    read = lines = 0
    with open_ledger(ledger) as writer:
        for chunk in _read(source, block):
            lines = chunk.last_row
            for place, record in chunk.bad:
                reason, detail, origin = record
                writer.write(Dropped(source.name, *origin, "read", reason, detail))
                if reason == NO_PAIR:
                    dropped[reason] += 1
                    continue
                bad[reason] += 1
                shown = [*shown, record][:_SHOWN_BAD]
                seen = read + place + 1
                if max_bad_share < 1 and seen >= JUDGED_AFTER and bad.total() > max_bad_share * seen:  # noqa: E501  # fmt: skip
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
    records = enumerate(zip(*normal, strict=True))
    reasons = {i: reason for i, texts in records if (reason := _flaw(*texts))}
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
    for column, of_column, normals in zip(texts[2:], hashes[2:], normal[2:], strict=True):
        for i in (i for i, text in enumerate(normals) if not text):
            column[i], of_column[i] = "", NO_TEXT
    if rows:
        runs.add(texts, hashes, files, rows)


def _flaw(query: str, positive: str, negative: str | None = None) -> str:
    """Why a record of normalised texts is dropped; empty where it is not. The negative of a triplet
    may be empty.
    """
    if not query:
        return "empty_query"
    if not positive:
        return "empty_positive"
    if query == positive:
        return "identical"
    if not negative:
        return ""
    if negative == positive:
        return "negative_is_positive"
    return "negative_is_query" if negative == query else ""


def judge(
    source: SourceConfig, read: int, bad: int, max_bad_share: float, shown: Sequence[BadRecord]
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
    examples = "\n".join(
        f"  {origin.file}:{origin.row} {reason}: {detail}"
        for reason, detail, origin in shown[:_SHOWN_BAD]
    )
    hint = ""
    if bad == read and is_of_files(source):
        path = shown[0].origin.file
        hint = f"\nIt was read as {file_kind(path, source.kind)}, and {looks_like(path)}"
    raise UnusableError(
        f"source {source.name!r}: {bad:,} of the first {read:,} records cannot be read "
        f"({bad / read:.1%}; data.max_bad_share allows {max_bad_share:.1%}). The first ones:\n"
        f"{examples}{hint}"
    )
