"""A global batch: texts packed into rows, and where each pair's texts lie."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Int32

from jina_jax.config import FeedConfig
from jina_jax.feed.packing import bucket_rows, fill, place


class PackedBatch(NamedTuple):
    """What the train step takes. T texts a record: 0 is the query, 1 the positive."""

    ids_RL: Int32[np.ndarray, "R L"]
    """Token ids; 0 where there is padding."""
    segments_RL: Int32[np.ndarray, "R L"]
    """0 for padding, else 1 + the slot of the text in its row."""
    slot_BT: Int32[np.ndarray, "B T"]
    """Where text t of record b lies: row · texts_per_row + slot."""
    identity_BT: Int32[np.ndarray, "B T"]
    """Equal for two texts of the batch when their text hashes are equal."""


class Batch(NamedTuple):
    """A PackedBatch and what the metrics and a replay need to know of it."""

    step: int
    source: int
    """Index into the manifest's sources."""
    record_B: np.ndarray
    """int64 record numbers within the source."""
    arrays: PackedBatch


def pack_batch(
    texts: Sequence[Sequence[np.ndarray]], hash_BT2: np.ndarray, config: FeedConfig
) -> PackedBatch:
    """Packs the texts of B records.

    Args:
      texts: T sequences (queries, positives) of B arrays of token ids that end in end-of-sequence.
      hash_BT2: uint64 [B, T, 2], the 128-bit hash of each text.
      config: lengths and row shape. A text cut to its limit keeps its end-of-sequence.
    """
    limits = (config.query_tokens,) + (config.positive_tokens,) * (len(texts) - 1)
    flat = [
        ids if len(ids) <= limit else np.append(ids[: limit - 1], ids[-1])
        for column, limit in zip(texts, limits, strict=True)
        for ids in column
    ]
    length_N = np.array([len(ids) for ids in flat], np.int64)
    placement = place(length_N, row_tokens=config.row_tokens, texts_per_row=config.texts_per_row)
    num_rows = bucket_rows(placement.num_rows, config.rows_multiple)
    ids_RL, segments_RL = fill(flat, placement, num_rows=num_rows, row_tokens=config.row_tokens)
    slot_TB = (placement.row_N * config.texts_per_row + placement.slot_N).reshape(len(texts), -1)
    hash_N = np.ascontiguousarray(hash_BT2).view([("low", "u8"), ("high", "u8")])
    identity = np.unique(hash_N, return_inverse=True)[1].reshape(hash_BT2.shape[:2])
    return PackedBatch(
        ids_RL, segments_RL, np.ascontiguousarray(slot_TB.T), identity.astype(np.int32)
    )
