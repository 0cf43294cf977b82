"""From texts to embeddings, with a trained run or an exported folder."""

import dataclasses
import json
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
import xxhash
from jax.sharding import Mesh
from tokenizers import Tokenizer
from tqdm import tqdm

from jina_jax.checkpoint.trained import is_run, load_checkpoint
from jina_jax.config import T5Config
from jina_jax.devices.mesh import all_on_data, make_mesh
from jina_jax.errors import UserError
from jina_jax.inference.hf_folder import WEIGHTS_FILE, has_weights, read_encoder
from jina_jax.inference.packed_encoder import (
    PackedEncoder,
    RowShape,
    Tokens,
    one_ahead,
    row_lengths,
)
from jina_jax.inference.sentence_folder import check_sentence_folder
from jina_jax.model.pooling import first_dimensions, mean_pool
from jina_jax.model.t5 import Execution, apply
from jina_jax.model.weights import from_huggingface
from jina_jax.text.tokenizer import check_ids, load_tokenizer

_TEXTS_PER_ROW = 32
_SHORTEST_ROW = 128
TEXTS_AT_ONCE = 4096
"""Texts of a block: tokenised and packed before they are encoded."""


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
        truncate_dim: int | None = None,
        compute_dtype: Literal["float32", "bfloat16"] = "float32",
        mesh: Mesh | None = None,
    ):
        """Puts the parameters on all devices.

        Args:
          params: of `model.t5.init_params`.
          config: shape of the encoder.
          tokenizer: ends every text with end-of-sequence.
          max_tokens: longer texts are cut.
          batch_rows: packed rows encoded at once.
          truncate_dim: give only the first dimensions, at unit length again; None for all.
          compute_dtype: of the matrix products.
          mesh: all devices by default; where it is of several processes, each calls with the same
            texts and gets all embeddings.
        Raises: UserError when the model has fewer dimensions.
        """
        if truncate_dim is not None and not 0 < truncate_dim <= config.d_model:
            raise UserError(
                f"truncate_dim={truncate_dim} must lie in 1..{config.d_model}, the dimensions of "
                f"the model"
            )
        config = dataclasses.replace(config, compute_dtype=compute_dtype)
        self.config, self.tokenizer, self.max_tokens = config, tokenizer, max_tokens
        self.dimensions = truncate_dim or config.d_model
        """Of an embedding."""
        shapes = [
            RowShape(length, _TEXTS_PER_ROW, batch_rows)
            for length in row_lengths(_SHORTEST_ROW, max_tokens)
        ]
        self.mesh = mesh = make_mesh() if mesh is None else all_on_data(mesh)
        """Every device takes texts of its own."""
        is_cpu = mesh.devices.flat[0].platform == "cpu"
        execution = Execution(kernel="by_row" if is_cpu else "at_once")
        self._encoder = PackedEncoder(
            partial(_encode_rows, config, self.dimensions, execution), params, shapes, mesh
        )

    @classmethod
    def load(cls, path: str | Path, **options: Any) -> "Embedder":
        """Opens a run folder (its newest checkpoint) or an exported Hugging Face folder.

        Args:
          path: of the folder.
          options: batch_rows, truncate_dim and compute_dtype of `Embedder`.
        Raises: UserError when `path` is neither, or the folder pools otherwise than by the mean.
        """
        path = Path(path)
        if is_run(path):
            return cls.from_run(path, **options)
        if not has_weights(path):
            raise UserError(
                f"{path} holds no model: give a run folder (with checkpoints/) or an exported "
                f"folder (with {WEIGHTS_FILE})"
            )
        max_tokens = check_sentence_folder(path)
        config, tensors = read_encoder(path)
        tokenizer = load_tokenizer(path)
        check_ids(tokenizer, config.vocab_size, path)
        params = from_huggingface(tensors, config)
        return cls(params, config, tokenizer, max_tokens=max_tokens, **options)

    @classmethod
    def from_run(cls, run_path: Path, **options: Any) -> "Embedder":
        """Opens the newest checkpoint of a run; options as for `load`.

        Raises: UserError when there is none.
        """
        trained = load_checkpoint(run_path)
        tokenizer = load_tokenizer(run_path / "tokenizer")
        check_ids(tokenizer, trained.config.vocab_size, run_path)
        return cls(
            trained.params, trained.config, tokenizer, max_tokens=trained.max_tokens, **options
        )

    def encode(self, texts: Sequence[str], *, progress: bool = False) -> np.ndarray:
        """Embeddings of the texts.

        Returns: float32 [N, D], unit length, in the order given.
        """
        z_ND = np.empty((len(texts), self.dimensions), np.float32)
        first = 0
        bar = tqdm(total=len(texts), unit="text", disable=not progress, desc="encode")
        with bar:
            for part_ND in self.stream(texts):
                z_ND[first : first + len(part_ND)] = part_ND
                first += len(part_ND)
                bar.update(len(part_ND))
        return z_ND

    def stream(self, texts: Iterable[str]) -> Iterator[np.ndarray]:
        """Embeds texts as they come.

        Args:
          texts: any number; `TEXTS_AT_ONCE` are read ahead, and held no longer.
        Returns: an iterator over float32 [n, D] of `TEXTS_AT_ONCE` texts each, in their order; an
          embedding depends on the texts of its block by rounding alone.
        """
        for tokens in one_ahead(self._tokenised(texts)):
            z_ND = np.empty((len(tokens.length_N), self.dimensions), np.float32)
            for index_N, part_ND in self._encoder.encode(tokens):
                z_ND[index_N] = part_ND
            yield z_ND

    def use(self, params: Any) -> None:
        """Encodes with other parameters of the same shape from now on, without compiling again."""
        self._encoder.use(params)

    def identity(self) -> str:
        """Names everything that an embedding depends on besides the text."""
        digest = xxhash.xxh3_128()
        for leaf in jax.tree.leaves(self._encoder.params):
            digest.update(np.ascontiguousarray(leaf).tobytes())
        digest.update(self.tokenizer.to_str().encode())
        values = [dataclasses.asdict(self.config), self.max_tokens, self.dimensions]
        digest.update(json.dumps(values, sort_keys=True).encode())
        return digest.hexdigest()

    def _tokenised(self, texts: Iterable[str]) -> Iterator[Tokens]:
        iterator = iter(texts)
        while part := list(islice(iterator, TEXTS_AT_ONCE)):
            ids = [self._cut(e.ids) for e in self.tokenizer.encode_batch_fast(part)]
            yield Tokens((np.concatenate(ids),), np.array([len(i) for i in ids]))

    def _cut(self, ids: list[int]) -> np.ndarray:
        kept = ids if len(ids) <= self.max_tokens else [*ids[: self.max_tokens - 1], ids[-1]]
        return np.array(kept, np.int32)


def _encode_rows(
    config: T5Config,
    dimensions: int,
    execution: Execution,
    params: Any,
    segments_RL: jax.Array,
    ids_RL: jax.Array,
    *,
    texts_per_row: int,
) -> jax.Array:
    hidden_RLD = apply(config, params, ids_RL, segments_RL, None, execution)
    z_RSD = mean_pool(hidden_RLD, segments_RL, texts_per_row)
    return z_RSD if dimensions == config.d_model else first_dimensions(z_RSD, dimensions)
