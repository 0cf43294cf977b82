"""Text for a terminal: tables, and progress of long work on standard error, as a bar on a terminal
or an occasional line in a log.
"""

import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from tqdm import tqdm

_WIDTH = 96


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Aligns columns: the first to the left, the others to the right."""
    cells = [list(header), *[list(row) for row in rows]]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
    lines = [
        "  ".join(
            c.ljust(w) if i == 0 else c.rjust(w)
            for i, (c, w) in enumerate(zip(row, widths, strict=True))
        )
        for row in cells
    ]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


def clip(text: str, width: int = _WIDTH) -> str:
    """One line of at most `width` characters."""
    line = " ".join(text.split())
    return line if len(line) <= width else line[: width - 1] + "…"


_T = TypeVar("_T")

_LINE_EVERY_S = 10.0


def say(message: str, *, enabled: bool = True) -> None:
    """Writes one line to standard error, unless not `enabled`."""
    if enabled:
        print(message, file=sys.stderr, flush=True)


def track(
    iterable: Iterable[_T],
    description: str,
    *,
    total: int | None = None,
    unit: str = "records",
    records: Callable[[_T], int] | None = None,
    enabled: bool = True,
) -> Iterator[_T]:
    """Passes `iterable` on and shows how far it is, its rate and the time left.

    Args:
      iterable: what is worked through.
      description: names the work.
      total: number of items, when known; the time left assumes items of equal work.
      unit: what an item is, in the plural.
      records: how many records an item holds, where it is not one itself; the rate is of these.
      enabled: False shows nothing.
    Returns: the items, unchanged.
    """
    if not enabled:
        return iter(iterable)
    if sys.stderr.isatty():
        bar = tqdm(iterable, desc=description, total=total, unit=f" {unit}", dynamic_ncols=True)
        return iter(bar) if records is None else _with_records(bar, records)
    return _lines(iterable, _Log(description, total, unit, records is not None), records)


def _with_records(bar: Any, records: Callable[[_T], int]) -> Iterator[_T]:
    start, seen = time.monotonic(), 0
    for item in bar:
        yield item
        seen += records(item)
        rate = seen / max(time.monotonic() - start, 1e-9)
        bar.set_postfix_str(f"{seen:,} records, {rate:,.0f}/s", refresh=False)


@dataclass(frozen=True)
class _Log:
    """What the lines of a log say."""

    description: str
    total: int | None
    unit: str
    counts_records: bool

    def line(self, done: int, seen: int, since_s: float, before: tuple[int, int]) -> str:
        """How far the work is; rates are those since the line before, `since_s` ago.

        Work that an earlier run had done passes at once, and would make a rate from the start a
        false one.
        """
        of = f" of {self.total:,}" if self.total is not None else ""
        far, rate = f"{done:,}{of} {self.unit}", (seen - before[1]) / since_s
        speed = f"{rate:,.{0 if rate >= 10 else 1}f}/s"
        parts = (
            [f"{seen:,} records ({speed})", far] if self.counts_records else [f"{far} ({speed})"]
        )
        if self.total is not None:
            parts.append(f"{_duration((self.total - done) * since_s / (done - before[0]))} left")
        return f"{self.description}: {', '.join(parts)}"

    def last(self, done: int, seen: int, took_s: float) -> str:
        """What was done in all."""
        what = f"{seen:,} records" if self.counts_records else f"{done:,} {self.unit}"
        return f"{self.description}: {what} in {took_s:,.1f} s"


def _lines(iterable: Iterable[_T], log: _Log, records: Callable[[_T], int] | None) -> Iterator[_T]:
    start = shown = time.monotonic()
    done = seen = 0
    before = (0, 0)
    for item in iterable:
        yield item
        done, seen = done + 1, seen + (1 if records is None else records(item))
        now = time.monotonic()
        if now - shown >= _LINE_EVERY_S:
            say(log.line(done, seen, now - shown, before))
            shown, before = now, (done, seen)
    say(log.last(done, seen, time.monotonic() - start))


def _duration(seconds: float) -> str:
    """Two units at most: 45 s, 3 min 20 s, 2 h 5 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600:,} h {whole % 3600 // 60} min"
