"""Which entries of a similarity matrix count, by the texts and labels of their records."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float32, Int8, Int32


class Ids(NamedTuple):
    """Of N rows or N keys: which entries of the matrix count.

    Those of two records that share no text and no label, where neither's text is a known match of
    the other's query, and whose cosine is below the limit.
    """

    pair_N: Int32[Array, "N"]
    """Number of the record. In the order of the whole batch, where rows are compared with
    themselves."""
    text_NT: Int32[Array, "N T"] | None = None
    """Equal numbers for equal texts, of the record; None masks none of them."""
    own_N: Int32[Array, "N"] | None = None
    """Number of the text itself, that is a known match or isn't."""
    run_N2: Int32[Array, "N 2"] | None = None
    """Where the known matches of the record's query begin in `Matches.text_M`, and their count."""
    label_N: Int32[Array, "N"] | None = None
    """Equal numbers of 0 or more for records of one label; negative without one."""
    limit_N: Float32[Array, "N"] | None = None
    """A cosine: what is at or above it does not count in the sum of this row or key."""
    guide_NG: Float32[Array, "N G"] | Int8[Array, "N G"] | None = None
    """Vectors of any length, whose cosines the limit is for; None where it is for the model's."""


RULES = ("texts", "label", "limit")
"""Why an entry may not count; the first that holds."""


class Matches(NamedTuple):
    """The known matches of all queries, which every device holds."""

    text_M: Int32[Array, "M"]
    """Positives, in the order of their queries."""
    most: Int32[Array, ""]
    """Of one query; 0 where no query has more than its own positive."""

    def mask(
        self,
        masked_RN: Bool[Array, "R N"],
        run_R2: Int32[Array, "R 2"],
        text_XN: Int32[Array, "X N"],
    ) -> Bool[Array, "R N"]:
        """Adds to a mask the texts that match the query of each row.

        Args:
          masked_RN: what is masked already.
          run_R2: as in `Ids`.
          text_XN: the texts; X is R, or 1 where each row is compared with the same ones.
        """

        def add(number: Array, masked_RN: Array) -> Array:
            match_R1 = jnp.take(self.text_M, run_R2[:, :1] + number, mode="clip")
            return masked_RN | ((match_R1 == text_XN) & (number < run_R2[:, 1:]))

        return jax.lax.fori_loop(0, self.most, add, masked_RN)


def known_matches(
    query_B: Int32[Array, "B"], positive_B: Int32[Array, "B"]
) -> tuple[Matches, Int32[Array, "B 2"]]:
    """The positives of every query, over all pairs that have it.

    Args:
      query_B: equal numbers for equal texts.
      positive_B: in the same numbers.
    Returns: the matches, and each pair's run in them.
    Example: pairs (a, x), (b, y), (a, z) give x z y, and the runs (0, 2), (2, 1), (0, 2).
    """
    order_B = jnp.argsort(query_B)
    sorted_B = query_B[order_B]
    first_B = jnp.searchsorted(sorted_B, query_B).astype(jnp.int32)
    count_B = jnp.searchsorted(sorted_B, query_B, side="right").astype(jnp.int32) - first_B
    most = jnp.max(count_B)
    matches = Matches(positive_B[order_B], jnp.where(most > 1, most, 0))
    return matches, jnp.stack([first_B, count_B], axis=1)


def share_a_text(row: Ids, key: Ids, matches: Matches | None) -> Array | None:
    """Entries whose records share a text, or of which one matches the query of the other.

    Returns: [R, N], or None where texts mask none.
    """
    if row.text_NT is None or key.text_NT is None:
        return None
    columns = [(r_B, k_N) for r_B in row.text_NT.T for k_N in key.text_NT.T]
    is_known_BN = functools.reduce(
        jnp.logical_or, (row_B[:, None] == key_N[None] for row_B, key_N in columns)
    )
    if matches is not None and row.run_N2 is not None and key.own_N is not None:
        is_known_BN = matches.mask(is_known_BN, row.run_N2, key.own_N[None])
    if matches is not None and key.run_N2 is not None and row.own_N is not None:
        is_known_BN = matches.mask(is_known_BN.T, key.run_N2, row.own_N[None]).T
    return is_known_BN


def share_a_label(row: Ids, key: Ids) -> Array | None:
    """Entries whose records have one label; None where they have none."""
    if row.label_N is None or key.label_N is None:
        return None
    return (row.label_N[:, None] == key.label_N[None]) & (row.label_N >= 0)[:, None]
