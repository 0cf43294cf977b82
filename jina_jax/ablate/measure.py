"""What a model is measured on: the same held-out pairs for all arms, which no arm trains on."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from jina_jax.config import RunConfig, SourceConfig
from jina_jax.errors import UserError
from jina_jax.evaluate.negation import held_out_negation, score_negation
from jina_jax.evaluate.results import score_all
from jina_jax.evaluate.retrieval import RetrievalTask, evaluate_retrieval, task_of_pairs
from jina_jax.inference.embedder import Embedder
from jina_jax.shards.array_record import ShardSet
from jina_jax.shards.manifest import Manifest
from jina_jax.sources.read import read_source
from jina_jax.system.hashing import content_key
from jina_jax.text.identity import text_hash
from jina_jax.types import BadRecord

_AT_ONCE = 65_536


def source_task(source: SourceConfig) -> RetrievalTask:
    """The pairs of a source as a retrieval task, equal texts as one; negatives are not looked at.

    Raises: UserError naming the first record that cannot be read: none is passed over.
    """
    return task_of_pairs(source.name, _pairs(source))


def _pairs(source: SourceConfig) -> Iterator[tuple[bytes, str, bytes, str]]:
    for record in read_source(source):
        if isinstance(record, BadRecord):
            where = f"{record.origin.file}:{record.origin.row}"
            raise UserError(f"held-out pairs: {where}: {record.reason}: {record.detail}")
        query, positive = record.query, record.positive
        yield text_hash(query), query, text_hash(positive), positive


def tasks_key(tasks: Sequence[RetrievalTask]) -> str:
    """Equal for equal tasks."""
    corpora = [dict(zip(t.corpus.ids, t.corpus.texts(), strict=True)) for t in tasks]
    return content_key(
        [[t.name, t.queries, c, t.relevant] for t, c in zip(tasks, corpora, strict=True)]
    )


def check_unseen(tasks: Sequence[RetrievalTask], manifest: Manifest, data: Path, arm: str) -> None:
    """Refuses an arm whose training records hold a held-out text.

    Args:
      tasks: the held-out pairs.
      manifest: of the arm's prepared folder.
      data: that folder.
      arm: its name.
    Raises: UserError saying how many there are, and the way out.
    """
    texts = {name for task in tasks for name in (*task.queries, *task.corpus.ids)}
    held = np.array([_first_word(bytes.fromhex(name)) for name in texts], np.uint64)
    shared = 0
    for source in manifest.sources:
        shards = ShardSet([data / shard.path for shard in source.shards])
        for first in range(0, source.records, _AT_ONCE):
            rows = range(first, min(first + _AT_ONCE, source.records))
            # Half of a hash tells texts apart but for 2⁻⁶⁴ a comparison.
            word_NS = shards.read(rows).hashes_NSx2[..., 0]
            shared += int(np.isin(word_NS, held).any(axis=1).sum())
    if shared:
        raise UserError(
            f"arm {arm!r} would train on {shared:,} records that hold a held-out text: take "
            f"held-out pairs of another source, or name them in data.decontamination.sets"
        )


def _first_word(text_hash: bytes) -> int:
    return int.from_bytes(text_hash[:8], "little")


def measure(
    config: RunConfig, embedder: Embedder, tasks: Sequence[RetrievalTask], manifest: Manifest
) -> dict[str, float]:
    """A model's means over the tasks.

    Args:
      config: says at how many passages nDCG and recall are cut off, and where the data lie.
      embedder: the model.
      tasks: at least one.
      manifest: of the prepared data; where it holds out triplets, negation is measured too.
    Returns: measure → value in 0..1.
    """
    systems, folder = {"model": embedder}, config.data_path
    by_kind = (
        evaluate_retrieval(tasks, systems, config.evaluate.top_k, with_bm25=False),
        score_all(held_out_negation(manifest, folder), systems, score_negation),
    )
    means: dict[str, float] = {}
    for results in by_kind:
        means |= results["average"]["model"] if results else {}
    return means
