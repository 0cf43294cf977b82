"""The batch that a plan is made for: how many rows texts of a given length fill."""

from dataclasses import dataclass

import numpy as np

from jina_jax.config import FeedConfig
from jina_jax.errors import UserError
from jina_jax.feed.packing import bucket_rows, place
from jina_jax.model.flops import Work


@dataclass(frozen=True)
class BatchShape:
    """A global batch of pairs or triplets whose texts all have their column's length."""

    pairs: int
    lengths: tuple[int, ...]
    """Tokens of a query, of a positive and of each hard negative."""
    rows: int
    row_tokens: int

    @property
    def negatives(self) -> int:
        """Hard negatives of a record."""
        return len(self.lengths) - 2

    @property
    def texts(self) -> Work:
        """Real tokens, and the positions that attention within texts scores."""
        return Work(self.pairs * sum(self.lengths), self.pairs * sum(n * n for n in self.lengths))

    @property
    def computed(self) -> Work:
        """The rows as they are, padding included."""
        return Work.of_rows(self.rows, self.row_tokens)


def batch_shape(feed: FeedConfig, tokens: int, negatives: int = 0) -> BatchShape:
    """The batch of texts of a length, packed as the feed does.

    Args:
      feed: batch size, limits and packing.
      tokens: of each text; 0 takes texts at the feed's limits.
      negatives: hard negatives of each record.
    Raises: UserError when a number is negative.
    """
    for name, value in (("tokens", tokens), ("negatives", negatives)):
        if value < 0:
            raise UserError(f"--{name} {value} must not be negative")
    limits = (feed.query_tokens, *[feed.positive_tokens] * (1 + negatives))
    lengths = tuple(min(tokens or limit, limit) for limit in limits)
    placement = place(
        np.tile(lengths, feed.global_batch_size),
        row_tokens=feed.row_tokens,
        texts_per_row=feed.texts_per_row,
    )
    rows = bucket_rows(placement.num_rows, feed.rows_multiple)
    return BatchShape(feed.global_batch_size, lengths, rows, feed.row_tokens)
