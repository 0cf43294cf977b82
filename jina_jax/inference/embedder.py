"""Encodes texts into unit vectors: with a trained run, an exported folder or a BERT."""

import dataclasses
import json
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
import xxhash
from jax.sharding import Mesh
from tokenizers import Tokenizer
from tqdm import tqdm

from jina_jax.checkpoint.checkpoints import is_run, load_checkpoint
from jina_jax.config import BertConfig, T5Config
from jina_jax.devices.mesh import all_on_data, make_mesh
from jina_jax.errors import UserError
from jina_jax.inference.model_folder import (
    POOLING_FILE,
    WEIGHTS_FILE,
    bert_max_tokens,
    check_pooling,
    check_sentence_folder,
    has_weights,
    read_bert,
    read_encoder,
)
from jina_jax.inference.packed_encoder import (
    PackedEncoder,
    RowShape,
    Tokens,
    bert_row_shapes,
    row_lengths,
)
from jina_jax.model import bert, t5
from jina_jax.model.pooling import first_dimensions, mean_pool
from jina_jax.system.untrusted import inner_path
from jina_jax.text.tokenizer import check_ids, load_tokenizer

_TEXTS_PER_ROW = 32
_SHORTEST_ROW = 128
TEXTS_AT_ONCE = 4096
"""Texts of a block: tokenised and packed before they are encoded."""


class TextEncoder:
    """Tokenises blocks of texts and runs them in packed rows."""

    def __init__(self, encoder: PackedEncoder, *, dimensions: int, max_tokens: int) -> None:
        """Takes the encoder of tokens, and the sizes of an embedding and of the longest text."""
        self._encoder = encoder
        self.mesh, self.dimensions, self.max_tokens = encoder.mesh, dimensions, max_tokens

    def encode(self, texts: Sequence[str], *, progress: bool = False) -> np.ndarray:
        """Embeddings of the texts.

        Returns: float32 [N, D], unit length, in the order given.
        """
        z_ND = np.empty((len(texts), self.dimensions), np.float32)
        first = 0
        with tqdm(total=len(texts), unit="text", disable=not progress, desc="encode") as bar:
            for part_ND in self.stream(texts):
                z_ND[first : first + len(part_ND)] = part_ND
                first += len(part_ND)
                bar.update(len(part_ND))
        return z_ND

    def stream(self, texts: Iterable[str]) -> Iterator[np.ndarray]:
        """Embeds texts as they come.

        Args:
          texts: any number; at most two blocks of `TEXTS_AT_ONCE` are read ahead.
        Returns: an iterator over float32 [n, D], a block each, in the order of the texts.
        """
        return self._encoder.stream(texts, self._tokenised, TEXTS_AT_ONCE)

    def identity(self) -> str:
        """Names everything that an embedding depends on besides the text."""
        raise NotImplementedError

    def _tokenised(self, texts: list[str]) -> Tokens:
        """Tokens of a block of texts, each cut at `max_tokens`."""
        raise NotImplementedError


class Embedder(TextEncoder):
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
        self.config, self.tokenizer = config, tokenizer
        dimensions = truncate_dim or config.d_model
        shapes = [
            RowShape(length, _TEXTS_PER_ROW, batch_rows)
            for length in row_lengths(_SHORTEST_ROW, max_tokens)
        ]
        # Every device takes texts of its own.
        mesh = make_mesh() if mesh is None else all_on_data(mesh)
        is_cpu = mesh.devices.flat[0].platform == "cpu"
        execution = t5.Execution(kernel="by_row" if is_cpu else "at_once")
        encode_rows = partial(_encode_rows, config, dimensions, execution)
        super().__init__(
            PackedEncoder(encode_rows, params, shapes, mesh), dimensions=dimensions,
            max_tokens=max_tokens,
        )  # fmt: skip

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
        params = t5.from_huggingface(tensors, config)
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

    def use(self, params: Any) -> None:
        """Encodes with other parameters of the same shape from now on, without compiling again."""
        self._encoder.use(params)

    def identity(self) -> str:
        """Hash of parameters, tokenizer, shape, limit and dimensions."""
        digest = xxhash.xxh3_128()
        for leaf in jax.tree.leaves(self._encoder.params):
            digest.update(np.ascontiguousarray(leaf).tobytes())
        digest.update(self.tokenizer.to_str().encode())
        values = [dataclasses.asdict(self.config), self.max_tokens, self.dimensions]
        digest.update(json.dumps(values, sort_keys=True).encode())
        return digest.hexdigest()

    def _tokenised(self, texts: list[str]) -> Tokens:
        """Cuts a text before its last token, which is end-of-sequence."""
        most = self.max_tokens
        return Tokens.of(
            [
                e.ids if len(e) <= most else [*e.ids[: most - 1], e.ids[-1]]
                for e in self.tokenizer.encode_batch_fast(texts)
            ]
        )


class SentenceEncoder(TextEncoder):
    """A BERT such as all-MiniLM-L6-v2: mean pooling over the tokens, scaled to length 1.

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
        max_tokens = bert_max_tokens(files)
        self.sha256 = files.sha256
        """Of the model's files, as `model_sha256` gives it."""
        self._compute_dtype = files.config.compute_dtype
        self._tokenizer = files.tokenizer
        self._tokenizer.enable_truncation(max_tokens)
        encoder = PackedEncoder(
            partial(_encode_bert_rows, files.config),
            bert.from_huggingface(files.tensors, files.config),
            bert_row_shapes(max_tokens, files.config, batch_tokens),
            make_mesh() if mesh is None else mesh,
        )
        super().__init__(encoder, dimensions=files.config.hidden_size, max_tokens=max_tokens)

    def identity(self) -> str:
        """Hash of the model's files, limit and dtype."""
        return f"{self.sha256}-{self.max_tokens}-{self._compute_dtype}"

    def _tokenised(self, texts: list[str]) -> Tokens:
        return Tokens.of([e.ids for e in self._tokenizer.encode_batch_fast(texts)])


def _encode_bert_rows(
    config: BertConfig,
    params: Any,
    segments_RL: jax.Array,
    ids_RL: jax.Array,
    *,
    texts_per_row: int,
) -> jax.Array:
    return mean_pool(bert.apply(config, params, ids_RL, segments_RL), segments_RL, texts_per_row)


def _encode_rows(
    config: T5Config,
    dimensions: int,
    execution: t5.Execution,
    params: Any,
    segments_RL: jax.Array,
    ids_RL: jax.Array,
    *,
    texts_per_row: int,
) -> jax.Array:
    hidden_RLD = t5.apply(config, params, ids_RL, segments_RL, None, execution)
    z_RSD = mean_pool(hidden_RLD, segments_RL, texts_per_row)
    return z_RSD if dimensions == config.d_model else first_dimensions(z_RSD, dimensions)
