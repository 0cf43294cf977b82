"""Self-attention with T5's relative position bias, kept within the texts of a packed row."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from jina_jax.config import T5Config
from jina_jax.model.dropout import DropoutKey, Site, dropout
from jina_jax.model.feed_forward import Linear

# Far below any score, yet finite: a difference of two of them is 0 and not NaN.
MASKED_SCORE = -1e9


def relative_position_buckets(length: int, num_buckets: int, max_distance: int) -> np.ndarray:
    """Bucket of every (query position, key position).

    Half of the buckets are for keys after the query. Of each half, the first half holds one
    distance each; the rest grow logarithmically up to `max_distance`, and the last takes all
    that is farther.

    Args:
      length: positions in a row.
      num_buckets: divisible by 4.
      max_distance: in tokens.
    Returns: int32 [length, length], query by key, in 0..num_buckets-1.
    Source: Raffel et al. 2020 (arXiv 1910.10683), section 2.1.
    """
    per_side = num_buckets // 2
    exact = per_side // 2
    distance = np.arange(length, dtype=np.int32)
    # float32, as torch computes it: float64 puts a few distances into the next bucket.
    octaves = np.log(np.maximum(distance, 1).astype(np.float32) / np.float32(exact))
    octaves = octaves / np.float32(math.log(max_distance / exact))
    far = exact + (octaves * np.float32(per_side - exact)).astype(np.int32)
    bucket_of_distance = np.where(distance < exact, distance, np.minimum(far, per_side - 1))
    difference = np.arange(length)[None, :] - np.arange(length)[:, None]
    buckets = bucket_of_distance[np.abs(difference)] + per_side * (difference > 0)
    return buckets.astype(np.int32)


@jax.custom_vjp
def _add_bias(
    scores_RHLL: Float[Array, "R H L L"], bias_HLL: Float[Array, "H L L"]
) -> Float[Array, "R H L L"]:
    return scores_RHLL + bias_HLL[None]


def _add_bias_forward(scores_RHLL: Array, bias_HLL: Array) -> tuple[Array, None]:
    return _add_bias(scores_RHLL, bias_HLL), None


def _add_bias_backward(_: None, gradient_RHLL: Array) -> tuple[Array, Array]:
    # A sum over the leading axis takes XLA's CPU backend 36 ms at [32, 8, 128, 128], and the
    # same sum as a product with ones 1 ms.
    ones_R = jnp.ones(gradient_RHLL.shape[0], gradient_RHLL.dtype)
    bias_gradient_HLL = jnp.einsum(
        "r,rhqp->hqp", ones_R, gradient_RHLL, precision=jax.lax.Precision.HIGHEST
    )
    return gradient_RHLL, bias_gradient_HLL


_add_bias.defvjp(_add_bias_forward, _add_bias_backward)


class RelativePositionBias(nnx.Module):
    """A learned number per bucket of distance and head, added to the attention scores.

    It depends on differences of positions alone, so it is right inside a packed row wherever a
    text starts. The encoder computes it once and passes it to every block.
    """

    def __init__(self, config: T5Config, *, rngs: nnx.Rngs) -> None:
        self.num_buckets = config.relative_attention_num_buckets
        self.max_distance = config.relative_attention_max_distance
        shape = (self.num_buckets, config.num_heads)
        std = config.d_model**-0.5
        self.table = nnx.Param(std * jax.random.normal(rngs.params(), shape, jnp.float32))

    def __call__(self, length: int) -> Float[Array, "H Q P"]:
        """The bias of a row.

        Args:
          length: positions in a row.
        Returns: float32 [H, length, length], query by key.
        """
        buckets_QP = relative_position_buckets(length, self.num_buckets, self.max_distance)
        return jnp.take(self.table[...].T, buckets_QP, axis=1)


def segment_mask(segments_RL: Int[Array, "R L"]) -> Bool[Array, "R L L"]:
    """Which key each query may attend to: those of its own text.

    Padding (segment 0) attends to padding, so that no query is left without a key.

    Args:
      segments_RL: int, 0 for padding, 1.. for the texts of a row.
    Returns: bool [R, query, key].
    """
    return segments_RL[:, :, None] == segments_RL[:, None, :]


class SelfAttention(nnx.Module):
    """Multi-head attention without biases and without scaling of the scores (T5)."""

    def __init__(self, config: T5Config, *, rngs: nnx.Rngs) -> None:
        d, inner, dtype = config.d_model, config.num_heads * config.d_kv, config.compute_dtype
        self.num_heads = config.num_heads
        self.dropout_rate = config.dropout_rate
        # The missing 1/sqrt(d_kv) of the scores is in the query's initial scale.
        self.q = Linear(d, inner, std=(d * config.d_kv) ** -0.5, dtype=dtype, rngs=rngs)
        self.k = Linear(d, inner, std=d**-0.5, dtype=dtype, rngs=rngs)
        self.v = Linear(d, inner, std=d**-0.5, dtype=dtype, rngs=rngs)
        self.o = Linear(inner, d, std=inner**-0.5, dtype=dtype, rngs=rngs)

    def __call__(
        self,
        x_ND: Float[Array, "N D"],
        bias_HLL: Float[Array, "H L L"],
        mask_RLL: Bool[Array, "R L L"],
        *,
        dropout_key: DropoutKey | None = None,
    ) -> Float[Array, "N D"]:
        """Attends within the texts of each row.

        Args:
          x_ND: normalised hidden states; N = R * L tokens, row by row.
          bias_HLL: float32, from `RelativePositionBias`.
          mask_RLL: from `segment_mask`.
          dropout_key: the layer's key, or None for no dropout.
        Returns: [N, D] in the compute dtype.
        """
        rows, length, _ = mask_RLL.shape

        def heads(projected: Array) -> Array:
            split_RLHK = projected.reshape(rows, length, self.num_heads, -1)
            return split_RLHK.transpose(0, 2, 1, 3)

        q_RHLK, k_RHLK, v_RHLK = heads(self.q(x_ND)), heads(self.k(x_ND)), heads(self.v(x_ND))
        scores_RHLL = jnp.einsum(
            "rhqk,rhpk->rhqp", q_RHLK, k_RHLK, preferred_element_type=jnp.float32
        )
        scores_RHLL = jnp.where(mask_RLL[:, None], _add_bias(scores_RHLL, bias_HLL), MASKED_SCORE)
        weights_RHLL = jax.nn.softmax(scores_RHLL, axis=-1).astype(v_RHLK.dtype)
        weights_RHLL = dropout(weights_RHLL, dropout_key, Site.ATTENTION_WEIGHTS, self.dropout_rate)
        mixed_RHLK = jnp.einsum("rhqp,rhpk->rhqk", weights_RHLL, v_RHLK)
        return self.o(mixed_RHLK.transpose(0, 2, 1, 3).reshape(rows * length, -1))
