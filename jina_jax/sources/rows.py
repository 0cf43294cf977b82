"""Rows of evaluation files. Unlike of training records, none that cannot be read is passed over."""

import csv
from collections.abc import Iterator
from typing import Any, NamedTuple, Protocol

from jina_jax.errors import UserError
from jina_jax.sources.kinds import data_files, file_kind
from jina_jax.sources.lines import MAX_LINE_BYTES, read_lines
from jina_jax.sources.records import decode, read_file_records
from jina_jax.types import BadRecord, Origin


class EvaluationFiles(Protocol):
    """What names the files of an evaluation set."""

    @property
    def name(self) -> str:
        """The task."""

    @property
    def paths(self) -> tuple[str, ...]:
        """Files or globs."""

    @property
    def kind(self) -> str:
        """auto, or one of `config.source.FILE_KINDS`."""

    @property
    def fields(self) -> tuple[str, ...]:
        """That are read; of a tsv without a header, columns by numbers from 1."""


class Row(NamedTuple):
    """A row of an evaluation file."""

    set_name: str
    values: dict[str, Any]
    """Field → value. Of `text`, cells by their numbers from 1, and the whole line as ''."""
    origin: Origin

    def field(self, name: str) -> Any:
        """The value of a field.

        Raises: UserError when the row lacks it.
        """
        if name not in self.values:
            has = ", ".join(n for n in self.values if n)[:200]
            raise self.error(f"has no field {name!r}; it has {has}. Set the set's fields")
        return self.values[name]

    def text(self, name: str) -> str:
        """The text of a field.

        Raises: UserError when the row lacks it, or it holds none.
        """
        text = self.field(name)
        if not isinstance(text, str) or not text.strip():
            raise self.error(f"holds {text!r} in field {name!r}, not a text")
        return text

    def error(self, problem: str) -> UserError:
        """What is wrong with the row, and where it stands."""
        where = f"{self.origin.file}:{self.origin.row}"
        return UserError(f"evaluation set {self.set_name!r}: {where} {problem}")


def evaluation_files(evaluation: EvaluationFiles) -> Iterator[str]:
    """The files of a set, in the order of its paths and sorted within a glob.

    Raises: UserError naming the path that matches nothing.
    """
    return data_files(evaluation.paths, f"evaluation set {evaluation.name!r}")


def evaluation_rows(evaluation: EvaluationFiles) -> Iterator[Row]:
    """All rows of a set, in the order of its files.

    Args:
      evaluation: files and their kind. `csv` and `tsv` begin with a header and have quotes; the
        cells of `text` are parted by tabs, without either.
    Raises: UserError naming the file and row that cannot be read.
    """
    for path in evaluation_files(evaluation):
        try:
            for row, value in _read(evaluation, path):
                if not isinstance(value, dict):
                    raise UserError(
                        f"evaluation set {evaluation.name!r}: {path}:{row} holds no object"
                    )
                yield Row(evaluation.name, value, Origin(path, row))
        except OSError as error:
            raise UserError(
                f"evaluation set {evaluation.name!r}: cannot read {path}: {error}"
            ) from error


def _read(evaluation: EvaluationFiles, path: str) -> Iterator[tuple[int, Any]]:
    kind = file_kind(path, evaluation.kind)
    if kind == "tsv" and evaluation.fields and all(map(str.isdecimal, evaluation.fields)):
        kind = "text"
    if kind in ("csv", "tsv"):
        yield from _delimited(evaluation, path, "," if kind == "csv" else "\t")
        return
    for record in read_file_records(path, kind):
        if isinstance(record, BadRecord):
            raise _unreadable(evaluation, record)
        value = record.value
        if kind == "text":
            cells = enumerate(value.split("\t"), start=1)
            value = {"": value} | {str(number): cell for number, cell in cells}
        yield record.origin.row, value


def _delimited(
    evaluation: EvaluationFiles, path: str, delimiter: str
) -> Iterator[tuple[int, dict[str, str]]]:
    csv.field_size_limit(MAX_LINE_BYTES)
    rows = csv.DictReader(_lines(evaluation, path), delimiter=delimiter, strict=True)
    try:
        for row in rows:
            if None in row or None in row.values():
                raise csv.Error("the row has another number of cells than the header")
            yield rows.line_num, row
    except csv.Error as error:
        origin = Origin(path, rows.line_num)
        raise _unreadable(evaluation, BadRecord("malformed_row", str(error), origin)) from error


def _lines(evaluation: EvaluationFiles, path: str) -> Iterator[str]:
    for row, line in read_lines(path):
        text = decode(line, Origin(path, row))
        if isinstance(text, BadRecord):
            raise _unreadable(evaluation, text)
        yield text + "\n"


def _unreadable(evaluation: EvaluationFiles, bad: BadRecord) -> UserError:
    return UserError(
        f"evaluation set {evaluation.name!r}: {bad.origin.file}:{bad.origin.row} cannot be read "
        f"({bad.reason}: {bad.detail}); mend the file: none of its rows is passed over"
    )
