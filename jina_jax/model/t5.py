"""The T5 encoder (Raffel et al. 2020), v1.0 and v1.1, for packed rows."""

import functools
from collections.abc import Callable
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from jina_jax.config import T5Config
from jina_jax.model.attention import Kernel, RelativePositionBias, SelfAttention, segment_mask
from jina_jax.model.dropout import DropoutKey, Site, dropout
from jina_jax.model.feed_forward import FeedForward
from jina_jax.model.norm import RMSNorm


class Execution(NamedTuple):
    """How the layers are run. It changes time, memory and rounding, not the function."""

    scan: bool = False
    """Compile one layer and loop over all, on parameters that are stacked in the step alone."""
    remat: Literal["none", "dots", "full"] = "none"
    """What the backward pass computes again instead of keeping: nothing, all but the products with
    weights, or whole layers."""
    kernel: Kernel = "at_once"
    """Of the attention."""
    pin: Callable[[Array], Array] = lambda x_ND: x_ND
    """Maps hidden states to the same with a sharding on them, between layers."""


AT_ONCE = Execution()


class Block(nnx.Module):
    """One layer: attention, then feed-forward, each normalised before and added after."""

    def __init__(self, config: T5Config, *, rngs: nnx.Rngs) -> None:
        self.dropout_rate = config.dropout_rate
        self.attention_norm = RMSNorm(config.d_model, config.layer_norm_epsilon)
        self.attention = SelfAttention(config, rngs=rngs)
        self.feed_forward_norm = RMSNorm(config.d_model, config.layer_norm_epsilon)
        self.feed_forward = FeedForward(config, rngs=rngs)

    def __call__(
        self,
        x_ND: Float[Array, "N D"],
        bias_HLL: Float[Array, "H L L"],
        mask_RLL: Bool[Array, "R L L"],
        *,
        dropout_key: DropoutKey | None = None,
        kernel: Kernel = "at_once",
    ) -> Float[Array, "N D"]:
        """Maps hidden states to hidden states; all blocks have the same signature.

        Args:
          x_ND: float32 residual stream; N = R * L tokens, row by row.
          bias_HLL: float32 relative position bias.
          mask_RLL: which key each query may attend to.
          dropout_key: this layer's key, or None for no dropout.
          kernel: of the attention.
        Returns: float32 residual stream.
        """
        attended_ND = self.attention(
            self.attention_norm(x_ND), bias_HLL, mask_RLL, dropout_key=dropout_key, kernel=kernel
        )
        x_ND = x_ND + dropout(attended_ND, dropout_key, Site.ATTENTION_OUTPUT, self.dropout_rate)
        mapped_ND = self.feed_forward(self.feed_forward_norm(x_ND), dropout_key=dropout_key)
        return x_ND + dropout(mapped_ND, dropout_key, Site.FEED_FORWARD_OUTPUT, self.dropout_rate)


class T5Encoder(nnx.Module):
    """Token ids to hidden states.

    Initial weights are drawn as T5's are: embeddings with deviation 1, matrices with the inverse
    root of their input size, queries smaller by the root of the head size. Weights are float32;
    matrix products run in `config.compute_dtype`; the residual stream, the norms and the softmax
    stay float32.
    """

    def __init__(self, config: T5Config, *, rngs: nnx.Rngs) -> None:
        self.dropout_rate = config.dropout_rate
        shape = (config.vocab_size, config.d_model)
        self.embedding_VD = nnx.Param(jax.random.normal(rngs.params(), shape, jnp.float32))
        self.position_bias = RelativePositionBias(config, rngs=rngs)
        self.blocks = nnx.List([Block(config, rngs=rngs) for _ in range(config.num_layers)])
        self.final_norm = RMSNorm(config.d_model, config.layer_norm_epsilon)

    def __call__(
        self,
        ids_RL: Int[Array, "R L"],
        segments_RL: Int[Array, "R L"],
        *,
        dropout_key: DropoutKey | None = None,
        execution: Execution = AT_ONCE,
    ) -> Float[Array, "R L D"]:
        """Encodes packed rows; texts of a row do not see each other.

        Args:
          ids_RL: int token ids in 0..vocab_size-1.
          segments_RL: int, 0 for padding, 1.. for the texts of a row; a batch with one text a
            row has segments 0 and 1 alone.
          dropout_key: the same key and row numbers repeat the same dropout exactly. None turns
            dropout off.
          execution: how the layers are run.
        Returns: float32 [R, L, D]; positions of padding hold no meaning.
        """
        rows, length = ids_RL.shape
        outside = None if dropout_key is None else dropout_key.fold_in(0)
        # Tokens stay in one axis between attentions: CPU products of two matrices are faster
        # than products with a batch axis.
        x_ND = jnp.take(self.embedding_VD[...], ids_RL.reshape(-1), axis=0)
        x_ND = execution.pin(dropout(x_ND, outside, Site.EMBEDDING, self.dropout_rate))
        bias_HLL = self.position_bias(length)
        mask_RLL = segment_mask(segments_RL)
        x_ND = _run_layers(
            list(self.blocks), x_ND,
            lambda block, x_ND, key: block(
                x_ND, bias_HLL, mask_RLL, dropout_key=key, kernel=execution.kernel
            ),
            dropout_key, execution,
        )  # fmt: skip
        x_ND = self.final_norm(x_ND)
        x_ND = dropout(x_ND, outside, Site.FINAL_NORM, self.dropout_rate)
        return x_ND.reshape(rows, length, -1)


def _run_layers(
    blocks: list[Block],
    x_ND: Float[Array, "N D"],
    run: Callable[[Block, Array, DropoutKey | None], Array],
    dropout_key: DropoutKey | None,
    execution: Execution,
) -> Float[Array, "N D"]:
    graphdef = nnx.graphdef(blocks[0])
    params = [nnx.state(block, nnx.Param) for block in blocks]

    def layer(x_ND: Array, params: nnx.State, number: Int[Array, ""]) -> Array:
        key = None if dropout_key is None else dropout_key.fold_in(number)
        return execution.pin(run(nnx.merge(graphdef, params), x_ND, key))

    if execution.remat != "none":
        policies = jax.checkpoint_policies
        kept = {
            "dots": policies.dots_with_no_batch_dims_saveable,
            "full": policies.nothing_saveable,
        }
        # A loop keeps XLA from merging the second computation with the first by itself.
        layer = jax.checkpoint(layer, policy=kept[execution.remat], prevent_cse=not execution.scan)
    numbers = jnp.arange(len(blocks))
    if not execution.scan:
        for number, of_layer in zip(numbers, params, strict=True):
            x_ND = layer(x_ND, of_layer, number)
        return x_ND
    # Matrices are stacked in the dtype they are multiplied in, which is half the copy.
    dtype = blocks[0].attention.q.dtype
    stacked = jax.tree.map(
        lambda *xs: jnp.stack([x.astype(dtype) if x.ndim > 1 else x for x in xs]), *params
    )
    return jax.lax.scan(lambda x_ND, xs: (layer(x_ND, *xs), None), x_ND, (stacked, numbers))[0]


def init_params(config: T5Config, key: jax.Array) -> nnx.State:
    """Random weights of a T5 encoder.

    Args:
      config: shape of the model.
      key: a key of `jax.random.key`.
    Returns: a pytree of float32 arrays; traceable, so that `jax.jit(init_params, ...)` can place
      them on a mesh and `jax.eval_shape` can describe them.
    """
    return nnx.state(T5Encoder(config, rngs=nnx.Rngs(key)), nnx.Param)


@functools.lru_cache
def _graphdef(config: T5Config) -> nnx.GraphDef:
    return nnx.graphdef(nnx.eval_shape(lambda: T5Encoder(config, rngs=nnx.Rngs(0))))


def apply(
    config: T5Config,
    params: nnx.State,
    ids_RL: Int[Array, "R L"],
    segments_RL: Int[Array, "R L"],
    dropout_key: DropoutKey | None = None,
    execution: Execution = AT_ONCE,
) -> Float[Array, "R L D"]:
    """Encodes packed rows with the given weights: `T5Encoder.__call__` as a pure function.

    Args:
      config: the one that `params` were made for.
      params: from `init_params` or `weights.from_huggingface`.
      ids_RL: int token ids.
      segments_RL: int, 0 for padding, 1.. for the texts of a row.
      dropout_key: None turns dropout off.
      execution: how the layers are run.
    Returns: float32 [R, L, D].
    """
    encoder = nnx.merge(_graphdef(config), params)
    return encoder(ids_RL, segments_RL, dropout_key=dropout_key, execution=execution)
