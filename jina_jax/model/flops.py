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
from typing import Any, NamedTuple

import jax
from flax import nnx

from jina_jax.config import LoraConfig, ModelConfig
from jina_jax.model.encoder import init_params
from jina_jax.model.layers import is_adapted


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
def _shapes(config: ModelConfig) -> dict[tuple[Any, ...], tuple[int, int]]:
    """Of the matrices that a token is multiplied with, by their paths."""
    shapes = nnx.to_flat_state(jax.eval_shape(partial(init_params, config), jax.random.key(0)))
    return {path[:-1]: leaf.shape for path, leaf in shapes if path[-1] == "kernel"}


def _matrices(config: ModelConfig) -> int:
    """Numbers in the matrices that a token is multiplied with."""
    return sum(map(math.prod, _shapes(config).values()))


def adapter_flops(config: ModelConfig, work: Work, lora: LoraConfig) -> int:
    """One forward pass of the adapters alone.

    Example: rank 4 beside a matrix of 512 · 2048: 2 · 4 · (512 + 2048) = 20,480 per token.
    """
    sides = [sum(shape) for path, shape in _shapes(config).items() if is_adapted(path, lora)]
    return work.tokens * 2 * lora.rank * sum(sides)


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
    of encoder and loss, less the gradients of what is frozen."""
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
    scored_again: bool = False,
    cuts: Sequence[int] = (),
    lora: LoraConfig = LoraConfig(),
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
      scored_again: whether the backward pass computes the scores of attention again.
      cuts: numbers of first dimensions with a loss of their own.
      lora: with adapters a frozen matrix takes two products in place of three: it has no gradient.
    """
    loss = 3 * similarity_flops(queries, keys, config.dimensions + sum(cuts))

    def forward(work: Work) -> int:
        return encoder_flops(config, work) + adapter_flops(config, work, lora)

    def trained(work: Work) -> int:
        left_out = work.tokens * 2 * _matrices(config) if lora.rank else 0
        return 3 * forward(work) - left_out + loss

    # Of the two products of attention the first.
    scores = encoder_flops(config, Work(0, rows.attended)) // 2
    return StepFlops(
        model=trained(rows),
        text=trained(texts),
        hardware=trained(rows) + encoded_again * forward(rows) + scores * scored_again,
        loss=loss,
    )
