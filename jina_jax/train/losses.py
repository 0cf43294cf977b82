"""Contrastive losses over the pairs of one global batch, on every device of a mesh.

None of them holds the similarity matrix of the batch: see log_sums.py.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float32, Int32

from jina_jax.train.log_sums import Marks, Spread, log_sums


class Contrast(NamedTuple):
    """A loss and what the same pass tells."""

    loss: Float32[Array, ""]
    """Nats."""
    accuracy: Float32[Array, ""]
    """Share of queries whose own positive has the highest cosine among the keys that count."""


def info_nce(
    q_BD: Float32[Array, "B D"],
    p_BD: Float32[Array, "B D"],
    negatives_ND: Float32[Array, "N D"] | None = None,
    *,
    temperature: float | Float32[Array, ""],
    spread: Spread,
    identity_BT: Int32[Array, "B T"] | None = None,
    negative_identity_NU: Int32[Array, "N U"] | None = None,
    weight_B: Float32[Array, "B"] | None = None,
) -> Contrast:
    """Mean cross-entropy of each query against every positive and every hard negative.

    Args:
      q_BD: L2-normalised queries, on the first axis divided over the devices, as all that follow.
      p_BD: L2-normalised positives; row i is query i's.
      negatives_ND: L2-normalised hard negatives of all queries, in any number and order.
      temperature: > 0, dimensionless; divides the cosines (typically 0.05). A traced scalar has a
        gradient.
      spread: how the work is divided. It changes the values in rounding only.
      identity_BT: equal numbers for equal texts of the pairs (column 0 queries, 1 positives).
        Where given, keys of pairs that share a text with a query's pair do not count for it.
      negative_identity_NU: the same numbers for the hard negatives. Where given, a negative that
        is a text of a query's pair does not count for it.
      weight_B: of each query in the mean; equal where not given.
    Returns: Contrast.
    Raises: ValueError where sizes do not fit each other or the devices.
    Example: two orthogonal pairs at temperature 1 give log(1 + 1/e) = 0.3133.
    Source: van den Oord et al. 2018, eq. 4.
    """
    return _contrast(
        q_BD, p_BD, negatives_ND, temperature, spread,
        identity_BT, negative_identity_NU, weight_B, both_ways=False,
    )  # fmt: skip


def pair_loss(
    q_BD: Float32[Array, "B D"],
    p_BD: Float32[Array, "B D"],
    negatives_ND: Float32[Array, "N D"] | None = None,
    *,
    temperature: float | Float32[Array, ""],
    spread: Spread,
    identity_BT: Int32[Array, "B T"] | None = None,
    negative_identity_NU: Int32[Array, "N U"] | None = None,
    weight_B: Float32[Array, "B"] | None = None,
) -> Contrast:
    """InfoNCE from queries to positives plus InfoNCE from positives to queries, in one pass.

    Args: those of `info_nce`. Hard negatives are keys of the queries alone; the positives are
      compared with the queries.
    Returns: Contrast; the loss is the sum of both directions, the accuracy that of the queries.
    Raises: ValueError where sizes do not fit each other or the devices.
    Source: Jina Embeddings, arXiv 2307.11224, section 3.1; with hard negatives, the first two
      terms of section 3.2.
    """
    return _contrast(
        q_BD, p_BD, negatives_ND, temperature, spread,
        identity_BT, negative_identity_NU, weight_B, both_ways=True,
    )  # fmt: skip


def _contrast(
    q_BD: Array, p_BD: Array, negatives_ND: Array | None, temperature: float | Array,
    spread: Spread, identity_BT: Array | None, negative_identity_NU: Array | None,
    weight_B: Array | None, *, both_ways: bool,
) -> Contrast:  # fmt: skip
    _check_sizes(q_BD, p_BD, negatives_ND, spread.mesh.size)
    scale = 1 / jnp.asarray(temperature, jnp.float32)
    pairs = None if identity_BT is None else Marks(jnp.arange(len(q_BD)), identity_BT)
    sums = log_sums(q_BD, p_BD, scale, pairs, pairs, both_ways, spread)
    row_B, max_B = sums.row_B, sums.row_max_B
    if negatives_ND is not None:
        marks = None
        if negative_identity_NU is not None:
            of_no_row_N = jnp.full(len(negatives_ND), -1, jnp.int32)
            marks = Marks(of_no_row_N, negative_identity_NU)
        hard = log_sums(q_BD, negatives_ND, scale, pairs, marks, False, spread)
        row_B, max_B = jnp.logaddexp(row_B, hard.row_B), jnp.maximum(max_B, hard.row_max_B)
    positive_B = scale * jnp.sum(q_BD * p_BD, axis=-1)
    loss_B = row_B - positive_B
    if both_ways:
        loss_B += sums.key_N - positive_B
    # A tolerance on the cosines, since the two products round differently.
    is_first_B = positive_B >= jax.lax.stop_gradient(max_B) - 1e-6 * scale
    return Contrast(_mean(loss_B, weight_B), jnp.mean(is_first_B.astype(jnp.float32)))


def _mean(x_B: Array, weight_B: Array | None) -> Array:
    return jnp.mean(x_B) if weight_B is None else jnp.sum(x_B * weight_B) / jnp.sum(weight_B)


def _check_sizes(q_BD: Array, p_BD: Array, negatives_ND: Array | None, devices: int) -> None:
    if len(q_BD) != len(p_BD):
        raise ValueError(f"{len(p_BD)} positives for {len(q_BD)} queries; each needs its own")
    for what, x_ND in (("pairs", q_BD), ("hard negatives", negatives_ND)):
        if x_ND is not None and len(x_ND) % devices:
            raise ValueError(f"{len(x_ND)} {what} do not divide by {devices} devices")
