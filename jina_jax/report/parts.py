"""What a report is made of, before it is a page."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from matplotlib.figure import Figure


class Tile(NamedTuple):
    """A figure that stands for itself."""

    label: str
    value: str
    note: str = ""


class Table(NamedTuple):
    """Cells as text; the first column names the row, the others are aligned to the right."""

    caption: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    words: bool = False
    """Cells are words rather than numbers: all columns are aligned to the left."""


class About(NamedTuple):
    """What a picture is of."""

    name: str
    """Of its files: letters, digits, '_' and '-'."""
    title: str
    says: str
    """What it shows, in a sentence, for whoever cannot see it."""


class Plot(NamedTuple):
    """A picture, in words and numbers too."""

    about: About
    figure: Figure
    numbers: Table
    """What was drawn, or some of it."""


class Sample(NamedTuple):
    """A record that was dropped."""

    where: str
    detail: str
    texts: Sequence[tuple[str, str]]
    """(query, positive or negative; text)."""


class Samples(NamedTuple):
    """Dropped records of one source and reason."""

    title: str
    samples: Sequence[Sample]


class Code(NamedTuple):
    """A text as it is, folded away."""

    title: str
    text: str


class Group(NamedTuple):
    """Parts under a heading of their own; plots beside each other where the page is wide."""

    title: str
    parts: Sequence["Tile | Table | Plot | Samples | Code"]
    text: str = ""


@dataclass(frozen=True)
class Section:
    """A chapter of the page."""

    key: str
    """Anchor on the page, and beginning of the names of its plots."""
    title: str
    text: str
    groups: Sequence[Group]
