"""A global batch: texts packed into rows, and where each pair's texts lie."""

from typing import NamedTuple

import numpy as np
import xxhash
from jaxtyping import Float32, Int32

from jina_jax.config import FeedConfig
from jina_jax.feed.packing import bucket_rows, fill, place, spread
from jina_jax.shards.array_record import TokenisedRecords


class PackedBatch(NamedTuple):
    """What the train step takes. T texts a record: query, positive and hard negatives, in order."""

    ids_RL: Int32[np.ndarray, "R L"]
    """Token ids; 0 where there is padding."""
    segments_RL: Int32[np.ndarray, "R L"]
    """0 for padding, else 1 + the slot of the text in its row."""
    slot_BT: Int32[np.ndarray, "B T"]
    """Where text t of record b lies: row · texts_per_row + slot; -1 where it isn't there."""
    identity_BT: Int32[np.ndarray, "B T"]
    """0 or more, and equal for two texts of the batch when their text hashes are equal; -1 where
    the text isn't there."""
    teacher_BS: Float32[np.ndarray, "B S"]
    """A teacher's score of each query with its other texts; NaN where there is none."""
    pooled_RL: Int32[np.ndarray, "R L"] | None = None
    """`segments_RL` with 0 for the tokens of prompts; None where the mean counts them too."""


class Batch(NamedTuple):
    """A PackedBatch and what the metrics and a replay need to know of it."""

    step: int
    source: int
    """Index into the manifest's sources."""
    record_B: np.ndarray
    """int64 record numbers within the source."""
    arrays: PackedBatch

    @property
    def fingerprint(self) -> str:
        """Equal for two batches of the same records in the same order."""
        numbers = np.concatenate([[self.source], self.record_B]).astype("<i8")
        return xxhash.xxh3_64_hexdigest(numbers.tobytes())


def pack_batch(
    records: TokenisedRecords, config: FeedConfig, unpooled: tuple[int, int] | None = None
) -> PackedBatch:
    """Packs the texts of B records.

    Args:
      records: B records of T texts that end in end-of-sequence. A hard negative of no tokens isn't
        there: records may have fewer than the T - 2 that they have places for.
      config: lengths and row shape. A text cut to its limit keeps its end-of-sequence.
      unpooled: tokens at the start of a query, and of any other text, that the mean leaves out.
    """
    records_B, texts_T = records.lengths_NS.shape
    limit_T = np.array([config.query_tokens] + [config.positive_tokens] * (texts_T - 1))
    is_text_BT = records.lengths_NS > 0
    length_BT = np.minimum(records.lengths_NS, limit_T[None])
    length_N, start_N = length_BT[is_text_BT], records.starts_NS[is_text_BT]
    placement = place(length_N, row_tokens=config.row_tokens, texts_per_row=config.texts_per_row)
    ids_RL, segments_RL = fill(
        records.ids_T, start_N, length_N, placement,
        num_rows=bucket_rows(placement.num_rows, config.rows_multiple),
        row_tokens=config.row_tokens,
    )  # fmt: skip
    # Where the text was cut, its last kept token gives way to its end-of-sequence.
    last_N = start_N + records.lengths_NS[is_text_BT] - 1
    ids_RL[placement.row_N, placement.start_N + length_N - 1] = records.ids_T[last_N]
    slot_BT = np.full(is_text_BT.shape, -1, np.int32)
    slot_BT[is_text_BT] = placement.row_N * config.texts_per_row + placement.slot_N
    whole_hash_NS = np.ascontiguousarray(records.hashes_NSx2).view([("low", "u8"), ("high", "u8")])
    identity_N = np.unique(whole_hash_NS, return_inverse=True)[1]
    identity_BT = np.where(is_text_BT, identity_N.reshape(records_B, texts_T), -1)
    teacher_BS = records.scores_NS
    if teacher_BS is None:
        teacher_BS = np.full((records_B, texts_T - 1), np.nan, np.float32)
    pooled_RL = None
    if unpooled is not None:
        query, other = unpooled
        skipped_T = np.array([query] + [other] * (texts_T - 1))
        skipped_N = np.minimum(skipped_T[None], length_BT)[is_text_BT]
        where_T = spread(placement.row_N * config.row_tokens + placement.start_N, skipped_N)
        pooled_RL = segments_RL.copy()
        pooled_RL.reshape(-1)[where_T] = 0
    return PackedBatch(
        ids_RL, segments_RL, slot_BT, identity_BT.astype(np.int32), teacher_BS, pooled_RL
    )
