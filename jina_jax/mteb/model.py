"""An encoder of this package as a model of the Massive Text Embedding Benchmark (MTEB)."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mteb.models import ModelMeta, SearchEncoderWrapper
from mteb.types import PromptType

from jina_jax.config import Precision
from jina_jax.evaluate.retrieval import order, ranking
from jina_jax.inference.embedder import TEXTS_AT_ONCE, Embedder
from jina_jax.inference.search import stream_top_k
from jina_jax.system.terminal import track


class MtebModel:
    """What `mteb.evaluate` takes: `EncoderProtocol` and `SearchProtocol` by its methods."""

    def __init__(self, encoder: Embedder, name: str) -> None:
        """Wraps an encoder, whose identity tells its results from another's.

        Args:
          encoder: of texts.
          name: OWNER/NAME; the results lie below it.
        """
        self._encoder = encoder
        self._corpus: Any = None
        self.mteb_model_meta = ModelMeta(
            loader=None, name=name, revision=encoder.identity()[:16], release_date=None,
            languages=["eng-Latn"], n_parameters=None, memory_usage_mb=None,
            max_tokens=encoder.max_tokens, embed_dim=encoder.dimensions, license=None,
            open_weights=True, public_training_code=None, public_training_data=None, framework=[],
            similarity_fn_name="cosine", use_instructions=bool(encoder.prompts.named),
            training_datasets=None,
        )  # fmt: skip

    def encode(
        self, inputs: Iterable[dict[str, Any]], *, prompt_type: Any = None, **_: Any
    ) -> np.ndarray:
        """Embeds the texts of all batches at once: packing wants many. Float32 [N, D].

        Queries and documents take the model's prompts for them, other texts its default.
        """
        prompts = self._encoder.prompts
        prompt = {PromptType.query: prompts.query, PromptType.document: prompts.document}.get(
            prompt_type
        )
        texts = [text for batch in inputs for text in batch["text"]]
        return self._encoder.encode(texts, prompt=prompt)

    def similarity(self, a_ND: Any, b_MD: Any) -> torch.Tensor:
        """Cosines of all pairs, [N, M]."""
        return torch.as_tensor(np.atleast_2d(a_ND) @ np.atleast_2d(b_MD).T)

    def similarity_pairwise(self, a_ND: Any, b_ND: Any) -> torch.Tensor:
        """Cosines of row by row, [N]."""
        return torch.as_tensor(np.einsum("nd,nd->n", np.asarray(a_ND), np.asarray(b_ND)))

    def index(self, corpus: Any, **_: Any) -> None:
        """Takes the corpus that is searched next: rows of id, text and sometimes a title."""
        self._corpus = corpus

    def search(
        self, queries: Any, *, top_k: int, top_ranked: Any = None, **more: Any
    ) -> dict[str, dict[str, float]]:
        """Searches the corpus exactly, over all devices, and holds a block of its embeddings.

        Passages that are only to be ranked, and queries that are more than a text, are left to
        mteb's own wrapper of encoders.

        Returns: query → passage → cosine, the `top_k` highest of each query.
        """
        is_plain = "instruction" not in queries.column_names and (
            not len(queries) or isinstance(queries[0]["text"], str)
        )
        if top_ranked is not None or not is_plain:
            wrapper = SearchEncoderWrapper(self)
            wrapper.index(self._corpus, **_for_index(more))
            return wrapper.search(queries, top_k=top_k, top_ranked=top_ranked, **more)
        ids, texts = self._corpus["id"], (_document(row) for row in self._corpus)
        shown = track(
            self._encoder.own(texts, self._encoder.prompts.document), "search the corpus",
            total=-(-len(ids) // TEXTS_AT_ONCE), unit="blocks",
            records=lambda found: len(found.index_N),
        )  # fmt: skip
        q_QD = self._encoder.encode(list(queries["text"]), prompt=self._encoder.prompts.query)
        found = stream_top_k(q_QD, shown, top_k, order=order(list(ids)))
        return ranking(queries["id"], list(ids), *found)


def _document(row: dict[str, Any]) -> str:
    """A passage as mteb joins it."""
    title = row.get("title") or ""
    return f"{title} {row['text']}".strip()


def _for_index(more: dict[str, Any]) -> dict[str, Any]:
    names = ("task_metadata", "hf_split", "hf_subset", "encode_kwargs", "num_proc")
    return {name: more[name] for name in names if name in more}


def open_model(path: Path, name: str = "", precision: Precision = "float32") -> MtebModel:
    """Opens a run or the folder of a model.

    Args:
      path: of the folder.
      name: for the results; `jina_jax/` and the folder's name by default.
      precision: that embeddings are rounded to; another than float32 is part of that default.
    Raises: UserError when it is neither.
    """
    rounding = "" if precision == "float32" else f"-{precision}"
    name = name or f"jina_jax/{path.absolute().name}{rounding}"
    return MtebModel(Embedder.load(path).at(precision), name)
