"""Text for a terminal: tables, and progress of long work on standard error, as a bar on a terminal
or an occasional line in a log.
"""

import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from typing import Any, TextIO, TypeVar

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
    """Writes one line to standard error, unless not `enabled`. Where there is no room for it, or
    nobody reads any more, it is lost and the work goes on.
    """
    if enabled:
        with suppress(OSError):
            print(message, file=sys.stderr, flush=True)


def end_of_standard_error() -> None:
    """Before a process ends: what could not be written must not change its exit code."""
    try:
        sys.stderr.flush()
    except OSError:
        silence(sys.stderr)


def silence(stream: TextIO) -> None:
    """What else is written to a standard stream goes nowhere."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


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
    return _lines(iterable, description, total, unit, records)


def _with_records(bar: Any, records: Callable[[_T], int]) -> Iterator[_T]:
    start, seen = time.monotonic(), 0
    for item in bar:
        yield item
        seen += records(item)
        rate = seen / max(time.monotonic() - start, 1e-9)
        bar.set_postfix_str(f"{seen:,} records, {rate:,.0f}/s", refresh=False)


def _lines(
    iterable: Iterable[_T],
    description: str,
    total: int | None,
    unit: str,
    records: Callable[[_T], int] | None,
) -> Iterator[_T]:
    """A line now and then, whose rates are those since the line before.

    Work that an earlier run had done passes at once, and would make a rate from the start a false
    one.
    """
    start = shown = time.monotonic()
    done = seen = done_before = seen_before = 0
    for item in iterable:
        yield item
        done, seen = done + 1, seen + (1 if records is None else records(item))
        now = time.monotonic()
        if now - shown >= _LINE_EVERY_S:
            held = "" if records is None else f", {seen:,} records"
            line = f"{held}, {(seen - seen_before) / (now - shown):,.1f}/s"
            if total is None:
                say(f"{description}: {done:,} {unit}{line}")
            else:
                left_s = (total - done) * (now - shown) / (done - done_before)
                left = tqdm.format_interval(left_s)
                say(f"{description}: {done:,} of {total:,} {unit}{line}, {left} left")
            shown, done_before, seen_before = now, done, seen
    what = f"{done:,} {unit}" if records is None else f"{seen:,} records"
    say(f"{description}: {what} in {time.monotonic() - start:,.1f} s")
