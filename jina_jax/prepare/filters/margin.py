"""The margin filter: a cross-encoder must score the positive above the negative by a margin.

Keep a triplet when r(q, p) - r(q, n) > 0.2 (Günther et al. 2023, arXiv 2307.11224). The paper
doesn't say whether r is the logit or its sigmoid: `MarginConfig.scale` chooses. Logits are what is
computed and cached, so that the scale and the threshold can be changed without scoring again.
"""

import dataclasses
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Bool, Float32

from jina_jax.config import BertConfig, MarginConfig
from jina_jax.devices.mesh import make_mesh
from jina_jax.errors import UserError
from jina_jax.inference.model_folder import find_folder, read_encoder, read_folder_tokenizer
from jina_jax.inference.packed_encoder import (
    PackedEncoder,
    Tokens,
    inference_execution,
    row_shapes,
)
from jina_jax.inference.shares import in_order
from jina_jax.model.bert import classifier_from_huggingface, classify
from jina_jax.model.family import Execution

_PAIRS_AT_ONCE = 16_384  # bounds what is tokenised and packed before it is scored
_MAX_TOKENS = 512


class CrossEncoder:
    """Scores (query, passage) pairs with a BERT that reads both at once.

    Example:
      >>> model = CrossEncoder("cross-encoder/ms-marco-MiniLM-L-6-v2")  # doctest: +SKIP
      >>> model.logits([("a query", "a passage")]).shape  # doctest: +SKIP
      (1,)
    """

    def __init__(
        self, path_or_id: str | Path, *, batch_rows: int = 32, mesh: Mesh | None = None
    ) -> None:
        """Opens the folder of a BERT with one logit and puts its parameters on every device.

        Args:
          path_or_id: a Hugging Face folder or id with safetensors.
          batch_rows: rows scored at once, over all devices.
          mesh: over which rows are divided; all devices by default.
        Raises: UserError when the folder cannot be used.
        """
        mesh = make_mesh() if mesh is None else mesh
        folder = find_folder(path_or_id)
        config, tensors = read_encoder(folder)
        if not isinstance(config, BertConfig) or config.model_type != "bert":
            raise UserError(f"{folder} is no BERT, which the cross-encoder here is")
        if jax.default_backend() != "cpu":
            config = dataclasses.replace(config, compute_dtype="bfloat16")
        max_tokens = min(_MAX_TOKENS, config.max_position_embeddings)
        self._tokenizer = read_folder_tokenizer(folder, config)
        # The longer of the two gives way, as in sentence-transformers.
        self._tokenizer.enable_truncation(max_tokens, strategy="longest_first")
        self._encoder = PackedEncoder(
            partial(_classify_rows, config, inference_execution(mesh, config, max_tokens)),
            classifier_from_huggingface(tensors, config),
            row_shapes(max_tokens, batch_rows),
            mesh,
        )

    def logits(self, pairs: Iterable[tuple[str, str]]) -> np.ndarray:
        """Relevance of each passage to its query.

        Args:
          pairs: (query, passage), any number; read some ten thousand ahead.
        Returns: float32 [N], the classifier's output as it is, in order.
        """
        rounds = self._encoder.stream(pairs, self._tokenised, _PAIRS_AT_ONCE)
        blocks = in_order(rounds, self._encoder.share, _PAIRS_AT_ONCE)
        return np.concatenate([np.zeros(0, np.float32), *blocks])

    def _tokenised(self, pairs: list[tuple[str, str]]) -> Tokens:
        encodings = self._tokenizer.encode_batch_fast(pairs)
        return Tokens.of([e.ids for e in encodings], [e.type_ids for e in encodings])


def _classify_rows(
    config: BertConfig,
    execution: Execution,
    params: Any,
    segments_RL: jax.Array,
    ids_RL: jax.Array,
    types_RL: jax.Array,
    *,
    texts_per_row: int,
) -> jax.Array:
    return classify(config, params, ids_RL, segments_RL, types_RL, texts_per_row, execution)


def triplet_logits(
    triplets: Iterable[tuple[str, str, str]], cross_encoder: CrossEncoder
) -> Float32[np.ndarray, "N 2"]:
    """The two logits of each triplet, which the filter's decision follows from.

    Args:
      triplets: (query, positive, negative).
      cross_encoder: the r of the rule.
    Returns: float32 [N, 2]: the logits of (query, positive) and of (query, negative).
    """
    pairs = ((query, text) for query, *texts in triplets for text in texts)
    return cross_encoder.logits(pairs).reshape(-1, 2)


def margins(
    logits_Nx2: Float32[np.ndarray, "N 2"], config: MarginConfig
) -> Float32[np.ndarray, " N"]:
    """r(q, p) - r(q, n) of each triplet.

    Args:
      logits_Nx2: from `triplet_logits`.
      config: the scale of r.
    Returns: float32 [N].
    Example: logits (0, -2) give 2 as logits, and 0.5 - 0.1192 = 0.3808 as sigmoids.
    """
    # NaN where an infinite logit met another would be neither kept nor explained.
    assert np.isfinite(logits_Nx2).all(), "the cross-encoder gave a logit that is not finite"
    if config.scale == "logit":
        r_Nx2 = logits_Nx2.astype(np.float64)
    else:
        # 1 / (1 + exp(-x)) overflows for x below -709; this form does not.
        r_Nx2 = 0.5 * (1.0 + np.tanh(0.5 * logits_Nx2.astype(np.float64)))
    return (r_Nx2[:, 0] - r_Nx2[:, 1]).astype(np.float32)


def keep_by_margin(
    margin_N: Float32[np.ndarray, " N"], config: MarginConfig
) -> Bool[np.ndarray, " N"]:
    """Which triplets stay: those whose margin exceeds the threshold.

    Args:
      margin_N: from `margins`.
      config: the threshold.
    """
    return margin_N > np.float32(config.threshold)
