"""Packing: several texts share a row of fixed length, so that few positions are padding."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Int32

from jina_jax.config import FeedConfig


@dataclass(frozen=True)
class Placement:
    """Where each of N texts lies: row, slot (its number within the row) and first position."""

    row_N: np.ndarray
    slot_N: np.ndarray
    start_N: np.ndarray
    num_rows: int


def place(length_N: np.ndarray, *, row_tokens: int, texts_per_row: int) -> Placement:
    """Best fit, longest text first: each text goes to the fullest row that still holds it.

    Args:
      length_N: tokens per text, each in 1..row_tokens.
      row_tokens: length of a row.
      texts_per_row: most texts in a row.
    Returns: a Placement that depends on the lengths alone.
    """
    assert length_N.size == 0 or 1 <= length_N.min() <= length_N.max() <= row_tokens
    order = np.argsort(-length_N, kind="stable")
    rows, slots, starts = ([0] * len(order) for _ in range(3))
    open_rows: list[list[int]] = [[] for _ in range(row_tokens + 1)]  # by free positions
    has_open = 0  # bit n is set where open_rows[n] is not empty
    texts_in_row: list[int] = []
    for text, length in zip(order.tolist(), length_N[order].tolist(), strict=True):
        fitting = has_open >> length
        if fitting:
            free = length + (fitting & -fitting).bit_length() - 1
            row = open_rows[free].pop()
            if not open_rows[free]:
                has_open ^= 1 << free
        else:
            free, row = row_tokens, len(texts_in_row)
            texts_in_row.append(0)
        rows[text], slots[text], starts[text] = row, texts_in_row[row], row_tokens - free
        texts_in_row[row] += 1
        if free > length and texts_in_row[row] < texts_per_row:
            open_rows[free - length].append(row)
            has_open |= 1 << (free - length)
    return Placement(
        np.array(rows, np.int32), np.array(slots, np.int32), np.array(starts, np.int32),
        len(texts_in_row),
    )  # fmt: skip


def place_within(
    length_N: np.ndarray, rows: int, *, row_tokens: int, texts_per_row: int
) -> tuple[np.ndarray, Placement]:
    """`place`, in no more than so many rows: where texts need more, the longest are cut.

    Args:
      length_N: tokens per text, each in 1..row_tokens; at most rows · texts_per_row texts.
      rows: that there are; 0 for as many as are needed.
      row_tokens: length of a row.
      texts_per_row: most texts in a row.
    Returns: (tokens that are kept of each text, up to the largest limit that fits; placement).
    """
    placement = place(length_N, row_tokens=row_tokens, texts_per_row=texts_per_row)
    if not rows or placement.num_rows <= rows:
        return length_N, placement
    assert len(length_N) <= rows * texts_per_row, f"{len(length_N)} texts in {rows} rows"
    # At a limit of 1 each row holds as many texts as it may.
    fits, too_long = 1, int(length_N.max())
    while too_long - fits > 1:
        limit = (fits + too_long) // 2
        found = place(
            np.minimum(length_N, limit), row_tokens=row_tokens, texts_per_row=texts_per_row
        )
        fits, too_long = (limit, too_long) if found.num_rows <= rows else (fits, limit)
    length_N = np.minimum(length_N, fits)
    return length_N, place(length_N, row_tokens=row_tokens, texts_per_row=texts_per_row)


def bucket_rows(num_rows: int, multiple: int) -> int:
    """Rounds the number of rows up, so that few programs are compiled.

    Args:
      num_rows: at least so many.
      multiple: of this.
    Returns: the least multiple of `multiple`, and of an eighth of the power of two below it, that
      is: at most 1/8 more rows than needed.
    """
    step = multiple
    while step * 16 <= num_rows:
        step *= 2
    return -(-max(num_rows, 1) // step) * step


def cut_lengths(length_NS: np.ndarray, config: FeedConfig) -> np.ndarray:
    """Tokens that are kept of texts: [N, S] as given, queries in the first column."""
    limits_S = [config.query_tokens] + [config.positive_tokens] * (length_NS.shape[1] - 1)
    return np.minimum(length_NS, np.array(limits_S)[None])


def mix(x_N: np.ndarray) -> np.ndarray:
    """The finaliser of SplitMix64 (Steele et al. 2014): 64 bits in, 64 well-mixed bits out."""
    x_N = (x_N ^ (x_N >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x_N = (x_N ^ (x_N >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x_N ^ (x_N >> np.uint64(31))


def spread(first_N: np.ndarray, length_N: np.ndarray) -> np.ndarray:
    """Int64 [T]: the numbers first, first + 1, ... of each span, one span after another."""
    before_N = np.cumsum(length_N) - length_N
    return np.arange(length_N.sum()) + np.repeat(first_N - before_N, length_N)


def fill(
    ids_T: np.ndarray,
    start_N: np.ndarray,
    length_N: np.ndarray,
    placement: Placement,
    *,
    row_tokens: int,
) -> tuple[Int32[np.ndarray, "R L"], Int32[np.ndarray, "R L"]]:
    """Writes token ids into their rows.

    Args:
      ids_T: token ids of all texts.
      start_N: where each text starts in `ids_T`.
      length_N: tokens of each text.
      placement: of the same lengths.
      row_tokens: length of a row.
    Returns: (ids_RL, segments_RL). A text in slot s has segment s + 1; padding is 0 in both.
    """
    where_T = spread(placement.row_N.astype(np.int64) * row_tokens + placement.start_N, length_N)
    ids_RL = np.zeros((placement.num_rows, row_tokens), np.int32)
    segments_RL = np.zeros((placement.num_rows, row_tokens), np.int32)
    ids_RL.reshape(-1)[where_T] = ids_T[spread(start_N, length_N)]
    segments_RL.reshape(-1)[where_T] = np.repeat(placement.slot_N + 1, length_N)
    return ids_RL, segments_RL
