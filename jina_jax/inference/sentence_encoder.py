"""Sentence embeddings with a BERT such as all-MiniLM-L6-v2, streamed from any number of texts."""

from collections.abc import Iterable, Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from jina_jax.config import BertConfig
from jina_jax.devices.mesh import make_mesh
from jina_jax.errors import UserError
from jina_jax.inference.bert_folder import POOLING_FILE, BertFolder, flatten, read_bert, row_shapes
from jina_jax.inference.packed_encoder import PackedEncoder, Tokens, one_ahead
from jina_jax.inference.sentence_folder import LIMITS_FILE, check_pooling
from jina_jax.model.bert import apply
from jina_jax.model.bert_weights import from_huggingface
from jina_jax.model.pooling import mean_pool
from jina_jax.system.untrusted import inner_path, read_json, refuse_code

_TEXTS_AT_ONCE = 4096  # bounds what is tokenised and packed before it is encoded
_DEFAULT_MAX_TOKENS = 512


class SentenceEncoder:
    """Mean pooling over the tokens of a BERT, scaled to length 1.

    Example:
      >>> encoder = SentenceEncoder("sentence-transformers/all-MiniLM-L6-v2")  # doctest: +SKIP
      >>> encoder.encode(["a text", "another"]).shape  # doctest: +SKIP
      (2, 384)
    """

    def __init__(
        self, path_or_id: str | Path, *, batch_tokens: int = 4096, mesh: Mesh | None = None
    ) -> None:
        """Opens a sentence encoder's folder and puts its parameters on every device.

        Texts are cut at `max_seq_length` of `sentence_bert_config.json`.

        Args:
          path_or_id: a Hugging Face folder or id with safetensors.
          batch_tokens: positions encoded at once, over all devices.
          mesh: over which rows are divided; all devices by default.
        Raises: UserError when the folder cannot be used, or pools otherwise than by the mean.
        """
        files = read_bert(path_or_id)
        if (files.folder / POOLING_FILE).is_file():
            check_pooling(inner_path(files.folder, POOLING_FILE))
        self.mesh = make_mesh() if mesh is None else mesh
        self.dimensions = files.config.hidden_size
        self.max_tokens = _max_tokens(files)
        self.sha256 = files.sha256
        """Of the model's files, as `bert_folder.model_sha256` gives it."""
        self.key = f"{files.sha256}-{self.max_tokens}-{files.config.compute_dtype}"
        """Names everything that an embedding depends on besides the text."""
        self._tokenizer = files.tokenizer
        self._tokenizer.enable_truncation(self.max_tokens)
        self._encoder = PackedEncoder(
            partial(_embed_rows, files.config),
            from_huggingface(files.tensors, files.config),
            row_shapes(self.max_tokens, files.config, batch_tokens),
            self.mesh,
        )

    def encode(self, texts: Iterable[str]) -> np.ndarray:
        """Embeddings of the texts, float32 [N, D], in order."""
        parts = list(self.stream(texts))
        return np.concatenate(parts) if parts else np.zeros((0, self.dimensions), np.float32)

    def stream(self, texts: Iterable[str]) -> Iterator[np.ndarray]:
        """Embeds texts as they come.

        Args:
          texts: any number; read some ten thousand ahead, and held no longer.
        Returns: an iterator over float32 [n, D] blocks, in the order of the texts.
        """
        for tokens in one_ahead(self._tokenised(texts)):
            z_ND = np.empty((len(tokens.length_N), self.dimensions), np.float32)
            for index_N, part_ND in self._encoder.encode(tokens):
                z_ND[index_N] = part_ND
            yield z_ND

    def _tokenised(self, texts: Iterable[str]) -> Iterator[Tokens]:
        iterator = iter(texts)
        while part := list(islice(iterator, _TEXTS_AT_ONCE)):
            yield flatten(self._tokenizer.encode_batch_fast(part), has_types=False)


def _embed_rows(
    config: BertConfig,
    params: Any,
    segments_RL: jax.Array,
    ids_RL: jax.Array,
    *,
    texts_per_row: int,
) -> jax.Array:
    return mean_pool(apply(config, params, ids_RL, segments_RL), segments_RL, texts_per_row)


def _max_tokens(files: BertFolder) -> int:
    limits, value = inner_path(files.folder, LIMITS_FILE), None
    if limits.is_file():
        value = (values := read_json(limits)).get("max_seq_length")
        refuse_code(limits, values)
    longest = files.config.max_position_embeddings
    if value is None:
        return min(_DEFAULT_MAX_TOKENS, longest)
    if type(value) is not int or not 2 < value <= longest:
        raise UserError(f"{limits}: max_seq_length={value!r}, expected a number in 3..{longest}")
    return value
