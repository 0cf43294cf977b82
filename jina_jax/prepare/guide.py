"""The last stage before the shards: a guide's embedding of every training text.

    a partition → its different texts, sorted by key → blocks of a key range → embeddings

A key is a hash of a text as it is, prompt included, so that each text is encoded once, however many
records hold it. A block depends on the model and on the texts alone: another preparation with the
same texts finds it.
"""

import functools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import xxhash
from jaxtyping import Float32, Int8

from jina_jax.config import GuideConfig
from jina_jax.errors import UserError
from jina_jax.prepare.engine.task import Task
from jina_jax.prepare.filters.filter import check_unchanged
from jina_jax.prepare.pipeline import Pipeline, Selected
from jina_jax.prepare.sorted_runs import KEYS, TEXTS, batches, key_ranges, record_begins
from jina_jax.prepare.stages import Partition
from jina_jax.shards.array_record import MAX_GUIDE_DIMS
from jina_jax.shards.manifest import Guide
from jina_jax.system.arrow import map_table, write_table
from jina_jax.system.hashing import content_key
from jina_jax.system.store import StoredFile
from jina_jax.system.terminal import say
from jina_jax.text.identity import HASH_BYTES, find_keys, hash_words, row_keys

GUIDE_VERSION = 1
"""Raise it when the same model and texts give other bytes."""
BLOCK_TEXTS = 16_384
"""Texts that a task embeds, roughly."""


def configured_guide(config: GuideConfig) -> Guide | None:
    """The guide that the configuration asks for; None where it asks for none.

    Raises: UserError when the model cannot be found, is of no kind that is known here, or has fewer
      dimensions than are asked for: before hours of reading.
    """
    if not config.model:
        return None
    # With JAX; preparation without a model does without.
    from jina_jax.inference.model_folder import find_folder, model_sha256, read_sentence_config

    model = read_sentence_config(find_folder(config.model))
    dimensions = model.pooling.dimensions(model.config)
    if config.dims > dimensions:
        raise UserError(
            f"data.guide.dims={config.dims} must lie in 0..{dimensions}, the dimensions of "
            f"{config.model}"
        )
    dims = config.dims or dimensions
    if dims > MAX_GUIDE_DIMS:
        raise UserError(f"data.guide: {dims} dimensions are more than shards can hold; set dims")
    query, document = config.query_prompt, config.document_prompt
    return Guide(
        config.model, model_sha256(config.model), dims,
        model.prompts.query if query is None else query,
        model.prompts.document if document is None else document,
    )  # fmt: skip


def guide_key(guide: Guide) -> str:
    """A hash of everything that the embeddings depend on besides the texts."""
    return content_key("guide", GUIDE_VERSION, guide.sha256, guide.dims, *guide.prompts)


def quantised(z_ND: Float32[np.ndarray, "N D"]) -> Int8[np.ndarray, "N D"]:
    """Vectors as bytes: each divided by its largest absolute entry, times 127, rounded.

    The length is lost. Cosines of all-MiniLM-L6-v2 change by 0.0004 (root mean square) and by
    0.003 at most, over 364,000 pairs of sentences of STS Benchmark.

    Example: (0.5, -1, 0.1) gives (64, -127, 13).
    """
    largest_N1 = np.abs(z_ND).max(1, keepdims=True)
    return np.rint(z_ND / np.where(largest_N1 > 0, largest_N1, 1) * 127).astype(np.int8)


@dataclass(frozen=True)
class GuideTexts:
    """What a partition has for the guide."""

    different: int
    """Texts."""
    records: int
    texts: int
    """Of all its records together, each as often as one holds it."""
    keys_xxh3: str
    """xxh3-128 of the keys of its different texts, in order."""


def texts_task(
    partition: Partition, negatives: Sequence[int], prompts: tuple[str, str], out: StoredFile
) -> GuideTexts:
    """Collects the different texts of a partition.

    Args:
      partition: of training records.
      negatives: per source, the most of a record, as for `encode_task`.
      prompts: before each query, and before each other text.
      out: table of `key`, `is_query` and `text`, sorted by key.
    """
    found: dict[bytes, tuple[bool, str]] = {}
    table, row_N = partition.open()
    names = [name for name in TEXTS if name in table.column_names]
    for batch in batches(table, row_N):
        for name in names:
            is_query = name == TEXTS[0]
            texts = [text for text in batch.column(name).to_pylist() if text]
            for key, text in zip(text_keys(texts, prompts, is_query), texts, strict=True):
                found.setdefault(key, (is_query, text))
    keys = sorted(found)
    columns = {
        "key": pa.array(keys, pa.binary(HASH_BYTES)),
        "is_query": pa.array([found[key][0] for key in keys], pa.bool_()),
        "text": pa.array([found[key][1] for key in keys], pa.large_string()),
    }
    write_table(pa.table(columns), out)
    records = total = 0
    for source, most in enumerate(negatives):
        table, mine = partition.of_source(source)
        begins = int(record_begins(table, mine, most).sum())
        records, total = records + begins, total + 2 * begins
        if most:
            texts = table.column(TEXTS[2]).take(pa.array(mine))
            total += pc.sum(pc.not_equal(texts, "")).as_py() or 0
    return GuideTexts(len(keys), records, total, xxhash.xxh3_128_hexdigest(b"".join(keys)))


def text_keys(texts: Sequence[str], prompts: tuple[str, str], is_query: bool) -> list[bytes]:
    """A key a text: equal where the guide sees the same."""
    prompt = prompts[0] if is_query else prompts[1]
    # A prompt's length tells "a" before "b c" from "a b" before "c".
    begun = xxhash.xxh3_128(f"{len(prompt)} {prompt}".encode())
    keys = []
    for text in texts:
        digest = begun.copy()
        digest.update(text.encode())
        keys.append(digest.digest())
    return keys


def embed_task(
    parts: Sequence[StoredFile],
    keys: tuple[int, int],
    guide: Guide,
    batch_rows: int,
    out: StoredFile,
) -> int:
    """Embeds the texts of a key range.

    Args:
      parts: tables of `texts_task`.
      keys: first key and the one after the last, of the first 64 bits.
      guide: that embeds.
      batch_rows: packed rows encoded at once.
      out: table of `key`, ascending, and `z`, the bytes of an embedding.
    Returns: how many there are.
    """
    table = _of_range(parts, keys)
    z_NG = np.zeros((len(table), guide.dims), np.int8)
    is_query_N = table.column("is_query").to_numpy()
    for is_query, prompt in zip((True, False), guide.prompts, strict=True):
        mine = np.flatnonzero(is_query_N == is_query)
        if len(mine):
            texts = table.column("text").take(pa.array(mine)).to_pylist()
            encoder = _encoder(guide.model, guide.sha256, batch_rows)
            z_NG[mine] = quantised(encoder.encode(texts, prompt=prompt)[:, : guide.dims])
    bytes_N = pa.FixedSizeBinaryArray.from_buffers(
        pa.binary(guide.dims), len(z_NG), [None, pa.py_buffer(z_NG.tobytes())]
    )
    write_table(pa.table({"key": table.column("key"), "z": bytes_N}), out)
    return len(table)


def _of_range(parts: Sequence[StoredFile], keys: tuple[int, int]) -> pa.Table:
    """The texts of a key range of all partitions, each once, by key."""
    slices = []
    for part in parts:
        table = map_table(part.local())
        first_N = _first_words(_keys(table))
        first = int(np.searchsorted(first_N, np.uint64(keys[0])))
        end = len(table)
        if keys[1] < KEYS:
            end = int(np.searchsorted(first_N, np.uint64(keys[1])))
        slices.append(table.slice(first, end - first))
    joined = pa.concat_tables(slices).combine_chunks()
    _, first_U = np.unique(_keys(joined), return_index=True)
    return joined.take(pa.array(first_U)).combine_chunks()


def _keys(table: pa.Table) -> np.ndarray:
    """Each key as a value that is ordered as its bytes are."""
    return row_keys(hash_words(table.column("key")))


def _first_words(key_N: np.ndarray) -> np.ndarray:
    """uint64 [N]: the first half of each key, most significant byte first."""
    return np.frombuffer(key_N.tobytes(), ">u8")[::2].astype(np.uint64)


@functools.lru_cache(maxsize=1)
def _encoder(model: str, sha256: str, batch_rows: int) -> Any:
    """Opens the guide, once in a process.

    Raises: UserError when it is missing or is another one.
    """
    import jax

    from jina_jax.inference.embedder import Embedder
    from jina_jax.inference.model_folder import model_sha256

    check_unchanged(model, model_sha256(model), sha256)
    is_cpu = jax.default_backend() == "cpu"
    dtype = "float32" if is_cpu else "bfloat16"
    return Embedder.load(model, compute_dtype=dtype, batch_rows=batch_rows)


class GuideEmbeddings:
    """The embeddings that `guide_stage` made, by text; blocks are mapped when they are needed."""

    def __init__(self, index: StoredFile):
        """Opens the file that `guide_stage` wrote."""
        values = json.loads(index.local().read_bytes())
        self._blocks = [index.store.file(name) for name in values["blocks"]]
        self._prompts: tuple[str, str] = tuple(values["prompts"])
        self._dims: int = values["dims"]
        # A block holds the keys from its first on, below the first of the next.
        self._first = np.array([first for first, _ in key_ranges(len(self._blocks))], np.uint64)
        self._open: dict[int, tuple[np.ndarray, np.ndarray]] = {}

    def of(self, texts: Sequence[str], is_query: bool) -> Int8[np.ndarray, "N G"]:
        """The embedding of each text, all of which are queries or none is."""
        keys = text_keys(texts, self._prompts, is_query)
        key_N = np.frombuffer(b"".join(keys), f"S{HASH_BYTES}")
        block_N = np.searchsorted(self._first, _first_words(key_N), side="right") - 1
        found_NG = np.zeros((len(texts), self._dims), np.int8)
        for block in np.unique(block_N).tolist():
            mine = block_N == block
            known, z_MG = self._block(block)
            place_N, is_known_N = find_keys(known, key_N[mine])
            assert is_known_N.all(), f"{self._blocks[block].name} lacks a text"
            found_NG[mine] = z_MG[place_N]
        return found_NG

    def _block(self, block: int) -> tuple[np.ndarray, np.ndarray]:
        if block not in self._open:
            table = map_table(self._blocks[block].local())
            z = table.column("z").combine_chunks()
            z_MG = np.frombuffer(z.buffers()[1], np.int8)[: len(z) * self._dims]
            self._open[block] = _keys(table), z_MG.reshape(-1, self._dims)
        return self._open[block]


def guide_stage(
    run: Pipeline, selected: Selected, guide: Guide, negatives: Sequence[int]
) -> tuple[StoredFile, str]:
    """Embeds all training texts, unless an earlier preparation has; says what that costs before.

    Args:
      run: the preparation.
      selected: training records.
      guide: that embeds.
      negatives: per source, the most of a record.
    Returns: the file for `GuideEmbeddings`, and a hash of what it depends on.
    """
    tasks = []
    for part, partition in enumerate(selected.partitions):
        key = content_key("texts", guide.prompts, negatives, selected.keys[part])
        out = run.output("guide-texts", key)
        arguments = (partition, negatives, guide.prompts, out)
        tasks.append(Task("guide-texts", texts_task, arguments, key))
    found = run.run(tasks, "guide: texts", records=selected.counts)
    different, records, texts = (
        sum(getattr(part, name) for part in found) for name in ("different", "records", "texts")
    )
    size_bytes = guide.dims * texts
    say(
        f"guide: {guide.model} embeds about {different:,} texts. A text takes {guide.dims:,} bytes "
        f"in the shards, a record {size_bytes / max(records, 1):,.0f} on average, and all "
        f"{records:,} records {size_bytes:,} bytes",
        enabled=run.progress,
    )
    parts = [task.arguments[-1] for task in tasks]
    key = content_key(guide_key(guide), [part.keys_xxh3 for part in found])
    blocks = max(-(-different // BLOCK_TEXTS), 1)
    embeds = []
    for keys in key_ranges(blocks):
        of_block = content_key(key, keys)
        out = run.output("guide-embed", of_block)
        embed = (parts, keys, guide, run.config.guide.batch_rows, out)
        embeds.append(Task("guide-embed", embed_task, embed, of_block, needs_accelerator=True))
    even = [different * (n + 1) // blocks - different * n // blocks for n in range(blocks)]
    run.run(embeds, "guide: embed", "blocks", even)
    index = run.output("guide", key, ".json")
    names = [task.arguments[-1].name for task in embeds]
    values = {"blocks": names, "prompts": guide.prompts, "dims": guide.dims}
    index.put(json.dumps(values).encode())
    return index, key
