"""A batch: groups of records, whose texts are packed into rows, each group's into its own."""

import math
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float32, Int8, Int32, UInt32

from jina_jax.config import FeedConfig
from jina_jax.feed.packing import (
    Placement,
    bucket_rows,
    cut_lengths,
    fill,
    mix,
    place_within,
    spread,
)
from jina_jax.shards.array_record import TokenisedRecords


class PackedBatch(NamedTuple):
    """What the train step takes. T texts a record: query, positive and hard negatives, in order."""

    ids_RL: Int32[np.ndarray, "R L"]
    """Token ids; 0 where there is padding."""
    segments_RL: Int32[np.ndarray, "R L"]
    """0 for padding, else 1 + the slot of the text in its row."""
    slot_BT: Int32[np.ndarray, "B T"]
    """Where text t of record b lies: row · texts_per_row + slot, rows counted within its group; -1
    where it isn't there."""
    identity_BTH: UInt32[np.ndarray, "B T 4"]
    """64 bits of the text's hash, and 64 of a hash of the tokens that the model sees of it; zeros
    where the text isn't there."""
    teacher_BS: Float32[np.ndarray, "B S"]
    """A teacher's score of each query with its other texts; NaN where there is none."""
    pooled_RL: Int32[np.ndarray, "R L"] | None = None
    """`segments_RL` with 0 for the tokens of prompts; None where the mean counts them too."""
    label_B2: UInt32[np.ndarray, "B 2"] | None = None
    """64 bits of a hash of the record's label; zeros for records without one. None in a run no
    source of which has labels."""
    own_only: Bool[np.ndarray, ""] | None = None
    """Whether the source's in-batch negatives are false, so that only a record's own negatives
    count. None in a run without such a source."""
    score_B: Float32[np.ndarray, "B"] | None = None
    """The score of each pair by its source, in a batch of scored pairs alone."""
    guide_BTG: Int8[np.ndarray, "B T G"] | None = None
    """A guide's embeddings: each divided by its largest absolute entry, times 127, rounded; zeros
    where the text isn't there. None where the shards have none."""


class RecordKind(NamedTuple):
    """What the records of a source are; batches of two kinds are two programs."""

    texts: int
    """Of a record: query, positive and hard negatives."""
    is_scored: bool = False
    """Whether they are pairs with a score."""


class BatchFields(NamedTuple):
    """Which fields the batches of a run have, whatever source they come from."""

    labels: bool = False
    """Whether any source has labels."""
    own_only: bool = False
    """Whether any source has `in_batch=False`."""
    guide_dims: int = 0
    """Of the guide's embeddings; 0 where there is no guide."""


TEXTS_ALONE = BatchFields()


class Batch(NamedTuple):
    """The groups of a batch that a process makes, and what metrics and a replay need of them."""

    step: int
    source: int
    """Index into the manifest's sources."""
    record_B: np.ndarray
    """int64 record numbers within the source."""
    arrays: PackedBatch
    parts: float = 1.0
    """How often the whole batch has as many groups as these."""
    cut_tokens: int = 0
    """Beyond the limits of texts, for want of rows."""

    @property
    def fingerprint(self) -> str:
        """Of these groups: equal for the same texts in the same order."""
        return fingerprint_words(fingerprint(self.arrays.identity_BTH))


def pack_batch(
    records: TokenisedRecords,
    config: FeedConfig,
    unpooled: tuple[int, int] | None = None,
    *,
    groups: int = 0,
    rows: int = 0,
    fields: BatchFields = TEXTS_ALONE,
    in_batch: bool = True,
) -> PackedBatch:
    """Packs the texts of B records, those of each group into rows of its own.

    Args:
      records: B records of T texts that end in end-of-sequence, as many of each group, one group
        after another. A hard negative of no tokens isn't there: records may have fewer than the
        T - 2 that they have places for.
      config: lengths and row shape. A text cut to its limit keeps its end-of-sequence.
      unpooled: tokens at the start of a query, and of any other text, that the mean leaves out.
      groups: that the records are of; 0 for those of a whole batch.
      rows: of each group. Where its texts need more, the longest of them are cut until they don't.
        0 takes as many as the largest group needs, rounded up as `bucket_rows` does.
      fields: that the batches of the run have; what a run doesn't ask for is left out.
      in_batch: whether the texts of other records are negatives.
    """
    groups = groups or config.num_groups
    records_B, texts_T = records.lengths_NS.shape
    is_text_BT = records.lengths_NS > 0
    length_BT = cut_lengths(records.lengths_NS, config)
    slot_BT, placement = _place_groups(length_BT, groups, rows, config)
    length_N, start_N = length_BT[is_text_BT], records.starts_NS[is_text_BT]
    ids_RL, segments_RL = fill(
        records.ids_T, start_N, length_N, placement, row_tokens=config.row_tokens
    )
    # Where the text was cut, its last kept token gives way to its end-of-sequence.
    last_N = start_N + records.lengths_NS[is_text_BT] - 1
    ids_RL[placement.row_N, placement.start_N + length_N - 1] = records.ids_T[last_N]
    first_N = placement.row_N.astype(np.int64) * config.row_tokens + placement.start_N
    where_T = spread(first_N, length_N)
    identity_BT2 = np.zeros((records_B, texts_T, 2), np.uint64)
    identity_BT2[is_text_BT, 0] = records.hashes_NSx2[is_text_BT, 0]
    identity_BT2[is_text_BT, 1] = _sequence_hashes(ids_RL.reshape(-1)[where_T], length_N)
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
    return PackedBatch(
        ids_RL, segments_RL, slot_BT, identity_BT2.view(np.uint32), teacher_BS, pooled_RL,
        label_B2=_labels(records) if fields.labels else None,
        own_only=np.array(not in_batch) if fields.own_only else None,
        score_B=records.golds_N,
        guide_BTG=records.guide_NSG if fields.guide_dims else None,
    )  # fmt: skip


def _place_groups(
    length_BT: np.ndarray, groups: int, rows: int, config: FeedConfig
) -> tuple[np.ndarray, Placement]:
    """Places the texts of groups, each in rows of its own; lengths of those that are cut change.

    Returns: (slots as in `PackedBatch`, where each text lies among the rows of all).
    """
    pairs, is_text_BT = len(length_BT) // groups, length_BT > 0
    placed: list[Placement] = []
    for of in (slice(g * pairs, (g + 1) * pairs) for g in range(groups)):
        length_N, placement = place_within(
            length_BT[of][is_text_BT[of]], rows,
            row_tokens=config.row_tokens, texts_per_row=config.texts_per_row,
        )  # fmt: skip
        length_BT[of][is_text_BT[of]] = length_N
        placed.append(placement)
    if not rows:
        multiple = math.lcm(config.rows_multiple, groups) // groups
        rows = bucket_rows(max(placement.num_rows for placement in placed), multiple)
    slot_BT = np.full(length_BT.shape, -1, np.int32)
    slot_N = np.concatenate([p.row_N * config.texts_per_row + p.slot_N for p in placed])
    slot_BT[is_text_BT] = slot_N
    return slot_BT, Placement(
        np.concatenate([p.row_N + number * rows for number, p in enumerate(placed)]),
        np.concatenate([p.slot_N for p in placed]), np.concatenate([p.start_N for p in placed]),
        rows * groups,
    )  # fmt: skip


def record_kind(records: TokenisedRecords) -> RecordKind:
    """What records of one source are."""
    return RecordKind(records.lengths_NS.shape[1], records.golds_N is not None)


def fingerprint(identity_BTH: Any, numpy: Any = np) -> Any:
    """Two uint32 that are equal for two batches of the same texts in the same order.

    Args:
      identity_BTH: of a whole batch.
      numpy: the library that the array is of: NumPy, or JAX's, which gives the same.
    """
    word_N = identity_BTH.reshape(-1)
    place_N = numpy.arange(word_N.size, dtype=np.uint32) * np.uint32(0x9E3779B9)
    # The finaliser of MurmurHash3, by Austin Appleby: 32 bits in, 32 well-mixed bits out.
    found = []
    for shift in (place_N, place_N ^ np.uint32(0x85EBCA6B)):
        x_N = word_N + shift
        x_N = (x_N ^ (x_N >> np.uint32(16))) * np.uint32(0x85EBCA6B)
        x_N = (x_N ^ (x_N >> np.uint32(13))) * np.uint32(0xC2B2AE35)
        found.append(numpy.sum(x_N ^ (x_N >> np.uint32(16)), dtype=np.uint32))
    return numpy.stack(found)


def fingerprint_words(pair: Any) -> str:
    """A fingerprint in hexadecimal digits."""
    return "".join(f"{int(word):08x}" for word in pair)


def _labels(records: TokenisedRecords) -> UInt32[np.ndarray, "B 2"]:
    if records.labels_N is None:
        return np.zeros((len(records), 2), np.uint32)
    return np.ascontiguousarray(records.labels_N).view(np.uint32).reshape(-1, 2)


def _sequence_hashes(ids_T: np.ndarray, length_N: np.ndarray) -> np.ndarray:
    """64-bit hashes of sequences of tokens, one after the other in `ids_T`."""
    position_T = spread(np.zeros_like(length_N), length_N).astype(np.uint64)
    # Sums of mixed numbers tell sequences apart as sums of random ones would.
    mixed_T = mix((ids_T.astype(np.uint64) << np.uint64(32)) + position_T + np.uint64(1))
    ends_N = np.cumsum(length_N)
    sums_T = np.concatenate([np.zeros(1, np.uint64), np.cumsum(mixed_T, dtype=np.uint64)])
    return sums_T[ends_N] - sums_T[ends_N - length_N]
