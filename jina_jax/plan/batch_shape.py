"""The batch that a plan is made for: how many rows texts of a given length fill."""

from dataclasses import dataclass

import numpy as np

from jina_jax.config import FeedConfig
from jina_jax.errors import UserError
from jina_jax.feed.packing import bucket_rows, place
from jina_jax.model.flops import Work

TEXTS_PER_PAIR = 2


@dataclass(frozen=True)
class BatchShape:
    """A global batch of pairs whose texts all have their column's length."""

    pairs: int
    lengths: tuple[int, ...]
    """Tokens of a query and of a positive."""
    rows: int
    row_tokens: int

    @property
    def texts(self) -> Work:
        """Real tokens, and the positions that attention within texts scores."""
        return Work(self.pairs * sum(self.lengths), self.pairs * sum(n * n for n in self.lengths))

    @property
    def computed(self) -> Work:
        """The rows as they are, padding included."""
        return Work.of_rows(self.rows, self.row_tokens)


def batch_shape(feed: FeedConfig, tokens: int) -> BatchShape:
    """The batch of texts of `tokens` tokens each, or, where 0, of texts at the feed's limits.

    Packs them as the feed does.

    Raises: UserError when `tokens` is negative.
    """
    if tokens < 0:
        raise UserError(f"--tokens {tokens} must not be negative")
    lengths = tuple(
        min(tokens or limit, limit) for limit in (feed.query_tokens, feed.positive_tokens)
    )
    placement = place(
        np.tile(lengths, feed.global_batch_size),
        row_tokens=feed.row_tokens,
        texts_per_row=feed.texts_per_row,
    )
    rows = bucket_rows(placement.num_rows, feed.rows_multiple)
    return BatchShape(feed.global_batch_size, lengths, rows, feed.row_tokens)
