"""A model for use from Python: texts to embeddings, similarity and search."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Float32

from jina_jax.config import Precision, PromptConfig
from jina_jax.inference.embedder import Embedder, check_dimensions
from jina_jax.inference.quantised import quantize
from jina_jax.inference.search import Hit, search


def load(
    path_or_id: str | Path, *, compute_dtype: Literal["float32", "bfloat16"] = "float32"
) -> "Model":
    """Opens a model on all devices.

    Args:
      path_or_id: a run folder (its newest checkpoint), the folder of an exported or other model, an
        id of the Hugging Face hub, or PACKAGE:FOLDER of an installed package.
      compute_dtype: of the matrix products; bfloat16 is faster on TPUs and GPUs.
    Raises: UserError when it is none of these.
    Example:
      >>> model = jina_jax.load("runs/demo")  # doctest: +SKIP
      >>> model.encode(["a text", "another"]).shape  # doctest: +SKIP
      (2, 384)
    """
    return Model(Embedder.load(path_or_id, compute_dtype=compute_dtype))


class Model:
    """Encodes texts into embeddings, and compares them by cosine. `load` opens one."""

    def __init__(self, embedder: Embedder):
        """Args: that holds the parameters."""
        self._embedder = embedder

    @property
    def dimensions(self) -> int:
        """Of an embedding."""
        return self._embedder.dimensions

    @property
    def max_tokens(self) -> int:
        """Longer texts are cut."""
        return self._embedder.max_tokens

    @property
    def prompts(self) -> PromptConfig:
        """That the model knows, by their names."""
        return self._embedder.prompts

    def encode(
        self,
        texts: str | Sequence[str],
        *,
        prompt_name: str | None = None,
        prompt: str | None = None,
        batch_size: int = 32,
        show_progress: bool = False,
        precision: Precision = "float32",
        ranges: Float32[np.ndarray, "2 D"] | None = None,
        truncate_dim: int | None = None,
    ) -> np.ndarray:
        """Embeddings of texts, of length 1 before they are rounded.

        Args:
          texts: any number, or a single one.
          prompt_name: of the model's prompts, such as `query`; None takes the one for texts that
            are neither query nor passage.
          prompt: stands before each text, in place of a named one.
          batch_size: packed rows encoded at once, each of one long text or several short ones.
          show_progress: on standard error.
          precision: of the numbers. int8 and uint8 divide the range of each dimension into 256;
            binary (int8) and ubinary (uint8) hold a bit a dimension. Source: sentence-transformers,
            `quantize_embeddings`.
          ranges: for int8 and uint8 the least and the largest value of each dimension, as
            `inference.quantised.ranges_of` takes them of float32 embeddings; by default those of
            these texts. What is to be compared needs the same.
          truncate_dim: give only the first dimensions, at length 1 again.
        Returns: [N, D] in the order given, or [D] of a single text.
        Raises: UserError for a prompt, a precision or a number of dimensions that isn't there.
        """
        if isinstance(texts, str):
            return self.encode(
                [texts], prompt_name=prompt_name, prompt=prompt, batch_size=batch_size,
                show_progress=show_progress, precision=precision, ranges=ranges,
                truncate_dim=truncate_dim,
            )[0]  # fmt: skip
        if prompt is None and prompt_name is not None:
            prompt = self.prompts.find(prompt_name)
        check_dimensions(truncate_dim, self.dimensions)
        self._embedder.encode_at_once(batch_size)
        z_ND = self._embedder.encode(texts, prompt=prompt, progress=show_progress)
        if truncate_dim is not None:
            z_ND = _unit(z_ND[:, :truncate_dim])
        return quantize(z_ND, precision, ranges)

    def similarity(self, a: np.ndarray, b: np.ndarray) -> Float32[np.ndarray, "M N"]:
        """Cosines of each embedding of one array with each of another.

        Args:
          a: [M, D], or [D] for one, of any precision but the binary ones.
          b: [N, D], or [D] for one.
        Returns: float32 [M, N].
        """
        return _unit(np.atleast_2d(a)) @ _unit(np.atleast_2d(b)).T

    def search(
        self, queries: str | Sequence[str], passages: Iterable[str], *, top_k: int = 10
    ) -> list[list[Hit]]:
        """The passages nearest to each query, exactly, with the model's prompts for both.

        Args:
          queries: any number, or a single one.
          passages: to search.
          top_k: for each query.
        Returns: for each query its hits, `score` and `passage`, best first.
        """
        wanted, corpus = [queries] if isinstance(queries, str) else list(queries), list(passages)
        found = search(self._embedder, lambda: corpus, wanted, top_k)
        return [found[query] for query in wanted]


def _unit(x_ND: np.ndarray) -> np.ndarray:
    x_ND = x_ND.astype(np.float32)
    return x_ND / np.maximum(np.linalg.norm(x_ND, axis=1, keepdims=True), 1e-12)
