"""Which source batch t comes from: a fixed interleave in the proportion of the weights."""

from collections.abc import Sequence

import numpy as np


def interleave(weights: Sequence[float], num_batches: int) -> tuple[np.ndarray, np.ndarray]:
    """Spreads the sources evenly over the batches.

    Batch j of a source with share w is due at (j + 1/2) / w; the batches run in the order in which
    they are due. A longer run begins with the same batches as a shorter one, and after any t
    batches a source has had w·t of them, give or take one per source.

    Args:
      weights: relative, > 0, one per source.
      num_batches: length of the run.
    Returns: (source_T, ordinal_T), int64: batch t is number `ordinal_T[t]` of source `source_T[t]`.
    Example: weights (2, 1) give sources 0, 1, 0, 0, 1, 0, ...
    """
    share = np.asarray(weights, np.float64) / np.sum(weights)
    counts = [int(np.ceil(w * num_batches)) + len(share) + 1 for w in share]
    source = np.repeat(np.arange(len(share)), counts)
    ordinal = np.concatenate([np.arange(n) for n in counts])
    due = (ordinal + 0.5) / share[source]
    order = np.lexsort((source, due))[:num_batches]
    return source[order], ordinal[order]
