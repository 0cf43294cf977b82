"""A global batch: texts packed into rows, and where each pair's texts lie."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import xxhash
from jaxtyping import Float32, Int32
from scipy.sparse import bmat, coo_array
from scipy.sparse.csgraph import connected_components

from jina_jax.config import FeedConfig
from jina_jax.feed.packing import bucket_rows, cut_lengths, fill, mix, place, spread
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
    """0 or more, and equal for two texts of the batch when their text hashes are equal, or the
    tokens that the model sees of them; -1 where the text isn't there."""
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
    records: TokenisedRecords,
    config: FeedConfig,
    unpooled: tuple[int, int] | None = None,
    planned_rows: Sequence[int] = (),
) -> PackedBatch:
    """Packs the texts of B records.

    Args:
      records: B records of T texts that end in end-of-sequence. A hard negative of no tokens isn't
        there: records may have fewer than the T - 2 that they have places for.
      config: lengths and row shape. A text cut to its limit keeps its end-of-sequence.
      unpooled: tokens at the start of a query, and of any other text, that the mean leaves out.
      planned_rows: numbers of rows that a batch may have; others where it needs more.
    """
    records_B, texts_T = records.lengths_NS.shape
    is_text_BT = records.lengths_NS > 0
    length_BT = cut_lengths(records.lengths_NS, config)
    length_N, start_N = length_BT[is_text_BT], records.starts_NS[is_text_BT]
    placement = place(length_N, row_tokens=config.row_tokens, texts_per_row=config.texts_per_row)
    ids_RL, segments_RL = fill(
        records.ids_T, start_N, length_N, placement,
        num_rows=bucket_rows(placement.num_rows, config.rows_multiple, planned_rows),
        row_tokens=config.row_tokens,
    )  # fmt: skip
    # Where the text was cut, its last kept token gives way to its end-of-sequence.
    last_N = start_N + records.lengths_NS[is_text_BT] - 1
    ids_RL[placement.row_N, placement.start_N + length_N - 1] = records.ids_T[last_N]
    slot_BT = np.full(is_text_BT.shape, -1, np.int32)
    slot_BT[is_text_BT] = placement.row_N * config.texts_per_row + placement.slot_N
    first_N = placement.row_N.astype(np.int64) * config.row_tokens + placement.start_N
    where_T = spread(first_N, length_N)
    seen_N = _sequence_hashes(ids_RL.reshape(-1)[where_T], length_N)
    identity_BT = np.full(is_text_BT.shape, -1, np.int32)
    identity_BT[is_text_BT] = _identities(records.hashes_NSx2[is_text_BT], seen_N)
    teacher_BS = records.scores_NS
    if teacher_BS is None:
        teacher_BS = np.full((records_B, texts_T - 1), np.nan, np.float32)
    pooled_RL = None
    if unpooled is not None:
        query, other = unpooled
        skipped_T = np.array([query] + [other] * (texts_T - 1))
        skipped_N = np.minimum(skipped_T[None], length_BT)[is_text_BT]
        pooled_RL = segments_RL.copy()
        pooled_RL.reshape(-1)[spread(first_N, skipped_N)] = 0
    return PackedBatch(ids_RL, segments_RL, slot_BT, identity_BT, teacher_BS, pooled_RL)


def _identities(hashes_Nx2: np.ndarray, seen_N: np.ndarray) -> Int32[np.ndarray, "N"]:
    """Equal numbers for texts with the same hash, or the same tokens, or both with a third."""
    # Half of a hash tells texts apart but for 2⁻⁶⁴ a comparison.
    text_N, tokens_N = (np.unique(x, return_inverse=True)[1] for x in (hashes_Nx2[:, 0], seen_N))
    size = len(seen_N)
    links = coo_array((np.ones(size, bool), (text_N, tokens_N)), shape=(size, size))
    # As a graph of two kinds of nodes: each text joins its hash and its tokens.
    both = bmat([[None, links], [links.T, None]])
    return connected_components(both, directed=False)[1][text_N].astype(np.int32)


def _sequence_hashes(ids_T: np.ndarray, length_N: np.ndarray) -> np.ndarray:
    """64-bit hashes of sequences of tokens, one after the other in `ids_T`."""
    position_T = spread(np.zeros_like(length_N), length_N).astype(np.uint64)
    # Sums of mixed numbers tell sequences apart as sums of random ones would.
    mixed_T = mix((ids_T.astype(np.uint64) << np.uint64(32)) + position_T + np.uint64(1))
    ends_N = np.cumsum(length_N)
    sums_T = np.concatenate([np.zeros(1, np.uint64), np.cumsum(mixed_T, dtype=np.uint64)])
    return sums_T[ends_N] - sums_T[ends_N - length_N]
