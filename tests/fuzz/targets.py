"""One function for each format that is read: it takes bytes and may raise nothing but UserError."""

import contextlib
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from jina_jax.config import SourceConfig, TokenizerConfig
from jina_jax.config.files import read_run
from jina_jax.config.validation import validate
from jina_jax.errors import UserError
from jina_jax.export.from_folder import _spiece
from jina_jax.inference.model_folder import (
    module_folders,
    read_config,
    read_pooling,
    read_tensors,
    weight_files,
)
from jina_jax.model.encoder import config_from_huggingface
from jina_jax.negation.endpoint import _parsed
from jina_jax.shards.array_record import ShardWriter
from jina_jax.shards.index import read_index
from jina_jax.shards.manifest import load_manifest
from jina_jax.shards.shard_set import ShardSet
from jina_jax.sources.datasets import _refuse_foreign_classes
from jina_jax.sources.extract import GROUPED, PER_RECORD
from jina_jax.sources.read import read_source
from jina_jax.system.untrusted import read_json
from jina_jax.text.tokenizer import build_tokenizer, load_tokenizer
from jina_jax.types import BadRecord

Read = Callable[[Path, bytes], None]
_TEXTS = ["hello wörld, the text number 7", "", "\0\ud7ff  x" * 20]


def _source(kind: str, ending: str, **more: str) -> Read:
    def read(folder: Path, data: bytes) -> None:
        path = folder / f"a{ending}"
        path.write_bytes(data)
        for record in read_source(SourceConfig("s", kind, (str(path),), **more)):  # type: ignore[arg-type]
            assert record.origin.row > 0
            if isinstance(record, BadRecord):
                assert record.reason and record.origin.file == str(path)
            else:
                assert all(isinstance(text, str) for text in record[:2])

    return read


def _extracted(folder: Path, data: bytes) -> None:
    for extractor in PER_RECORD:
        _source("jsonl", ".jsonl", extractor=extractor)(folder, data)
    for extractor in GROUPED:
        _source("jsonl", ".jsonl", extractor=extractor, negative_field="n")(folder, data)


def _records(folder: Path, data: bytes) -> None:
    with ShardWriter(folder / "one.shard") as writer:
        writer.write(data)
    ShardSet([folder / "one.shard"]).read([0])


def _shard(folder: Path, data: bytes) -> None:
    with suppress(ValueError):
        read_index(data, len(data))
    (folder / "a.shard").write_bytes(data)
    shards = ShardSet([folder / "a.shard"])
    found = shards.read(range(min(len(shards), 64)))
    # Whatever is given must be what was written: all records of the corpus are alike.
    for record in range(len(found)):
        assert [found.text(record, i).tolist() for i in (0, 1)] == [[1, 2], [3]]


def _file(name: str, read: Callable[[Path], object], beside: str = "") -> Read:
    """Target of a file; `beside` is another one that a valid one names, empty JSON but for that."""

    def target(folder: Path, data: bytes) -> None:
        (folder / name).write_bytes(data)
        if beside:
            (folder / beside).parent.mkdir(exist_ok=True)
            (folder / beside).write_text('{"pooling_mode": "mean"}')
        read(folder)

    return target


def _read_run(folder: Path) -> None:
    validate(read_run(folder))


def _model_config(folder: Path) -> None:
    config_from_huggingface(read_config(folder))


def _tokenize(folder: Path) -> None:
    tokenizer = load_tokenizer(folder)
    for text in _TEXTS:
        tokenizer.encode(text)


def _build(folder: Path) -> None:
    build_tokenizer(TokenizerConfig(str(folder / "spiece.model")), None, folder)
    _tokenize(folder)


def _import_tokenizer(folder: Path) -> None:
    (folder / "spiece.model").write_bytes(_spiece(folder / "tokenizer.json"))
    _build(folder)


def _features(folder: Path, data: bytes) -> None:
    (folder / "features.json").write_bytes(data)
    with contextlib.suppress(ValueError):  # The caller reports it.
        _refuse_foreign_classes(folder / "features.json", read_json(folder / "features.json"))


def _answer(folder: Path, data: bytes) -> None:
    _parsed(data.decode("utf-8", "replace"))


TARGETS: dict[str, Read] = {
    "jsonl": _source("jsonl", ".jsonl"),
    "extracted": _extracted,
    "gzip": _source("jsonl", ".jsonl.gz"),
    "zstd": _source("jsonl", ".jsonl.zst"),
    "text": _source("text", ".txt", extractor="wikisplit"),
    "csv": _source("csv", ".csv"),
    "parquet": _source("parquet", ".parquet"),
    "record": _records,
    "shard": _shard,
    "manifest": _file("manifest.json", load_manifest),
    "run": _file("config.json", _read_run),
    "model_config": _file("config.json", _model_config),
    "safetensors": _file("model.safetensors", read_tensors),
    "index": _file("model.safetensors.index.json", weight_files, "model-1.safetensors"),
    "tokenizer": _file("tokenizer.json", _tokenize),
    "imported_tokenizer": _file("tokenizer.json", _import_tokenizer),
    "spiece": _file("spiece.model", _build),
    "modules": _file("modules.json", module_folders, "1_Pooling/config.json"),
    "pooling": _file("config.json", lambda folder: read_pooling(folder / "config.json")),
    "features": _features,
    "answer": _answer,
}


def run(target: str, folder: Path, data: bytes) -> None:
    """Reads an input.

    Args:
      target: of `TARGETS`.
      folder: empty, for its files; emptied again.
      data: the input.
    Raises: anything but UserError is a finding.
    """
    try:
        TARGETS[target](folder, data)
    except UserError as error:
        # A message must reach the terminal.
        str(error).encode("utf-8", "replace")
    finally:
        empty(folder)


def empty(folder: Path) -> None:
    """Removes what a target wrote."""
    for path in folder.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()
