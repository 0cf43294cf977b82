"""Attention within the texts of a packed row, and T5's relative position bias."""

import math
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from jina_jax.config import ModelConfig
from jina_jax.errors import UserError
from jina_jax.model.attention_kernels import MASKED_SCORE
from jina_jax.model.attention_tpu import attend_on_tpu, takes
from jina_jax.model.dropout import DropoutKey, Site, dropout, weight_seeds
from jina_jax.model.layers import table

Kernel = Literal["at_once", "by_row", "pallas", "interpreted", "cudnn"]
"""How scores are computed: `attend`, `attend_by_row`, `attend_on_tpu` (`interpreted`: its steps one
by one, on any device) or `attend_cudnn`. The function is one."""


ON_TPU = ("pallas", "interpreted")
"""Kernels of `attend_on_tpu`."""


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

    def __init__(
        self, num_buckets: int, max_distance: int, num_heads: int, *, std: float, rngs: nnx.Rngs
    ) -> None:
        self.num_buckets, self.max_distance = num_buckets, max_distance
        self.table = table(num_buckets, num_heads, rngs=rngs, std=std)

    def __call__(self, length: int, kernel: Kernel = "at_once") -> Float[Array, "H ..."]:
        """The bias of a row.

        Args:
          length: positions in a row.
          kernel: of the attention.
        Returns: float32 [H, length, length], query by key; for the kernel of TPUs
          [H, 2 length - 1], by how far a key is behind its query, from 1 - length on.
        """
        buckets_QP = relative_position_buckets(length, self.num_buckets, self.max_distance)
        if kernel in ON_TPU:
            buckets_D = np.concatenate([buckets_QP[:0:-1, 0], buckets_QP[0]])
            return jnp.take(self.table[...].T, buckets_D, axis=1)
        return jnp.take(self.table[...].T, buckets_QP, axis=1)


def segment_positions(segments_RL: Int[Array, "R L"]) -> Int[Array, "R L"]:
    """Number of each token within its text, from 0.

    Args:
      segments_RL: int, 0 for padding, 1.. for the texts of a row, each in one piece.
    Returns: int32 [R, L]; a run of padding counts as a text.
    Example: segments 1 1 2 2 2 0 give positions 0 1 0 1 2 0.
    """
    index_L = jnp.arange(segments_RL.shape[1], dtype=jnp.int32)
    is_first_RL = jnp.diff(segments_RL, axis=1, prepend=-1) != 0
    start_RL = jax.lax.cummax(jnp.where(is_first_RL, index_L[None], 0), axis=1)
    return index_L[None] - start_RL


def rotary(
    x_RLHK: Float[Array, "R L H K"], position_RL: Int[Array, "R L"], theta: float | Array
) -> Float[Array, "R L H K"]:
    """Rotates the two halves of each head by angles that grow with the position.

    Args:
      x_RLHK: queries or keys, any float dtype.
      position_RL: of each token in its text.
      theta: base of the wavelengths.
    Returns: array like `x_RLHK`; computed in float32.
    Source: Su et al. 2021 (arXiv 2104.09864), with halves in place of neighbours.
    """
    half = x_RLHK.shape[-1] // 2
    frequency_F = 1.0 / theta ** (jnp.arange(half, dtype=jnp.float32) / half)
    angle_RL1F = position_RL[:, :, None, None].astype(jnp.float32) * frequency_F[None, None, None]
    cos, sin = jnp.cos(angle_RL1F), jnp.sin(angle_RL1F)
    first, second = x_RLHK[..., :half].astype(jnp.float32), x_RLHK[..., half:].astype(jnp.float32)
    rotated = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return rotated.astype(x_RLHK.dtype)


def segment_mask(segments_RL: Int[Array, "R L"]) -> Bool[Array, "R L L"]:
    """Which key each query may attend to: those of its own text.

    Padding (segment 0) attends to padding, so that no query is left without a key.

    Args:
      segments_RL: int, 0 for padding, 1.. for the texts of a row.
    Returns: bool [R, query, key].
    """
    return segments_RL[:, :, None] == segments_RL[:, None, :]


def chosen_kernel(
    asked: Literal["auto", "xla", "pallas", "cudnn"], platform: str, model: ModelConfig,
    row_tokens: int, *, device_kind: str, heads_are_divided: bool = False,
) -> tuple[Kernel, str]:  # fmt: skip
    """The kernel for an encoder on a platform; CPUs attend row by row whatever is asked.

    Args:
      asked: as in `TrainConfig.attention`.
      platform: as `jax.Device.platform` gives it.
      model: shape of the encoder.
      row_tokens: of the longest row.
      device_kind: as `jax.Device.device_kind` gives it.
      heads_are_divided: whether a mesh has an axis for them.
    Returns: the kernel, and why `auto` doesn't take that of TPUs there; empty elsewhere.
    Raises: UserError when `pallas` is asked for and cannot take the model's heads or rows.
    """
    if platform == "cpu":
        return "by_row", ""
    if asked == "cudnn":
        return "cudnn", ""
    if asked == "xla" or platform != "tpu":
        return "at_once", ""
    why = takes(
        model.head_dimensions, row_tokens, has_bias=model.has_position_bias, device_kind=device_kind
    )
    if heads_are_divided:
        why = "it takes no mesh whose mesh.tensor divides heads"
    if why and asked == "pallas":
        raise UserError(f"train.attention=pallas: {why}; use train.attention=auto")
    return ("at_once", why) if why else ("pallas", "")


class Mask(NamedTuple):
    """Which keys each query may attend to: those of its own text, as far as a layer looks."""

    segments_RL: Int[Array, "R L"]
    """As in `segment_mask`."""
    window: int | None = None
    """Positions to either side; None for all."""
    is_causal: bool = False
    """Whether a query sees nothing that is after it."""

    def allowed(self) -> Bool[Array, "R L L"]:
        """Bool [R, query, key]."""
        allowed_RLL = segment_mask(self.segments_RL)
        index_L = jnp.arange(self.segments_RL.shape[1])
        ahead_LL = index_L[None, :] - index_L[:, None]
        if self.window is not None:
            allowed_RLL &= (jnp.abs(ahead_LL) <= self.window)[None]
        if self.is_causal:
            allowed_RLL &= (ahead_LL <= 0)[None]
        return allowed_RLL


class WeightDropout(NamedTuple):
    """Dropout of attention weights."""

    key: DropoutKey
    rate: float

    @classmethod
    def of(cls, key: DropoutKey | None, rate: float) -> "WeightDropout | None":
        """None where nothing is dropped."""
        return None if key is None or rate == 0 else cls(key, rate)

    def of_row(self, row: Int[Array, ""]) -> "WeightDropout":
        """For the row of this number alone."""
        return self._replace(key=self.key._replace(row_R=row[None]))

    def __call__(self, weights: Array) -> Array:
        """Drops weights of the rows of the key. The kernel for TPUs drops others, at the same rate:
        it cannot draw these where the weights are.
        """
        return dropout(weights, self.key, Site.ATTENTION_WEIGHTS, self.rate)


def attend(
    q_RLHK: Float[Array, "R L H K"],
    k_RLHK: Float[Array, "R L H K"],
    v_RLHK: Float[Array, "R L H K"],
    mask_RLL: Bool[Array, "R L L"],
    bias_HLL: Float[Array, "H L L"] | None = None,
    drop: WeightDropout | None = None,
) -> Float[Array, "R L H K"]:
    """Attention of all rows at once.

    Args:
      q_RLHK: queries, already scaled where scores are to be.
      k_RLHK: keys.
      v_RLHK: values.
      mask_RLL: which key each query may attend to.
      bias_HLL: float32, added to the scores.
      drop: of the weights; None drops nothing.
    Returns: mixed values in the dtype of `v_RLHK`; scores and softmax are float32.
    """
    scores_RHLL = jnp.einsum("rqhk,rphk->rhqp", q_RLHK, k_RLHK, preferred_element_type=jnp.float32)
    if bias_HLL is not None:
        scores_RHLL = _add_bias(scores_RHLL, bias_HLL)
    scores_RHLL = jnp.where(mask_RLL[:, None], scores_RHLL, MASKED_SCORE)
    weights_RHLL = jax.nn.softmax(scores_RHLL, axis=-1).astype(v_RLHK.dtype)
    if drop is not None:
        weights_RHLL = drop(weights_RHLL)
    return jnp.einsum("rhqp,rphk->rqhk", weights_RHLL, v_RLHK)


def attend_by_row(
    q_RLHK: Float[Array, "R L H K"],
    k_RLHK: Float[Array, "R L H K"],
    v_RLHK: Float[Array, "R L H K"],
    mask_RLL: Bool[Array, "R L L"],
    bias_HLL: Float[Array, "H L L"] | None = None,
    drop: WeightDropout | None = None,
) -> Float[Array, "R L H K"]:
    """`attend` for CPUs, whose caches hold the scores of one row but not of all.

    The backward pass computes the scores of a row again, and none are kept: 12 heads of 32 on two
    cores took 108 ms forward and backward where `attend` took 304, both beside other work, and 3 MB
    where it takes 95, for 32 rows of 128 tokens. Rows must not be divided over devices:
    the loop would gather them.
    """

    def one(row: tuple[Array, Array, Array, Array, Array | None]) -> Array:
        q_HLK, k_HLK, v_HLK = (x_LHK.transpose(1, 0, 2) for x_LHK in row[:3])
        scores_HLL = jnp.einsum("hqk,hpk->hqp", q_HLK, k_HLK, preferred_element_type=jnp.float32)
        if bias_HLL is not None:
            scores_HLL = scores_HLL + bias_HLL
        scores_HLL = jnp.where(row[3][None], scores_HLL, MASKED_SCORE)
        weights_HLL = jax.nn.softmax(scores_HLL, axis=-1).astype(v_HLK.dtype)
        if drop is not None and row[4] is not None:
            weights_HLL = drop.of_row(row[4])(weights_HLL)
        return jnp.einsum("hqp,hpk->hqk", weights_HLL, v_HLK).transpose(1, 0, 2)

    row_R = None if drop is None else drop.key.row_R
    # A loop keeps XLA from merging the second computation with the first by itself.
    again = jax.checkpoint(one, prevent_cse=False)
    return jax.lax.map(again, (q_RLHK, k_RLHK, v_RLHK, mask_RLL, row_R))


def attend_cudnn(
    q_RLHK: Float[Array, "R L H K"],
    k_RLHK: Float[Array, "R L H K"],
    v_RLHK: Float[Array, "R L H K"],
    mask_RLL: Bool[Array, "R L L"],
    bias_HLL: Float[Array, "H L L"] | None = None,
    implementation: Literal["cudnn", "xla"] = "cudnn",
) -> Float[Array, "R L H K"]:
    """`attend` by cuDNN's fused kernel on NVIDIA GPUs, which never writes the scores.

    The kernel takes bias and mask as one array [R, H, L, L] in the dtype of the queries, and gives
    that array's gradient, which is summed over the rows. It needs bfloat16, an even L and heads of
    at most 128 (Hopper: 256) and a multiple of 8, and it draws no dropout of ours.

    Args:
      q_RLHK: queries, bfloat16.
      k_RLHK: keys.
      v_RLHK: values.
      mask_RLL: which key each query may attend to.
      bias_HLL: float32, added to the scores; rounded to bfloat16.
      implementation: `xla` computes the same, from the same arguments, on any device.
    """
    return jax.nn.dot_product_attention(
        q_RLHK, k_RLHK, v_RLHK,
        bias=None if bias_HLL is None else bias_HLL[None].astype(q_RLHK.dtype),
        mask=mask_RLL[:, None], scale=1.0, implementation=implementation,
    )  # fmt: skip


def attend_with(
    kernel: Kernel,
    q_RLHK: Float[Array, "R L H K"],
    k_RLHK: Float[Array, "R L H K"],
    v_RLHK: Float[Array, "R L H K"],
    mask: Mask,
    bias: Float[Array, "H ..."] | None = None,
    drop: WeightDropout | None = None,
) -> Float[Array, "R L H K"]:
    """`attend` by one of its kernels, whose bias is of that kernel; cuDNN's drops no weights."""
    if kernel in ON_TPU:
        return attend_on_tpu(
            q_RLHK, k_RLHK, v_RLHK, mask.segments_RL, bias, window=mask.window,
            is_causal=mask.is_causal, seed_R=None if drop is None else weight_seeds(drop.key),
            rate=0.0 if drop is None else drop.rate, is_interpreted=kernel == "interpreted",
        )  # fmt: skip
    mask_RLL = mask.allowed()
    if kernel == "cudnn":
        assert drop is None, "attention by cuDNN draws no dropout"
        return attend_cudnn(q_RLHK, k_RLHK, v_RLHK, mask_RLL, bias)
    chosen = attend if kernel == "at_once" else attend_by_row
    return chosen(q_RLHK, k_RLHK, v_RLHK, mask_RLL, bias, drop)
