"""Cuts sources into blocks that tasks read on their own."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate

from jina_jax.config import SourceConfig
from jina_jax.sources.extract import GROUPED
from jina_jax.sources.lines import compression_suffix
from jina_jax.sources.pydocs import package_stamps
from jina_jax.sources.read import FILE_KINDS, matched_files
from jina_jax.sources.tables import row_group_bytes
from jina_jax.system.files import file_state

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
    elif source.kind not in FILE_KINDS:
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
    if source.kind == "parquet":
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
    if source.kind == "jsonl" and not compression_suffix(path) and size_bytes > block_bytes:
        cuts = range(0, size_bytes, block_bytes)
        return [(cut, min(cut + block_bytes, size_bytes), block_bytes) for cut in cuts]
    return [(0, None, size_bytes)]
