"""Floating-point operations of an encoder and of the contrastive loss, by formula.

A multiplication and an addition are two operations. Only matrix products are counted: looking up
embeddings, norms, softmax and activations are left out, as is usual for model FLOPs (Chowdhery et
al. 2022, arXiv 2204.02311, appendix B). The compiler's own count is no substitute: it counts the
body of a scan once, and recomputation as if it were progress.
"""

import functools
import math
from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import jax
from flax import nnx

from jina_jax.config import ModelConfig
from jina_jax.model.encoder import init_params


class Work(NamedTuple):
    """Tokens that an encoder maps, and the (query, key) positions that its attention scores."""

    tokens: int
    attended: int

    @classmethod
    def of_rows(cls, rows: int, row_tokens: int) -> "Work":
        """What is computed: every position of every row, padding included."""
        return cls(rows * row_tokens, rows * row_tokens**2)


def encoder_flops(config: ModelConfig, work: Work) -> int:
    """One forward pass.

    Args:
      config: shape of the model.
      work: tokens and scored positions; of rows as computed, or of the texts alone.
    Returns: operations. Training takes three times as many: the backward pass makes two products
      of each.
    Example: d_model 512, d_ff 2048, 8 heads of 64, 6 layers at 128 tokens: 37,748,736 per token
      for the weights and 1,572,864 for attention.
    """
    # The score, and the weight times the value.
    per_attended = 2 * 2 * config.heads * config.head_dimensions
    return work.tokens * 2 * _matrices(config) + work.attended * config.layers * per_attended


@functools.lru_cache
def _matrices(config: ModelConfig) -> int:
    """Numbers in the matrices that a token is multiplied with."""
    shapes = nnx.to_flat_state(jax.eval_shape(partial(init_params, config), jax.random.key(0)))
    return sum(math.prod(leaf.shape) for path, leaf in shapes if path[-1] == "kernel")


def similarity_flops(queries: int, keys: int, dimension: int) -> int:
    """One forward pass of a contrastive loss: every query times every key.

    Both directions of the pair loss read the same matrix, so it counts once. Training takes three
    times as many operations, as for the encoder.
    """
    return 2 * queries * keys * dimension


class StepFlops(NamedTuple):
    """Operations of one training step, over all devices."""

    model: int
    """What the step must compute on its rows as they are, padding included: three forward passes
    of encoder and loss."""
    text: int
    """The part of `model` that is of the texts alone: no padding, and attention within a text."""
    hardware: int
    """`model` and what is computed again to save memory."""
    loss: int
    """The part of each of the others that is of the loss."""


def step_flops(
    config: ModelConfig,
    *,
    rows: Work,
    texts: Work,
    queries: int,
    keys: int,
    encoded_again: int,
    cuts: Sequence[int] = (),
) -> StepFlops:
    """Operations of a training step.

    Args:
      config: shape of the model.
      rows: the packed rows as computed.
      texts: the texts in them: real tokens, and the sum of their squared lengths.
      queries: of the global batch.
      keys: passages that each query is compared with.
      encoded_again: forward passes beyond the first: 1 with full rematerialisation, 1 with
        GradCache, 2 with both.
      cuts: numbers of first dimensions with a loss of their own.
    """
    loss = 3 * similarity_flops(queries, keys, config.dimensions + sum(cuts))
    forward = encoder_flops(config, rows)
    model = 3 * forward + loss
    return StepFlops(
        model=model,
        text=3 * encoder_flops(config, texts) + loss,
        hardware=model + encoded_again * forward,
        loss=loss,
    )
