"""Length bounds: texts that are too short to say something or too long to be a passage."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from jina_jax.config import LengthConfig
from jina_jax.prepare.filters.filter import Records, Verdict


@dataclass(frozen=True)
class LengthFilter:
    """Drops a pair when one of its texts has too few or too many characters or words."""

    config: LengthConfig
    name: ClassVar[str] = "lengths"
    version: ClassVar[int] = 1
    records: ClassVar[tuple[Records, ...]] = ("pair", "scored")
    score_range: ClassVar[tuple[float, float]] = (0.0, 1.0)

    def __call__(self, batch: pa.RecordBatch) -> Verdict:
        """Reasons `too_short` and `too_long`; the first bound that is broken is told."""
        bounds = self.config
        reason_N = np.full(len(batch), "", object)
        detail_N = np.full(len(batch), "", object)
        for text in ("query", "positive"):
            column = batch.column(text)
            for unit, least, most, length in (
                ("characters", bounds.min_characters, bounds.max_characters, pc.utf8_length),
                ("words", bounds.min_words, bounds.max_words, _words),
            ):
                if least == 0 and most is None:
                    continue
                length_N = length(column).to_numpy(zero_copy_only=False)
                over_N = np.zeros(len(batch), bool) if most is None else length_N > most
                for reason, wrong_N, bound in (
                    ("too_short", length_N < least, f"at least {least:,}"),
                    ("too_long", over_N, f"at most {most or 0:,}"),
                ):
                    for i in np.flatnonzero(wrong_N & (reason_N == "")):
                        reason_N[i] = reason
                        detail_N[i] = f"{text} of {length_N[i]:,} {unit}, {bound} wanted"
        return Verdict(reason_N, detail_N, None)


def _words(column: pa.Array) -> pa.Array:
    return pc.list_value_length(pc.utf8_split_whitespace(pc.utf8_trim_whitespace(column)))
