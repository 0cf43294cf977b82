"""Encodes texts into unit vectors: with a trained run or the folder of a model."""

import copy
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
from jina_jax.config import ModelConfig, PoolingConfig, Precision, PromptConfig
from jina_jax.devices.mesh import all_on_data, make_mesh
from jina_jax.errors import UserError
from jina_jax.inference.model_folder import (
    WEIGHTS_FILE,
    find_folder,
    has_weights,
    read_folder_tokenizer,
    read_params,
    read_sentence_config,
)
from jina_jax.inference.packed_encoder import (
    PackedEncoder,
    Tokens,
    inference_execution,
    row_shapes,
)
from jina_jax.inference.quantised import IN_RANGES, rounded
from jina_jax.inference.shares import Encoded, Share, common_ranges, in_order
from jina_jax.model.encoder import embed
from jina_jax.model.family import Execution
from jina_jax.model.pooling import first_dimensions
from jina_jax.text.tokenizer import check_ids, load_tokenizer, prompt_length

TEXTS_AT_ONCE = 4096
"""Texts of a block: tokenised and packed before they are encoded."""


def check_dimensions(truncate_dim: int | None, dimensions: int) -> None:
    """Raises: UserError when a model has fewer dimensions than are asked for."""
    if truncate_dim is not None and not 0 < truncate_dim <= dimensions:
        raise UserError(
            f"truncate_dim={truncate_dim} must lie in 1..{dimensions}, the dimensions of the model"
        )


def find_model(path: str | Path) -> Path:
    """The folder of a run or of a model.

    Args:
      path: of a run, of an exported or other Hugging Face folder, or an id of the hub.
    Raises: UserError when it is none of these.
    """
    if is_run(Path(path)):
        return Path(path)
    if Path(path).is_dir() and not has_weights(Path(path)):
        raise UserError(
            f"{path} holds no model: give a run folder (with checkpoints/) or a model's "
            f"folder (with {WEIGHTS_FILE})"
        )
    return find_folder(path)


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
        config: ModelConfig,
        tokenizer: Tokenizer,
        *,
        pooling: PoolingConfig = PoolingConfig(),
        prompts: PromptConfig = PromptConfig(),
        max_tokens: int = 512,
        batch_rows: int = 32,
        truncate_dim: int | None = None,
        normalize: bool | None = True,
        compute_dtype: Literal["float32", "bfloat16"] = "float32",
        mesh: Mesh | None = None,
    ):
        """Puts the parameters on all devices.

        Args:
          params: of `model.encoder.init_params`.
          config: shape of the encoder.
          tokenizer: adds the special tokens that every text has.
          pooling: from hidden states to an embedding.
          prompts: that the model knows.
          max_tokens: longer texts are cut.
          batch_rows: packed rows encoded at once.
          truncate_dim: give only the first dimensions, at unit length again; None for all.
          normalize: scale embeddings to length 1, for cosines; None does as `pooling` says.
          compute_dtype: of the matrix products.
          mesh: all devices by default. The processes whose devices these are share the texts: each
            calls with the same ones. Every device holds the whole of the parameters.
        Raises: UserError when the model has fewer dimensions.
        """
        dimensions = pooling.dimensions(config)
        check_dimensions(truncate_dim, dimensions)
        config = dataclasses.replace(config, compute_dtype=compute_dtype)
        if normalize is not None:
            pooling = dataclasses.replace(pooling, normalize=normalize)
        self.config, self.tokenizer = config, tokenizer
        self.prompts, self._pooling = prompts, pooling
        self.dimensions, self.max_tokens = truncate_dim or dimensions, max_tokens
        """Of an embedding, and of the longest text."""
        self._cutting = Tokenizer.from_str(tokenizer.to_str())
        self._cutting.enable_truncation(max_tokens)
        # Every device takes texts of its own.
        self.mesh = make_mesh() if mesh is None else all_on_data(mesh)
        execution = inference_execution(self.mesh, config, max_tokens)
        encode_rows = partial(_encode_rows, config, pooling, self.dimensions, execution)
        self._precision: Precision = "float32"
        self._encoder = PackedEncoder(
            encode_rows, params, row_shapes(max_tokens, batch_rows), self.mesh,
            width=(self.dimensions,),
        )  # fmt: skip

    def encode_at_once(self, batch_rows: int) -> None:
        """Encodes so many packed rows at once from now on."""
        self._encoder.shapes = row_shapes(self.max_tokens, batch_rows)

    def at(self, precision: Precision) -> "Embedder":
        """The same model, whose embeddings are rounded to a precision, and float32 again.

        So what is measured with it is what an index of such embeddings would find. int8 and uint8
        divide the ranges of the first `TEXTS_AT_ONCE` texts of a call to `encode` or `stream`.
        """
        other = copy.copy(self)
        other._precision = precision
        return other

    @classmethod
    def load(cls, path: str | Path, **options: Any) -> "Embedder":
        """Opens a run folder (its newest checkpoint), or a model's folder or id.

        Args:
          path: of a run, of an exported or other Hugging Face folder, or an id of the hub.
          options: batch_rows, truncate_dim, normalize, compute_dtype and mesh of `Embedder`.
        Raises: UserError when `path` is none of these, or the folder's embeddings are made in a way
          that isn't known here.
        """
        folder = find_model(path)
        if is_run(folder):
            return cls.from_run(folder, **options)
        model = read_sentence_config(folder)
        tokenizer = read_folder_tokenizer(folder, model.config)
        return cls(
            read_params(folder, model), model.config, tokenizer, pooling=model.pooling,
            prompts=model.prompts, max_tokens=model.max_tokens, **options,
        )  # fmt: skip

    @classmethod
    def from_run(cls, run_path: Path, **options: Any) -> "Embedder":
        """Opens the newest checkpoint of a run; options as for `load`.

        Raises: UserError when there is none.
        """
        trained = load_checkpoint(run_path)
        tokenizer = load_tokenizer(run_path / "tokenizer")
        check_ids(tokenizer, trained.config.vocab_size, run_path)
        return cls(
            trained.params, trained.config, tokenizer, pooling=trained.pooling,
            prompts=trained.prompts, max_tokens=trained.max_tokens, **options,
        )  # fmt: skip

    def encode(
        self, texts: Sequence[str], *, prompt: str | None = None, progress: bool = False
    ) -> np.ndarray:
        """Embeddings of the texts.

        Args:
          texts: any number.
          prompt: stands before each text, such as `embedder.prompts.query`; None takes the model's
            for texts that are neither query nor document.
          progress: show it on standard error.
        Returns: float32 [N, D], in the order given.
        """
        z_ND = np.empty((len(texts), self.dimensions), np.float32)
        first = 0
        with tqdm(total=len(texts), unit="text", disable=not progress, desc="encode") as bar:
            for part_ND in self.stream(texts, prompt):
                z_ND[first : first + len(part_ND)] = part_ND
                first += len(part_ND)
                bar.update(len(part_ND))
        return z_ND

    def stream(self, texts: Iterable[str], prompt: str | None = None) -> Iterator[np.ndarray]:
        """Embeds texts as they come.

        Args:
          texts: any number; at most two blocks of `TEXTS_AT_ONCE` a process are read ahead.
          prompt: as for `encode`.
        Returns: an iterator over float32 [n, D], a block each, in the order of the texts; in every
          process all of them.
        """
        return in_order(self.own(texts, prompt), self.share, TEXTS_AT_ONCE)

    def own(self, texts: Iterable[str], prompt: str | None = None) -> Iterator[Encoded]:
        """Embeds this process's share of texts as they come; arguments as for `stream`."""
        prompt = self.prompts.other if prompt is None else prompt
        unpooled = prompt_length(self.tokenizer, prompt) if self._pooling.skips_prompt else 0
        found = self._encoder.stream(
            texts, partial(self._tokenised, prompt, unpooled), TEXTS_AT_ONCE
        )
        return found if self._precision == "float32" else self._rounded(found)

    def _rounded(self, found: Iterable[Encoded]) -> Iterator[Encoded]:
        ranges_2D = None
        for one in found:
            if ranges_2D is None and self._precision in IN_RANGES:
                first_ND = one.z_ND[one.index_N < TEXTS_AT_ONCE]
                ranges_2D = common_ranges(first_ND, self.share)
            z_ND = rounded(one.z_ND, self._precision, ranges_2D, normalize=self._pooling.normalize)
            yield one._replace(z_ND=z_ND)

    @property
    def share(self) -> Share:
        """Of the texts that this process encodes."""
        return self._encoder.share

    def use(self, params: Any) -> None:
        """Encodes with other parameters of the same shape from now on, without compiling again.

        All processes of the mesh call it.
        """
        self._encoder.use(params)

    def identity(self) -> str:
        """Names everything that an embedding depends on besides the text."""
        digest = xxhash.xxh3_128()
        for leaf in jax.tree.leaves(self._encoder.params):
            digest.update(np.ascontiguousarray(leaf).tobytes())
        digest.update(self.tokenizer.to_str().encode())
        configs = [dataclasses.asdict(c) for c in (self.config, self._pooling, self.prompts)]
        rounding = [self._precision] * (self._precision != "float32")
        values = [*configs, self.max_tokens, self.dimensions, *rounding]
        digest.update(json.dumps(values, sort_keys=True).encode())
        return digest.hexdigest()

    def _tokenised(self, prompt: str, unpooled: int, texts: list[str]) -> Tokens:
        """Tokens of a block of texts; a cut one keeps its special tokens."""
        if prompt:
            texts = [prompt + text for text in texts]
        ids = [e.ids for e in self._cutting.encode_batch_fast(texts)]
        if not unpooled:
            return Tokens.of(ids)
        return Tokens.of(ids, [[int(i >= unpooled) for i in range(len(of))] for of in ids])


def _encode_rows(
    config: ModelConfig,
    pooling: PoolingConfig,
    dimensions: int,
    execution: Execution,
    params: Any,
    segments_RL: jax.Array,
    ids_RL: jax.Array,
    is_pooled_RL: jax.Array | None = None,
    *,
    texts_per_row: int,
) -> jax.Array:
    z_RSD = embed(
        config, pooling, params, ids_RL, segments_RL, texts_per_row,
        pooled_RL=None if is_pooled_RL is None else segments_RL * is_pooled_RL,
        execution=execution, normalize=pooling.normalize,
    )  # fmt: skip
    if dimensions == z_RSD.shape[-1]:
        return z_RSD
    return first_dimensions(z_RSD, dimensions) if pooling.normalize else z_RSD[..., :dimensions]
