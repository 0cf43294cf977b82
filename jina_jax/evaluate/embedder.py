"""From texts to embeddings, with a trained run or an exported folder."""

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from tokenizers import Tokenizer
from tqdm import tqdm

from jina_jax.config import T5Config
from jina_jax.data.tokenizer import load_tokenizer
from jina_jax.errors import UserError
from jina_jax.hf_folder import WEIGHTS_FILE, read_encoder
from jina_jax.mesh import make_mesh
from jina_jax.model.pooling import mean_pool
from jina_jax.model.t5 import apply
from jina_jax.model.weights import from_huggingface
from jina_jax.packed_encoder import PackedEncoder, RowShape, Tokens, row_lengths
from jina_jax.trained import is_run, load_checkpoint

_TEXTS_PER_ROW = 32
_SHORTEST_ROW = 128
_TEXTS_AT_ONCE = 16_384  # bounds what is tokenised and packed before it is encoded


class Embedder:
    """Encodes texts into unit vectors.

    Example:
      >>> embedder = Embedder.load("runs/demo")  # doctest: +SKIP
      >>> embedder.encode(["a text", "another"]).shape  # doctest: +SKIP
      (2, 256)
    """

    def __init__(
        self,
        params: Any,
        config: T5Config,
        tokenizer: Tokenizer,
        *,
        max_tokens: int = 512,
        batch_rows: int = 32,
    ):
        """Puts the parameters on all devices.

        Args:
          params: of `model.t5.init_params`.
          config: shape of the encoder.
          tokenizer: ends every text with end-of-sequence.
          max_tokens: longer texts are cut.
          batch_rows: packed rows encoded at once.
        """
        self.config, self.tokenizer, self.max_tokens = config, tokenizer, max_tokens
        shapes = [
            RowShape(length, _TEXTS_PER_ROW, batch_rows)
            for length in row_lengths(_SHORTEST_ROW, max_tokens)
        ]
        self._encoder = PackedEncoder(partial(_encode_rows, config), params, shapes, make_mesh())

    @classmethod
    def load(cls, path: str | Path, *, batch_rows: int = 32) -> "Embedder":
        """Opens a run folder (its newest checkpoint) or an exported Hugging Face folder.

        Raises: UserError when `path` is neither.
        """
        path = Path(path)
        if is_run(path):
            return cls.from_run(path, batch_rows=batch_rows)
        if not (path / WEIGHTS_FILE).is_file():
            raise UserError(
                f"{path} holds no model: give a run folder (with checkpoints/) or an exported "
                f"folder (with {WEIGHTS_FILE})"
            )
        config, tensors = read_encoder(path)
        limits = json.loads((path / "sentence_bert_config.json").read_text(encoding="utf-8"))
        return cls(
            from_huggingface(tensors, config), config, load_tokenizer(path),
            max_tokens=limits["max_seq_length"], batch_rows=batch_rows,
        )  # fmt: skip

    @classmethod
    def from_run(cls, run_path: Path, *, batch_rows: int = 32) -> "Embedder":
        """Opens the newest checkpoint of a run.

        Raises: UserError when there is none.
        """
        trained = load_checkpoint(run_path)
        return cls(
            trained.params, trained.config, load_tokenizer(run_path / "tokenizer"),
            max_tokens=trained.max_tokens, batch_rows=batch_rows,
        )  # fmt: skip

    def encode(self, texts: Sequence[str], *, progress: bool = False) -> np.ndarray:
        """Embeddings of the texts.

        Returns: float32 [N, D], unit length, in the order given.
        """
        z_ND = np.zeros((len(texts), self.config.d_model), np.float32)
        bar = tqdm(total=len(texts), unit="text", disable=not progress, desc="encode")
        with bar:
            for first in range(0, len(texts), _TEXTS_AT_ONCE):
                part = texts[first : first + _TEXTS_AT_ONCE]
                ids = [self._cut(e.ids) for e in self.tokenizer.encode_batch_fast(list(part))]
                tokens = Tokens((np.concatenate(ids),), np.array([len(i) for i in ids]))
                for index_N, part_ND in self._encoder.encode(tokens):
                    z_ND[first + index_N] = part_ND
                    bar.update(len(index_N))
        return z_ND

    def _cut(self, ids: list[int]) -> np.ndarray:
        kept = ids if len(ids) <= self.max_tokens else [*ids[: self.max_tokens - 1], ids[-1]]
        return np.array(kept, np.int32)


def _encode_rows(
    config: T5Config,
    params: Any,
    segments_RL: jax.Array,
    ids_RL: jax.Array,
    *,
    texts_per_row: int,
) -> jax.Array:
    hidden_RLD = apply(config, params, ids_RL, segments_RL, None)
    return mean_pool(hidden_RLD, segments_RL, texts_per_row)
