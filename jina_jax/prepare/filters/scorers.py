"""The filters that need a model, as stages of preparation.

`filter.Scorer` says what a stage is, and `prepare/scoring.py` runs it; models, and the sample of a
source, are opened where the work is done, once in a process.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, NamedTuple

import jax
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import xxhash

from jina_jax.config import ConsistencyConfig, MarginConfig
from jina_jax.inference.embedder import Embedder
from jina_jax.inference.model_folder import model_sha256
from jina_jax.prepare.filters.consistency import Ranker, Sample, keep_by_rank
from jina_jax.prepare.filters.filter import (
    Batches,
    Learnt,
    Records,
    Verdict,
    check_unchanged,
    verdict,
)
from jina_jax.prepare.filters.margin import CrossEncoder, keep_by_margin, margins, triplet_logits
from jina_jax.text.identity import find_keys, hash_words

_EMBEDDINGS, _HASHES, _TEXTS = "embeddings.f32", "hashes.u64", "texts.u64"


@dataclass(frozen=True)
class ConsistencyFilter:
    """Keeps a pair when fewer than `top_k` of the sampled passages score above its own.

    The sample is of `sample_size` pairs of the source as they are before any filter, those with
    the lowest hashes. The scores of a pair are its rank, the number of passages above, and its
    cosine: another `top_k` finds them again.
    """

    config: ConsistencyConfig
    model_sha256: str
    """Of the model's files: another model under the same name is another filter."""
    name: ClassVar[str] = "consistency"
    version: ClassVar[int] = 3
    records: ClassVar[tuple[Records, ...]] = ("pair",)
    thresholds: ClassVar[tuple[str, ...]] = (
        "config.enabled", "config.model", "config.top_k", "config.sample_size",
    )  # fmt: skip
    needs_accelerator: ClassVar[bool] = True
    teaches: ClassVar[slice | None] = slice(1, 2)

    @property
    def score_range(self) -> tuple[float, float]:
        """A bin a rank; whatever is higher stands in the last."""
        return 0.0, 50.0

    @property
    def sample_size(self) -> int:
        """As in Scorer."""
        return self.config.sample_size

    def fit(self, batches: Batches, folder: Path) -> None:
        """Writes the embeddings of the sampled passages, their text hashes, and hashes of the texts
        as they are.
        """
        files = [(folder / name).open("wb") for name in (_EMBEDDINGS, _HASHES, _TEXTS)]
        with files[0], files[1], files[2]:
            for batch in batches:
                texts = batch.column("positive").to_pylist()
                words = hash_words(batch.column("positive_hash"))
                data = (self._embed(texts, is_query=False), words, _text_keys(texts))
                for file, array in zip(files, data, strict=True):
                    file.write(array.tobytes())

    def score(self, batch: pa.RecordBatch, learnt: Learnt) -> np.ndarray:
        """Ranks and cosines, float32 [N, 2]. Passages of the sample are not embedded again."""
        sampled = _sampled(learnt, self.config, self.model_sha256)
        q_ND = self._embed(batch.column("query").to_pylist(), is_query=True)
        passages: list[str] = batch.column("positive").to_pylist()
        place_N, is_sampled_N = find_keys(sampled.text_M, _text_keys(passages))
        p_ND = np.empty_like(q_ND)
        p_ND[is_sampled_N] = sampled.z_MD[sampled.row_M[place_N[is_sampled_N]]]
        others = np.flatnonzero(~is_sampled_N)
        if len(others):
            p_ND[others] = self._embed([passages[i] for i in others], is_query=False)
        rank_N = sampled.ranker.ranks(q_ND, p_ND, hash_words(batch.column("positive_hash")))
        return np.stack([rank_N, np.einsum("nd,nd->n", q_ND, p_ND)], axis=1).astype(np.float32)

    def decide(self, batch: pa.RecordBatch, score_NS: np.ndarray, learnt: Learnt) -> Verdict:
        """Reason `inconsistent`; scores are the ranks."""
        rank_N = score_NS[:, 0]
        keep_N = keep_by_rank(rank_N.astype(np.int32), self.config)
        reasons = np.where(keep_N, "", "inconsistent").astype(object)
        details = [f"{int(r):,} sampled passages score above its own" for r in rank_N]
        return verdict(reasons, np.where(keep_N, "", details), rank_N)

    def _embed(self, texts: Sequence[str], *, is_query: bool) -> np.ndarray:
        encoder = sentence_encoder(self.config.model, self.model_sha256)
        prompts = encoder.prompts
        return encoder.encode(texts, prompt=prompts.query if is_query else prompts.document)


def _text_keys(texts: Sequence[str]) -> np.ndarray:
    """uint64 [N]: hashes of texts as they are."""
    return np.array([xxhash.xxh3_64_intdigest(text.encode()) for text in texts], np.uint64)


class _Sampled(NamedTuple):
    """The sample of a source, on the devices and on disk."""

    ranker: Ranker
    z_MD: np.ndarray
    text_M: np.ndarray
    """Ascending keys of the texts."""
    row_M: np.ndarray
    """Where the embedding of each is."""


@functools.lru_cache(maxsize=1)
def _sampled(learnt: Learnt, config: ConsistencyConfig, sha256: str) -> _Sampled:
    """Opens the sample of a source, once in a process while it works on that source."""
    folder, encoder = learnt.local(), sentence_encoder(config.model, sha256)
    z_MD = np.memmap(folder / _EMBEDDINGS, np.float32, "r").reshape(-1, encoder.dimensions)
    hash_Mx2 = np.fromfile(folder / _HASHES, np.uint64).reshape(-1, 2)
    text_M = np.fromfile(folder / _TEXTS, np.uint64)
    row_M = np.argsort(text_M, kind="stable")
    ranker = Ranker(Sample(z_MD, hash_Mx2), config, encoder.mesh)
    return _Sampled(ranker, z_MD, text_M[row_M], row_M)


@dataclass(frozen=True)
class MarginFilter:
    """Keeps a triplet when a cross-encoder scores its positive above its negative by a margin.

    The scores are both logits: another scale or threshold finds them in the cache.
    """

    config: MarginConfig
    model_sha256: str
    """Of the model's files."""
    name: ClassVar[str] = "margin"
    version: ClassVar[int] = 1
    records: ClassVar[tuple[Records, ...]] = ("triplet",)
    thresholds: ClassVar[tuple[str, ...]] = (
        "config.enabled", "config.model", "config.threshold", "config.scale",
    )  # fmt: skip
    needs_accelerator: ClassVar[bool] = True
    teaches: ClassVar[slice | None] = slice(0, 2)

    @property
    def score_range(self) -> tuple[float, float]:
        """Margins of probabilities lie in -1..1; those of logits mostly within 20."""
        return (-1.0, 1.0) if self.config.scale == "sigmoid" else (-20.0, 20.0)

    @property
    def sample_size(self) -> int:
        """As in Scorer: there is nothing to learn."""
        return 0

    def fit(self, batches: Batches, folder: Path) -> None:
        """Learns nothing."""

    def score(self, batch: pa.RecordBatch, learnt: Learnt) -> np.ndarray:
        """Logits of the positive and of the negative, float32 [N, 2]."""
        columns = [batch.column(n).to_pylist() for n in ("query", "positive", "negative")]
        encoder = cross_encoder(self.config.model, self.model_sha256)
        return triplet_logits(zip(*columns, strict=True), encoder)

    def decide(self, batch: pa.RecordBatch, score_NS: np.ndarray, learnt: Learnt) -> Verdict:
        """Reason `margin`; scores are the margins on the configured scale."""
        margin_N = margins(score_NS, self.config)
        has_none = pc.equal(batch.column("negative"), "").to_numpy(zero_copy_only=False)
        keep_N = keep_by_margin(margin_N, self.config) | has_none
        reasons = np.where(keep_N, "", "margin").astype(object)
        details = [
            f"positive {p:.3f}, negative {n:.3f} (logits); at least {self.config.threshold} apart "
            f"as {self.config.scale} wanted"
            for p, n in score_NS.tolist()
        ]
        return verdict(reasons, np.where(keep_N, "", details), margin_N)


@functools.lru_cache(maxsize=1)
def sentence_encoder(model: str, sha256: str) -> Embedder:
    """Opens a sentence encoder, once in a process.

    Args:
      model: a Hugging Face folder or id.
      sha256: of its files, as `model_sha256` gives it.
    Raises: UserError when it is missing or is another one.
    """
    check_unchanged(model, model_sha256(model), sha256)
    is_cpu = jax.default_backend() == "cpu"
    return Embedder.load(model, compute_dtype="float32" if is_cpu else "bfloat16")


@functools.lru_cache(maxsize=1)
def cross_encoder(model: str, sha256: str) -> CrossEncoder:
    """Opens a cross-encoder, once in a process; as `sentence_encoder`."""
    check_unchanged(model, model_sha256(model), sha256)
    return CrossEncoder(model)
