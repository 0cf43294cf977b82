"""Shards: ArrayRecord files of tokenised texts, and how a record of them is laid out.

A record of n texts (2 for a pair) is, without padding and little-endian:

    u8 n | u8 s | [u8 k | u16 g] | n × 16 bytes text hash | n × u16 length | s × float32 score
    | [u64 label] | [float32 gold score] | g × int8 of each text of any tokens
    | ids of text 0, of text 1, ...

where s is n - 1 where a teacher has scored the query with each other text, and else 0. Ids are
uint16, or uint32 where the highest bit of the first byte is set: of vocabularies above 65,536.
Where the highest bit of the second byte is set, k says what else there is: a label (bit 0), a gold
score (bit 1); and g is the dimensions of a guide's embeddings, 0 for none.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import NamedTuple

import numpy as np
from array_record.python.array_record_module import ArrayRecordWriter

from jina_jax.text.identity import HASH_BYTES

MAX_TEXT_TOKENS = 65535
SMALL_VOCABULARY = 1 << 16
"""Pieces whose ids two bytes hold."""
_WIDE, _MORE = 0x80, 0x80
"""Of the first and the second byte."""
_LABEL, _GOLD = 1, 2
"""Bits of k."""
MAX_GUIDE_DIMS = 65535
_WRITE_OPTIONS = "group_size:16,uncompressed"
"""Ids hardly compress: zstd saves 24% of the bytes and halves the records read per second (measured
on 117k records of 200 bytes, in batches of 1,024: 186k/s against 87k/s a core; groups of 1, 4 and
16 differ by less than 10%, and 16 makes the smallest index)."""


@dataclass(frozen=True)
class TokenisedRecords:
    """Decoded records, in the order asked for. N records of S texts, T ids in all."""

    ids_T: np.ndarray
    """uint16 or uint32; all texts one after another, record by record."""
    starts_NS: np.ndarray
    """int64; where each text starts in `ids_T`."""
    lengths_NS: np.ndarray
    """int64; tokens of each text, </s> included."""
    hashes_NSx2: np.ndarray
    """uint64; the two halves of each text's hash: equal exactly when the texts are the same."""
    scores_NS: np.ndarray | None = None
    """float32 [N, S - 1], a teacher's of the query with each other text, NaN where there is none;
    None where the records have none at all."""
    labels_N: np.ndarray | None = None
    """uint64, equal exactly where the labels are; None where the records have none."""
    golds_N: np.ndarray | None = None
    """float32, the score of each pair by its source; None where they aren't scored pairs."""
    guide_NSG: np.ndarray | None = None
    """int8 [N, S, G], a guide's embedding of each text, its largest entry 127 or -127; zeros where
    the text isn't there. None where no guide has embedded them."""

    def __len__(self) -> int:
        return len(self.lengths_NS)

    def text(self, record: int, position: int) -> np.ndarray:
        """Ids of one text, a view.

        Args:
          record: 0 ≤ record < len(self).
          position: 0 for the query, 1 for the positive.
        """
        start = self.starts_NS[record, position]
        return self.ids_T[start : start + self.lengths_NS[record, position]]

    def part(self, first: int, last: int) -> "TokenisedRecords":
        """Records [first, last), as views where they are in the order of `ids_T`."""
        starts_NS, lengths_NS = self.starts_NS[first:last], self.lengths_NS[first:last]
        begin = int(starts_NS[0, 0]) if last > first else 0
        end = int(starts_NS[-1, -1] + lengths_NS[-1, -1]) if last > first else 0
        return self._with(
            self.ids_T[begin:end], starts_NS - begin, lengths_NS, lambda x: x[first:last]
        )

    def take(self, order_M: np.ndarray) -> "TokenisedRecords":
        """Some records in another order, whose ids follow each other in that."""
        lengths_MS = self.lengths_NS[order_M]
        starts_M, length_M = self.starts_NS[order_M, 0], lengths_MS.sum(1)
        before_M = np.cumsum(length_M) - length_M
        where_T = np.arange(length_M.sum()) + np.repeat(starts_M - before_M, length_M)
        return self._with(
            self.ids_T[where_T], _starts(lengths_MS), lengths_MS, lambda x: x[order_M]
        )

    def _with(
        self, ids_T: np.ndarray, starts_NS: np.ndarray, lengths_NS: np.ndarray,
        of: Callable[[np.ndarray], np.ndarray],
    ) -> "TokenisedRecords":  # fmt: skip
        rest = (self.scores_NS, self.labels_N, self.golds_N, self.guide_NSG)
        return TokenisedRecords(
            ids_T, starts_NS, lengths_NS, of(self.hashes_NSx2),
            *(None if x is None else of(x) for x in rest),
        )  # fmt: skip

    @staticmethod
    def joined(parts: Sequence["TokenisedRecords"]) -> "TokenisedRecords":
        """Records of one source, one part after another; the ids of each in the order of its
        records.
        """
        if len(parts) == 1:
            return parts[0]
        lengths_NS = np.concatenate([part.lengths_NS for part in parts])

        def column(name: str) -> np.ndarray | None:
            found = [getattr(part, name) for part in parts]
            return None if found[0] is None else np.concatenate(found)

        hashes_NSx2 = np.concatenate([part.hashes_NSx2 for part in parts])
        return TokenisedRecords(
            np.concatenate([part.ids_T for part in parts]), _starts(lengths_NS), lengths_NS,
            hashes_NSx2, *map(column, ("scores_NS", "labels_N", "golds_N", "guide_NSG")),
        )  # fmt: skip


def _starts(lengths_NS: np.ndarray) -> np.ndarray:
    """Where each text begins, of ids in the order of the records."""
    return np.cumsum(lengths_NS).reshape(lengths_NS.shape) - lengths_NS


def encode_record(
    hashes: Sequence[bytes],
    ids: Sequence[Sequence[int] | np.ndarray],
    scores: Sequence[float] | np.ndarray = (),
    *,
    wide: bool = False,
    label: int | None = None,
    gold: float | None = None,
    guide_NG: np.ndarray | None = None,
) -> bytes:
    """Lays out one record.

    Args:
      hashes: 16 bytes per text.
      ids: token ids per text.
      scores: a teacher's, of the query with each other text; none where there are none.
      wide: four bytes an id, for a vocabulary above `SMALL_VOCABULARY`, and not two.
      label: 64 bits, equal for records of one label; None where they have none.
      gold: the score of a pair by its source; None where it has none.
      guide_NG: int8, a guide's embedding of each text of any tokens, in their order; None for none.
    Returns: 2 + 18n + 4·(scores) + 2 or 4·(all ids) bytes; with one of the last three 3 more, 8 of
      a label, 4 of a gold score and G of each embedding.
    """
    assert 0 < len(hashes) == len(ids) < _WIDE
    assert len(scores) in (0, len(ids) - 1)
    assert all(len(h) == HASH_BYTES for h in hashes)
    lengths = np.array([len(text) for text in ids])
    assert lengths.max() <= MAX_TEXT_TOKENS
    texts = [np.asarray(text, dtype="<u4" if wide else "<u2").tobytes() for text in ids]
    more, after = b"", np.asarray(scores, "<f4").tobytes()
    if label is not None or gold is not None or guide_NG is not None:
        dims = 0 if guide_NG is None else guide_NG.shape[1]
        what = _LABEL * (label is not None) + _GOLD * (gold is not None)
        more = what.to_bytes(1, "little") + dims.to_bytes(2, "little")
        after += b"" if label is None else label.to_bytes(8, "little")
        after += b"" if gold is None else np.float32(gold).astype("<f4").tobytes()
    if guide_NG is not None:
        assert guide_NG.dtype == np.int8 and len(guide_NG) == (lengths > 0).sum()
        after += guide_NG.tobytes()
    head = bytes([len(ids) + _WIDE * wide, len(scores) + _MORE * bool(more)])
    return b"".join([head, more, *hashes, lengths.astype("<u2").tobytes(), after, *texts])


def decode_records(records: Sequence[bytes]) -> TokenisedRecords:
    """Reads records of one layout back, all at once: of equally many texts and scores, with or
    without labels, gold scores and embeddings of a guide.

    Raises: ValueError when the bytes are no such records.
    """
    if not records:
        return _decoded(np.zeros(0, np.uint8), np.zeros(0, np.int64), _Layout(bytes([2, 0])))
    lead = 5 if records[0][1:2] >= bytes([_MORE]) else 2
    if len(records[0]) < lead:
        raise ValueError(f"a record of less than {lead} bytes")
    sizes_N = np.array([len(record) for record in records])
    layout = _Layout(records[0][:lead])
    return _decoded(np.frombuffer(b"".join(records), np.uint8), sizes_N, layout)


class _Layout(NamedTuple):
    """What the first bytes of a record say."""

    lead: bytes

    @property
    def texts(self) -> int:
        return self.lead[0] % _WIDE

    @property
    def id_bytes(self) -> int:
        return 4 if self.lead[0] >= _WIDE else 2

    @property
    def guide_dims(self) -> int:
        return int.from_bytes(self.lead[3:], "little")

    def parts(self) -> dict[str, int]:
        """Name of each part that all records have alike → its bytes, in their order."""
        what = self.lead[2] if len(self.lead) > 2 else 0
        return {
            "lead": len(self.lead),
            "hashes": HASH_BYTES * self.texts,
            "lengths": 2 * self.texts,
            "scores": 4 * (self.lead[1] % _MORE),
            "label": 8 * bool(what & _LABEL),
            "gold": 4 * bool(what & _GOLD),
        }

    def __str__(self) -> str:
        return f"{self.texts} texts and {self.lead[1] % _MORE} scores"


def _decoded(buffer: np.ndarray, sizes_N: np.ndarray, layout: _Layout) -> TokenisedRecords:
    n, sizes = layout.texts, layout.parts()
    ends = dict(zip(sizes, accumulate(sizes.values()), strict=True))
    header = ends["gold"]
    starts_N = np.cumsum(sizes_N) - sizes_N
    lead = np.frombuffer(layout.lead, np.uint8)
    if n == 0 or (sizes_N < header).any() or (
        buffer[starts_N[:, None] + np.arange(len(lead))] != lead
    ).any():  # fmt: skip
        raise ValueError(f"not records of {layout}")
    heads = buffer[starts_N[:, None] + np.arange(header)]

    def part(name: str, dtype: str) -> np.ndarray | None:
        """[N, ...] of what lies in that part; None where it is empty."""
        if not sizes[name]:
            return None
        return np.ascontiguousarray(heads[:, ends[name] - sizes[name] : ends[name]]).view(dtype)

    hashes, lengths = part("hashes", "<u8"), part("lengths", "<u2")
    assert hashes is not None and lengths is not None
    lengths_NS = lengths.astype(np.int64)
    guide_bytes_N = (lengths_NS > 0).sum(1) * layout.guide_dims
    if (lengths_NS.sum(1) * layout.id_bytes + guide_bytes_N + header != sizes_N).any():
        raise ValueError("lengths do not add up to the size of the record")
    is_id = np.ones(len(buffer), bool)
    is_id[starts_N[:, None] + np.arange(header)] = False
    guide_NSG = None
    if layout.guide_dims:
        # Embeddings follow each other in the buffer but for what lies between two records.
        before_N = np.cumsum(guide_bytes_N) - guide_bytes_N
        place_T = np.arange(guide_bytes_N.sum())
        place_T += np.repeat(starts_N + header - before_N, guide_bytes_N)
        is_id[place_T] = False
        guide_NSG = np.zeros((*lengths_NS.shape, layout.guide_dims), np.int8)
        found = buffer[place_T].view(np.int8)
        guide_NSG[lengths_NS > 0] = found.reshape(-1, layout.guide_dims)
    labels, golds = part("label", "<u8"), part("gold", "<f4")
    return TokenisedRecords(
        ids_T=buffer[is_id].view(f"<u{layout.id_bytes}"),
        starts_NS=_starts(lengths_NS),
        lengths_NS=lengths_NS,
        hashes_NSx2=hashes.reshape(-1, n, 2),
        scores_NS=part("scores", "<f4"),
        labels_N=None if labels is None else labels[:, 0],
        golds_N=None if golds is None else golds[:, 0],
        guide_NSG=guide_NSG,
    )


class ShardWriter(AbstractContextManager["ShardWriter"]):
    """Writes records to one shard file; the file is complete once closed."""

    def __init__(self, path: Path):
        self._writer = ArrayRecordWriter(str(path), _WRITE_OPTIONS)
        self.records = 0

    def write(self, record: bytes) -> None:
        """Appends a record made by `encode_record`."""
        self._writer.write(record)
        self.records += 1

    def close(self) -> None:
        """Writes the index at the end of the file."""
        self._writer.close()

    def __exit__(self, *_: object) -> None:
        self.close()
