"""Rows of evaluation files. Unlike of training records, none that cannot be read is passed over."""

from collections.abc import Iterator
from typing import Any, NamedTuple, Protocol

from jina_jax.errors import UserError
from jina_jax.sources.fields import is_unicode
from jina_jax.sources.kinds import data_files, file_kind
from jina_jax.sources.records import read_file_records
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
    has_header = not (evaluation.fields and all(map(str.isdecimal, evaluation.fields)))
    if kind == "tsv" and not has_header:
        kind = "text"
    for record in read_file_records(path, kind, has_header=has_header):
        if isinstance(record, BadRecord):
            raise _unreadable(evaluation, record)
        value = record.value
        if kind == "text":
            cells = enumerate(value.split("\t"), start=1)
            value = {"": value} | {str(number): cell for number, cell in cells}
        elif kind in ("csv", "tsv") and not all(map(is_unicode, value.values())):
            bad = BadRecord("invalid_utf8", "a cell holds what is not UTF-8", record.origin)
            raise _unreadable(evaluation, bad)
        yield record.origin.row, value


def _unreadable(evaluation: EvaluationFiles, bad: BadRecord) -> UserError:
    return UserError(
        f"evaluation set {evaluation.name!r}: {bad.origin.file}:{bad.origin.row} cannot be read "
        f"({bad.reason}: {bad.detail}); mend the file: none of its rows is passed over"
    )
