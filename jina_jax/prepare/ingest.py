"""Reads the sources block by block: records are hashed, cleaned and written as sorted runs."""

import dataclasses
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

import pyarrow as pa
import pyarrow.compute as pc

from jina_jax.config import SourceConfig
from jina_jax.errors import UnusableError
from jina_jax.prepare.ledger import Dropped, LedgerWriter, dropped_rows, open_ledger
from jina_jax.prepare.sorted_runs import Columns, RunWriter
from jina_jax.sources.chunks import Chunk, chunked
from jina_jax.sources.datasets import data_set_extent
from jina_jax.sources.extract import GROUPED
from jina_jax.sources.fields import fields_of
from jina_jax.sources.kinds import file_kind, looks_like
from jina_jax.sources.lines import compression_suffix
from jina_jax.sources.pydocs import package_stamps, read_pydocs
from jina_jax.sources.read import is_of_files, matched_files, read_all, read_file
from jina_jax.sources.tables import row_group_bytes
from jina_jax.system.files import file_state
from jina_jax.system.hashing import content_key
from jina_jax.system.store import StoredFile
from jina_jax.text.identity import NO_TEXT, hash_normalised, normalise_all
from jina_jax.types import NO_PAIR, BadRecord

BLOCK_BYTES = 16 << 20
"""Least input that a task reads, where the format lets a file be cut: a small source still is work
for several processes."""
LARGEST_BLOCK_BYTES = 512 << 20
_BLOCKS_PER_SOURCE = 64
"""A larger source has larger blocks, up to the largest: each is a file of which every partition
reads a part."""
_FILES_PER_BLOCK = 4096
_UNDIVIDED_BYTES = 1_000_000_000
"""A block of more is told: a format that can be cut gives none such."""


@dataclass(frozen=True, slots=True)
class Block:
    """A part of a source; the parts in their order are the whole."""

    source: int
    """Position among the configured sources."""
    paths: tuple[str, ...]
    """A file or a part of one, several whole files, or a package of a `pydocs` source; none: a data
    set or a part of one, or all of the source in one."""
    start: int
    end: int | None
    """Of a single file as in `sources.read_file`, of a data set as in `sources.read_all`."""
    size_bytes: int
    """Of the input, roughly; 0 when that is not known."""
    stamp: str
    """Changes when the input does."""


def plan_blocks(sources: Sequence[SourceConfig]) -> list[Block]:
    """Blocks of all sources, source by source; those of one do not depend on the others.

    Plain JSONL is cut at bytes and Parquet at row groups. What is compressed or CSV can only be
    read from its start, and what an extractor reads is: such a file is never cut. Files that are
    smaller than a block are read together. Data sets of TFDS and saved ones of Hugging Face are cut
    at rows, streamed ones at their files. A source with a limit is a single block, since only
    counting tells where it ends; so is one whose extractor groups records.

    Raises: UserError when a path matches nothing or a file cannot be read.
    """
    return [block for i, source in enumerate(sources) for block in _of_source(i, source)]


def _of_source(index: int, source: SourceConfig) -> Iterator[Block]:
    if source.kind == "pydocs" and source.limit is None:
        for package, size_bytes, stamp in package_stamps(source.paths):
            yield Block(index, (package,), 0, None, size_bytes, stamp)
    elif source.kind in ("hf", "tfds"):
        yield from _of_data_set(index, source)
    elif source.limit is not None or source.extractor in GROUPED:
        states = [file_state(path) for path in matched_files(source)]
        total = sum(state.size_bytes for state in states)
        yield Block(index, (), 0, None, total, repr(states))
    else:
        yield from _of_files(index, source)


def _of_data_set(index: int, source: SourceConfig) -> Iterator[Block]:
    extent = data_set_extent(source)
    if source.limit is not None or source.extractor in GROUPED:
        yield Block(index, (), 0, None, extent.size_bytes, extent.stamp)
        return
    blocks = -(-extent.size_bytes // _block_bytes(extent.size_bytes)) or _BLOCKS_PER_SOURCE
    blocks = max(min(blocks, extent.units), 1)
    bounds = [extent.units * i // blocks for i in range(blocks + 1)]
    size_bytes = extent.size_bytes // blocks
    for first, end in pairwise(bounds):
        yield Block(index, (), first, end, size_bytes, extent.stamp)


def _of_files(index: int, source: SourceConfig) -> Iterator[Block]:
    files = [(path, file_state(path)) for path in matched_files(source)]
    block_bytes = _block_bytes(sum(state.size_bytes for _, state in files))
    small: list[Block] = []
    for path, state in files:
        stamp = f"{state.size_bytes} {state.stamp}"
        cuts = _cuts(source, path, state.size_bytes, block_bytes)
        blocks = [Block(index, (path,), *cut, stamp) for cut in cuts]
        is_small = len(blocks) == 1 and state.size_bytes < block_bytes
        held = sum(block.size_bytes for block in small) + state.size_bytes
        if small and (not is_small or held > block_bytes or len(small) == _FILES_PER_BLOCK):
            yield _together(small)
            small = []
        if is_small:
            # All of it, where a format says where its parts end.
            small.append(dataclasses.replace(blocks[0], start=0, end=None))
        else:
            yield from blocks
    if small:
        yield _together(small)


def _together(blocks: Sequence[Block]) -> Block:
    paths = tuple(path for block in blocks for path in block.paths)
    stamp = content_key([block.stamp for block in blocks])
    size_bytes = sum(block.size_bytes for block in blocks)
    return Block(blocks[0].source, paths, 0, None, size_bytes, stamp)


def _block_bytes(source_bytes: int) -> int:
    """Bytes of a block: a power of two, so that a source that grows is seldom cut anew."""
    wanted = 1 << (source_bytes // _BLOCKS_PER_SOURCE).bit_length()
    return max(min(wanted, LARGEST_BLOCK_BYTES), BLOCK_BYTES)


def _cuts(
    source: SourceConfig, path: str, size_bytes: int, block_bytes: int
) -> list[tuple[int, int | None, int]]:
    if source.extractor or compression_suffix(path):
        return [(0, None, size_bytes)]
    kind = file_kind(path, source.kind)
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


def undivided(sources: Sequence[SourceConfig], blocks: Sequence[Block]) -> Iterator[str]:
    """A line for each block that is so large that one task is long at it, and what would help.

    Args:
      sources: of the blocks.
      blocks: of `plan_blocks`.
    """
    for block in blocks:
        if block.size_bytes <= _UNDIVIDED_BYTES:
            continue
        source, path = sources[block.source], "".join(block.paths[:1])
        if source.limit is not None:
            why = "only counting tells where its limit ends: give it a file of what is wanted"
        elif source.extractor in GROUPED:
            why = f"{source.extractor} puts records together that may stand far apart"
        elif compression_suffix(path):
            why = "what is packed can only be read from its start: pack it as several files"
        else:
            why = "its format can only be read from its start: make several files of it, or JSONL"
        yield (
            f"source {source.name!r}: one task reads all {block.size_bytes / 1e9:.1f} GB of "
            f"{path or source.dataset or 'it'} on one core, and again after a kill, since {why}"
        )


CLEAN_VERSION = 3
"""Goes into the manifest; raise it when what is dropped here changes."""
JUDGED_AFTER = 1000
"""Records, or all of a source, before its share of bad ones means anything."""
_SHOWN_BAD = 5


@dataclass(frozen=True, slots=True)
class ReadResult:
    """What became of the records of one block."""

    runs: tuple[int, ...]
    """Where each ends, as in `exchange.Given`."""
    read: int
    bad: dict[str, int]
    dropped: dict[str, int]
    lines: int
    """Lines or rows of the last file, blank ones included."""
    shown: tuple[BadRecord, ...]
    """The first that could not be read."""

    @property
    def kept(self) -> int:
        """Records in the runs."""
        return self.read - sum(self.bad.values()) - sum(self.dropped.values())


def read_task(
    source: SourceConfig, block: Block, seed: int, max_bad_share: float, stem: StoredFile,
    ledger: StoredFile,
) -> ReadResult:  # fmt: skip
    """Reads a block, cleans it and writes it as sorted runs, each without duplicates.

    Args:
      source: the block's.
      block: what to read.
      seed: of the shuffle.
      max_bad_share: the first block of a source is left as soon as it has more bad records.
      stem: name of the runs, see `run_file`.
      ledger: file for what is bad or dropped; rows count from the start of the block.
    Raises: UserError when the source cannot be read.
    """
    bad: Counter[str] = Counter()
    dropped: Counter[str] = Counter()
    shown: list[BadRecord] = []
    read = lines = 0
    with open_ledger(ledger) as writer:

        def leave_out(lost: pa.Table, kept: pa.Table) -> None:
            dropped["duplicate"] += len(lost)
            detail = _twins(source.name, lost, kept, is_absolute=block.start == 0)
            writer.write_table(dropped_rows(lost, [source.name], "dedup", "duplicate", detail))

        runs = RunWriter(stem, columns_of(source), seed, leave_out)
        for chunk in read_block(source, block):
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
                        tuple(runs.places), seen, dict(bad), dict(dropped), lines, tuple(shown)
                    )
            read += chunk.records
            _clean(chunk, source.name, runs, dropped, writer)
        runs.flush()
    return ReadResult(tuple(runs.places), read, dict(bad), dict(dropped), lines, tuple(shown))


def columns_of(source: SourceConfig) -> Columns:
    """What the records of a source have."""
    texts = 3 if source.negative_field else 2
    return Columns(texts, bool(source.label_field), bool(source.score_field))


def _twins(source: str, lost: pa.Table, kept: pa.Table, *, is_absolute: bool) -> pa.Array:
    """What the ledger says of duplicates within a block.

    Args:
      source: its name.
      lost: records that are left out.
      kept: for each the one that stays, unless another block or source has it too.
      is_absolute: rows count from the start of the file, and not only from that of the block.
    """
    file, row = (kept.column(name).cast(pa.string()) for name in ("file", "row"))
    if is_absolute:
        return pc.binary_join_element_wise("same as ", source, " ", file, ":", row, "")
    # Where the block begins is known when those before it are read.
    before = pc.subtract(lost.column("row"), kept.column("row")).cast(pa.string())
    where = (" ", file, ", ", before, " rows before", "")
    return pc.binary_join_element_wise("same as ", source, *where)


def read_block(source: SourceConfig, block: Block) -> Iterator[Chunk]:
    """Reads a block by column; rows count from the start of its file, or of its part of one.

    Raises: UserError when the source cannot be read.
    """
    if not block.paths:
        yield from read_all(source, block.start, block.end)
    elif source.kind == "pydocs":
        yield from chunked(read_pydocs(block.paths), len(fields_of(source).texts))
    else:
        for path in block.paths:
            yield from read_file(source, path, block.start, block.end)


def _clean(
    chunk: Chunk, source: str, runs: RunWriter, dropped: Counter[str], writer: LedgerWriter
) -> None:
    """Drops what is empty or identical and hands on the rest."""
    normal = [normalise_all(column) for column in chunk.texts]
    records = enumerate(zip(*normal, strict=True))
    reasons = {i: reason for i, texts in records if (reason := _flaw(*texts))}
    files, rows, texts = chunk.files, chunk.rows, list(chunk.texts)
    labels, scores = chunk.labels, chunk.scores
    if reasons:
        for i, reason in reasons.items():
            dropped[reason] += 1
            cells = [column[i] for column in texts]
            writer.write(Dropped(source, files[i], rows[i], "clean", reason, "", None, *cells))
        kept = [i for i in range(len(rows)) if i not in reasons]
        files, rows = [files[i] for i in kept], [rows[i] for i in kept]
        texts, normal = ([[c[i] for i in kept] for c in columns] for columns in (texts, normal))
        labels = [labels[i] for i in kept] if labels else ()
        scores = [scores[i] for i in kept] if scores else ()
    hashes = [[hash_normalised(text) for text in column] for column in normal]
    for column, of_column, normals in zip(texts[2:], hashes[2:], normal[2:], strict=True):
        for i in (i for i, text in enumerate(normals) if not text):
            column[i], of_column[i] = "", NO_TEXT
    if rows:
        runs.add(texts, hashes, files, rows, labels, scores)


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
