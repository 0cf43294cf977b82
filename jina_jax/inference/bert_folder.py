"""A BERT model's Hugging Face folder: shape, tensors, tokenizer and a key that names them all."""

import dataclasses
import hashlib
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from tokenizers import Tokenizer

from jina_jax.config import BertConfig
from jina_jax.errors import UserError
from jina_jax.inference.hf_folder import (
    CONFIG_FILE,
    INDEX_FILE,
    WEIGHTS_FILE,
    find_folder,
    read_config,
    read_tensors,
    weight_files,
)
from jina_jax.inference.packed_encoder import RowShape, Tokens, row_lengths
from jina_jax.inference.sentence_folder import LIMITS_FILE, POOLING_FOLDER
from jina_jax.model.bert_weights import config_from_huggingface
from jina_jax.system.hashing import file_sha256
from jina_jax.system.untrusted import inner_path
from jina_jax.text.tokenizer import TOKENIZER_FILE, check_ids, read_tokenizer

POOLING_FILE = f"{POOLING_FOLDER}/{CONFIG_FILE}"
_FETCHED = (
    CONFIG_FILE, WEIGHTS_FILE, INDEX_FILE, "model-*.safetensors", TOKENIZER_FILE, LIMITS_FILE,
    POOLING_FILE,
)  # fmt: skip
# Most texts are far shorter than the limit; with short rows attention sees little but them.
_SHORTEST_ROW = 64
_TOKENS_PER_SLOT = 4


class BertFolder(NamedTuple):
    """What a folder holds."""

    folder: Path
    config: BertConfig
    tensors: dict[str, np.ndarray]
    tokenizer: Tokenizer
    """Neither cuts nor pads."""
    sha256: str
    """As `model_sha256` gives it."""


def read_bert(path_or_id: str | Path) -> BertFolder:
    """Reads a BERT folder, fetched from the Hugging Face hub when `path_or_id` is an id.

    Computes in bfloat16 where there is an accelerator, and in float32 on CPU.

    Raises: UserError when it cannot be found, is damaged or is no BERT.
    """
    folder = find_folder(path_or_id, _FETCHED)
    config = config_from_huggingface(read_config(folder))
    if jax.default_backend() != "cpu":
        config = dataclasses.replace(config, compute_dtype="bfloat16")
    tokenizer = _read_tokenizer(folder)
    check_ids(tokenizer, config.vocab_size, folder)
    # Old files store a range of positions as if it were a weight.
    tensors = read_tensors(folder, ignored=("position_ids",))
    return BertFolder(folder, config, tensors, tokenizer, _files_sha256(folder))


def model_sha256(path_or_id: str | Path) -> str:
    """Of everything in a model's folder that its results depend on; no device is touched.

    Raises: UserError when it cannot be found.
    """
    return _files_sha256(find_folder(path_or_id, _FETCHED))


def _files_sha256(folder: Path) -> str:
    digest = hashlib.sha256()
    names = [CONFIG_FILE, TOKENIZER_FILE]
    names += [name for name in (LIMITS_FILE, POOLING_FILE) if (folder / name).is_file()]
    for path in (*(inner_path(folder, name) for name in names), *weight_files(folder)):
        if not path.is_file():
            raise UserError(f"{folder} holds no {path.name}: it is no folder of a BERT model")
        digest.update(bytes.fromhex(file_sha256(path)))
    return digest.hexdigest()


def _read_tokenizer(folder: Path) -> Tokenizer:
    if not (folder / TOKENIZER_FILE).is_file():
        raise UserError(f"{folder} holds no {TOKENIZER_FILE}: save its fast tokenizer there")
    return read_tokenizer(folder, TOKENIZER_FILE)


def row_shapes(max_tokens: int, config: BertConfig, batch_tokens: int) -> list[RowShape]:
    """The rows that a model is compiled for.

    Args:
      max_tokens: of the longest text.
      config: rows are no longer than its positions.
      batch_tokens: positions of a batch.
    """
    lengths = row_lengths(_SHORTEST_ROW, max_tokens)
    lengths = sorted({min(length, config.max_position_embeddings) for length in lengths})
    return [
        RowShape(length, max(length // _TOKENS_PER_SLOT, 1), max(batch_tokens // length, 1))
        for length in lengths
    ]


def flatten(encodings: list, *, has_types: bool) -> Tokens:
    """Tokenised texts as `PackedEncoder` takes them.

    Args:
      encodings: of `Tokenizer.encode_batch_fast`.
      has_types: adds a second channel, the token types.
    """
    length_N = np.array([len(e) for e in encodings], np.int64)
    columns = [[e.ids for e in encodings]]
    if has_types:
        columns.append([e.type_ids for e in encodings])
    channels = tuple(
        np.fromiter((i for ids in column for i in ids), np.int32, int(length_N.sum()))
        for column in columns
    )
    return Tokens(channels, length_N)
