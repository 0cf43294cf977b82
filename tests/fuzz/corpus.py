"""Small valid files, one or more for each format: what mutation begins from."""

import csv
import gzip
import io
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import zstandard
from safetensors.numpy import save

from jina_jax.config import DataConfig, RunConfig, SourceConfig, T5Config, TokenizerConfig
from jina_jax.config.files import to_json
from jina_jax.model.encoder import config_to_huggingface
from jina_jax.shards.array_record import ShardWriter, encode_record
from jina_jax.shards.manifest import FORMAT_VERSION
from jina_jax.text.tokenizer import build_tokenizer

_ROWS = [{"query": "q é", "positive": "p", "n": 1}, {"query": "a, b", "positive": 'say "x"'}]
LINES = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in _ROWS).encode()


def _table() -> bytes:
    out = io.StringIO()
    writer = csv.DictWriter(out, ["query", "positive", "n"])
    writer.writeheader()
    writer.writerows(_ROWS)
    return out.getvalue().encode()


def _parquet() -> list[bytes]:
    files = []
    columns = {"query": ["q", None, "é"], "positive": ["p", "", "x" * 50]}
    for compression in ("snappy", "zstd", "none"):
        out = io.BytesIO()
        pq.write_table(pa.table(columns), out, compression=compression, row_group_size=2)
        files.append(out.getvalue())
    return files


def _records() -> list[bytes]:
    pair = [b"\x01" * 16, b"\x02" * 16]
    return [encode_record(pair, [[1, 2], [3]]), encode_record(pair, [[1], []], [0.5])]


def _shard(folder: Path) -> bytes:
    with ShardWriter(folder / "a.shard") as writer:
        for record in _records()[:1] * 40:
            writer.write(record)
    return (folder / "a.shard").read_bytes()


def _manifest() -> bytes:
    lengths = {"mean": 2.5, "p50": 2, "p90": 3, "p99": 4}
    shard = {"path": "train/s", "records": 6, "size_bytes": 100, "sha256": "ab", "ends_xxh3": "c"}
    histogram = {"low": -1.0, "high": 1.0, "kept": [0, 4], "dropped": [2, 0]}
    source = {
        "name": "s", "licence": "CC0", "record": "pair", "read": 10, "bad": {"x": 1},
        "inputs": [{"path": "a", "size_bytes": 9, "xxh3": "0f"}], "dropped": {"duplicate": 2},
        "stages": [{"stage": "m", "records": 9, "dropped": {"m": 2}, "scores": histogram}],
        "train": 6, "eval": 1, "query_tokens": lengths, "positive_tokens": lengths,
        "negative_tokens": None, "shards": [shard], "eval_path": "eval/s", "has_scores": False,
    }  # fmt: skip
    manifest = {
        "format_version": FORMAT_VERSION, "config": {}, "filters": {"clean": 1}, "stages": {},
        "tokenizer_sha256": "00ff", "vocab_size": 8000, "models": {}, "sources": [source],
        "leaks": {},
    }  # fmt: skip
    return json.dumps(manifest).encode()


def _tokenizer(folder: Path) -> tuple[bytes, bytes]:
    texts = [f"the text number {i} tells of {i * i} things and more" for i in range(60)]
    build_tokenizer(TokenizerConfig("train", vocab_size=60), iter(texts), folder)
    return (folder / "tokenizer.json").read_bytes(), (folder / "spiece.model").read_bytes()


def _modules() -> bytes:
    kinds = [("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize")]
    return json.dumps(
        [
            {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
            for i, (path, kind) in enumerate(kinds)
        ]
    ).encode()


def corpus(folder: Path) -> dict[str, list[bytes]]:
    """Target → valid inputs.

    Args:
      folder: to write what only a file can be made in.
    """
    tokenizer, spiece = _tokenizer(folder)
    config = RunConfig("a", data=DataConfig((SourceConfig("s", paths=("x",)),)))
    t5 = T5Config(vocab_size=11, d_model=4, d_kv=2, d_ff=6, num_layers=1, num_heads=2)
    bert = {"model_type": "bert", "hidden_size": 8, "num_attention_heads": 2}
    tensors = {"a": np.ones((2, 3), np.float32), "b": np.ones(4, np.float16)}
    features = {
        "pythonClassName": "tensorflow_datasets.core.features.features_dict.FeaturesDict",
        "featuresDict": {"features": {"text": {"type": "tensorflow_datasets.core.x.Text"}}},
    }
    found: dict[str, list[bytes]] = {
        "jsonl": [LINES],
        "extracted": [LINES, b'["a", "b"]\n{"set": ["a", "b"]}\n{"query": "a", "pos": ["b"]}\n'],
        "gzip": [gzip.compress(LINES)],
        "zstd": [zstandard.compress(LINES)],
        "text": [b"a line\n\n another\r\n"],
        "csv": [_table()],
        "parquet": _parquet(),
        "record": _records(),
        "shard": [_shard(folder)],
        "manifest": [_manifest()],
        "run": [to_json(config).encode()],
        "model_config": [json.dumps(c).encode() for c in (config_to_huggingface(t5), bert)],
        "safetensors": [save(tensors), save(tensors, {"format": "pt"})],
        "index": [b'{"weight_map": {"a": "model-1.safetensors"}}'],
        "tokenizer": [tokenizer],
        "imported_tokenizer": [tokenizer],
        "spiece": [spiece],
        "modules": [_modules()],
        "pooling": [b'{"pooling_mode_mean_tokens": true}', b'{"pooling_mode": "mean"}'],
        "features": [json.dumps(features).encode()],
        "answer": [b'{"entailment": "a", "negative": "b"}', b'```json\n{"negative": "b"}\n```'],
    }  # fmt: skip
    return found


Repack = tuple[Callable[[bytes], bytes], Callable[[bytes], bytes]]
REPACKED: dict[str, Repack] = {
    "gzip": (gzip.decompress, gzip.compress),
    "zstd": (lambda data: zstandard.decompress(data, 1 << 20), zstandard.compress),
}
"""Formats whose content is mutated too: (unpack, pack)."""
