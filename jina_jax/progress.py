"""Progress of long work on standard error: a bar on a terminal, an occasional line in a log."""

import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

from tqdm import tqdm

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
    enabled: bool = True,
) -> Iterator[_T]:
    """Passes `iterable` on and shows how far it is, and its rate.

    Args:
      iterable: what is worked through.
      description: names the work.
      total: number of items, when known.
      unit: what an item is, in the plural.
      enabled: False shows nothing.
    Returns: the items, unchanged.
    """
    if not enabled:
        return iter(iterable)
    if sys.stderr.isatty():
        bar = tqdm(iterable, desc=description, total=total, unit=f" {unit}", dynamic_ncols=True)
        return iter(bar)
    return _lines(iterable, description, total, unit)


def _lines(iterable: Iterable[_T], description: str, total: int | None, unit: str) -> Iterator[_T]:
    start = shown = time.monotonic()
    done = 0
    of = f" of {total:,}" if total is not None else ""
    for item in iterable:
        yield item
        done += 1
        now = time.monotonic()
        if now - shown >= _LINE_EVERY_S:
            shown, rate = now, done / (now - start)
            say(f"{description}: {done:,}{of} {unit} ({rate:,.{0 if rate >= 10 else 1}f}/s)")
    took_s = time.monotonic() - start
    say(f"{description}: {done:,} {unit} in {took_s:,.1f} s")
