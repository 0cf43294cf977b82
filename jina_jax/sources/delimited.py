"""Rows of comma- and tab-separated text."""

import csv
from collections.abc import Iterator

from jina_jax.sources.lines import MAX_LINE_BYTES, Damage, read_lines
from jina_jax.types import BadRecord, Origin, Record


class _TextLines:
    """Lines of a file as the csv module wants them; remembers what cannot be given as a line."""

    def __init__(self, path: str):
        self._path, self.row = path, 0
        self.bad: BadRecord | None = None

    def __iter__(self) -> Iterator[str]:
        for row, line in read_lines(self._path):
            self.row = row
            if isinstance(line, Damage):
                self.bad = BadRecord(line.reason, line.detail, Origin(self._path, row))
                yield "\n"
            else:
                # Bytes that are not UTF-8 come back as lone surrogates and are found in the cell.
                yield line.decode(errors="surrogateescape") + "\n"


def read_delimited(
    path: str, delimiter: str, *, has_header: bool = True
) -> Iterator[Record | BadRecord]:
    """Reads the rows of a comma- or tab-separated file.

    Quoting is RFC 4180: a cell in double quotes may hold newlines and doubled quotes. What
    follows a closing quote must be a delimiter; a stray quote at the start of a cell is reported
    as `malformed_row` where a lenient reader would join lines silently. Of tabs without a header
    there is no quoting, as in the files of TREC and MS MARCO.

    Args:
      path: plain, .gz or .zst file.
      delimiter: one character.
      has_header: whether it begins with the names of its columns; else these are their numbers
        from 1.
    Returns: a dict of texts per row, with lone surrogates for bytes that are not UTF-8; Origin.row
      is the 1-based line it starts on.
    """
    csv.field_size_limit(MAX_LINE_BYTES)
    lines = _TextLines(path)
    plain = delimiter == "\t" and not has_header
    reader = csv.reader(
        lines, delimiter=delimiter, strict=True,
        quoting=csv.QUOTE_NONE if plain else csv.QUOTE_MINIMAL,
    )  # fmt: skip
    header: list[str] | None = None
    while True:
        start, malformed, cells = lines.row + 1, "", []
        try:
            cells = next(reader)
        except StopIteration:
            break
        except csv.Error as error:
            malformed = str(error)
        origin = Origin(path, start)
        if lines.bad is not None:
            yield lines.bad
            lines.bad = None
        elif malformed:
            yield BadRecord("malformed_row", malformed, origin)
        elif not cells:
            continue
        elif header is None and has_header:
            header = cells
        else:
            header = header or [str(number) for number in range(1, len(cells) + 1)]
            yield _row(cells, header, origin)


def _row(cells: list[str], header: list[str], origin: Origin) -> Record | BadRecord:
    if len(cells) != len(header):
        what = f"{len(cells)} cells, but the header has {len(header)}"
        return BadRecord("wrong_column_count", what, origin)
    return Record(dict(zip(header, cells, strict=True)), origin)
