"""The last step: learns from the training texts and turns them into shards of token ids."""

from collections.abc import Iterator, Sequence
from itertools import count
from pathlib import Path

import numpy as np
import pyarrow as pa
from tokenizers import Tokenizer

from jina_jax.data.runs import batches, map_table
from jina_jax.data.shards import ShardWriter, encode_record
from jina_jax.data.tokenizer import load_tokenizer


def training_texts(tables: Sequence[Path], most: int) -> Iterator[str]:
    """Training texts in shuffle order, evenly thinned out to at most `most`.

    Args:
      tables: training pairs, by key range in order.
      most: gives exactly this many, or all when there are fewer.
    """
    total = 2 * sum(map_table(path).num_rows for path in tables)
    keep = min(total, most)
    numbers = count()
    for path in tables:
        table = map_table(path)
        for batch in batches(table, np.arange(len(table))):
            for pair in batch.select(["query", "positive"]).to_pylist():
                for text in (pair["query"], pair["positive"]):
                    number = next(numbers)
                    # True exactly `keep` times in `total`, evenly spaced.
                    if (number + 1) * keep // total > number * keep // total:
                        yield text


def encode_task(
    table_path: Path, tokenizer_dir: Path, max_text_tokens: int, shards: Sequence[Path]
) -> np.ndarray:
    """Tokenises the training pairs of a key range into one shard per source.

    Args:
      table_path: training pairs.
      tokenizer_dir: holds tokenizer.json.
      max_text_tokens: texts are cut to this many tokens, </s> included.
      shards: per source, the file to write; none is written for 0 pairs.
    Returns: int64 [sources, 2, max_text_tokens + 1]; how many queries and positives have each
      length.
    """
    table = map_table(table_path)
    source_N = table.column("source").to_numpy()
    tokenizer = load_tokenizer(tokenizer_dir)
    tokenizer.enable_truncation(max_text_tokens)
    lengths = np.zeros((len(shards), 2, max_text_tokens + 1), np.int64)
    for index, path in enumerate(shards):
        mine = np.flatnonzero(source_N == index)
        if len(mine):
            with ShardWriter(path) as shard:
                for batch in batches(table, mine):
                    lengths[index] += _encode_batch(batch, tokenizer, shard, max_text_tokens)
    return lengths


def _encode_batch(
    batch: pa.Table, tokenizer: Tokenizer, shard: ShardWriter, max_text_tokens: int
) -> np.ndarray:
    columns = [batch.column(c).to_pylist() for c in ("query", "positive")]
    ids = [[e.ids for e in tokenizer.encode_batch_fast(texts)] for texts in columns]
    hashes = [batch.column(c).to_pylist() for c in ("query_hash", "positive_hash")]
    for record in zip(*hashes, *ids, strict=True):
        shard.write(encode_record(record[:2], record[2:]))
    counts = [np.bincount([len(i) for i in text], minlength=max_text_tokens + 1) for text in ids]
    return np.stack(counts)
