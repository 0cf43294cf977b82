"""The filters that need a model, as stages of preparation.

`filter.Scorer` says what a stage is, and `prepare/scoring.py` runs it; models are opened where the
work is done, once in a process. Embeddings are kept on disk under the hash of all that they depend
on: the model's key and the texts as they are (not their text hashes, which fold case and whitespace
that a model may see).
"""

import functools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

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
    Records,
    Verdict,
    check_unchanged,
    verdict,
)
from jina_jax.prepare.filters.margin import CrossEncoder, keep_by_margin, margins, triplet_logits
from jina_jax.system.atomic import atomic_file
from jina_jax.text.identity import hash_words

_EMBEDDINGS, _HASHES, _DIGEST = "embeddings.f32", "hashes.u64", "xxh3"


@dataclass(frozen=True)
class ConsistencyFilter:
    """Keeps a pair when fewer than `top_k` of the sampled passages score above its own.

    The sample is the first `sample_size` pairs of the source in the order of the global shuffle,
    which follows from `data.seed` and the texts. The scores of a pair are its rank, the number of
    passages above, and its cosine: another `top_k` finds them in the cache.
    """

    config: ConsistencyConfig
    model_sha256: str
    """Of the model's files: another model under the same name is another filter."""
    name: ClassVar[str] = "consistency"
    version: ClassVar[int] = 2
    records: ClassVar[tuple[Records, ...]] = ("pair",)
    thresholds: ClassVar[tuple[str, ...]] = ("config.enabled", "config.model", "config.top_k")
    needs_accelerator: ClassVar[bool] = True
    teaches: ClassVar[slice | None] = slice(1, 2)

    @property
    def score_range(self) -> tuple[float, float]:
        """A bin a rank; whatever is higher stands in the last."""
        return 0.0, 50.0

    def fit(self, batches: Batches, folder: Path, cache: Path) -> None:
        """Writes the embeddings and text hashes of the sampled passages."""
        left, digest = self.config.sample_size, xxhash.xxh3_128()
        with (folder / _EMBEDDINGS).open("wb") as z_file, (folder / _HASHES).open("wb") as h_file:
            for batch in batches():
                z_ND = self._embed(batch, "positive", cache)[:left]
                hash_Nx2 = hash_words(batch.column("positive_hash"))[:left]
                for file, data in ((z_file, z_ND.tobytes()), (h_file, hash_Nx2.tobytes())):
                    file.write(data)
                    digest.update(data)
                left -= len(z_ND)
                if not left:
                    break
        (folder / _DIGEST).write_text(digest.hexdigest())

    def score(self, batch: pa.RecordBatch, folder: Path, cache: Path) -> np.ndarray:
        """Ranks and cosines, float32 [N, 2]."""
        ranker = _ranker(folder, (folder / _DIGEST).read_text(), self.config, self.model_sha256)
        q_ND, p_ND = (self._embed(batch, name, cache) for name in ("query", "positive"))
        rank_N = ranker.ranks(q_ND, p_ND, hash_words(batch.column("positive_hash")))
        return np.stack([rank_N, np.einsum("nd,nd->n", q_ND, p_ND)], axis=1).astype(np.float32)

    def decide(self, batch: pa.RecordBatch, score_NS: np.ndarray, folder: Path) -> Verdict:
        """Reason `inconsistent`; scores are the ranks."""
        rank_N = score_NS[:, 0]
        keep_N = keep_by_rank(rank_N.astype(np.int32), self.config)
        reasons = np.where(keep_N, "", "inconsistent").astype(object)
        details = [f"{int(r):,} sampled passages score above its own" for r in rank_N]
        return verdict(reasons, np.where(keep_N, "", details), rank_N)

    def _embed(self, batch: pa.RecordBatch, column: str, cache: Path) -> np.ndarray:
        encoder = sentence_encoder(self.config.model, self.model_sha256)
        prompts = encoder.prompts
        prompt = prompts.query if column == "query" else prompts.document
        texts: Sequence[str] = batch.column(column).to_pylist()
        if not self.config.keep_embeddings:
            return encoder.encode(texts, prompt=prompt)
        path = cache / f"embeddings-{contents_key([encoder.identity(), prompt, *texts])}.npy"
        if not path.exists():
            with atomic_file(path) as part, part.open("wb") as file:
                np.save(file, encoder.encode(texts, prompt=prompt), allow_pickle=False)
        return np.load(path, mmap_mode="r", allow_pickle=False)


@functools.lru_cache(maxsize=1)
def _ranker(folder: Path, digest: str, config: ConsistencyConfig, sha256: str) -> Ranker:
    """The sample on the devices; `digest` tells apart what lay in one folder at two times."""
    encoder = sentence_encoder(config.model, sha256)
    z_M = np.memmap(folder / _EMBEDDINGS, np.float32, "r")
    hash_M = np.memmap(folder / _HASHES, np.uint64, "r")
    sample = Sample(z_M.reshape(-1, encoder.dimensions), hash_M.reshape(-1, 2))
    return Ranker(sample, config, encoder.mesh)


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

    def fit(self, batches: Batches, folder: Path, cache: Path) -> None:
        """Learns nothing."""

    def score(self, batch: pa.RecordBatch, folder: Path, cache: Path) -> np.ndarray:
        """Logits of the positive and of the negative, float32 [N, 2]."""
        columns = [batch.column(n).to_pylist() for n in ("query", "positive", "negative")]
        encoder = cross_encoder(self.config.model, self.model_sha256)
        return triplet_logits(zip(*columns, strict=True), encoder)

    def decide(self, batch: pa.RecordBatch, score_NS: np.ndarray, folder: Path) -> Verdict:
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


def contents_key(parts: Iterable[str]) -> str:
    """A name for what is computed from `parts`.

    Args:
      parts: in order; any number.
    Returns: 32 hexadecimal digits. ("ab", "c") and ("a", "bc") have different keys, as each part
      is hashed with its length.
    """
    digest = xxhash.xxh3_128()
    for part in parts:
        data = part.encode("utf-8", "surrogatepass")
        digest.update(len(data).to_bytes(8, "little"))
        digest.update(data)
    return digest.hexdigest()
