"""Losses of pairs with a score, which want the order of the cosines to be that of the scores."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Float32

from jina_jax.config.loss import LossConfig
from jina_jax.train.loss.log_sums import LOWEST, LossSharding


class ScoredOutput(NamedTuple):
    """The loss of scored pairs, and its terms; None where a term has no weight."""

    loss: Float32[Array, ""]
    cosent_loss: Float32[Array, ""] | None
    """Nats."""
    angle_loss: Float32[Array, ""] | None
    """Nats."""
    positive_cosine: Float32[Array, ""]
    """Mean of the two texts of a pair."""


def scored_loss(
    x_BD: Float32[Array, "B D"],
    y_BD: Float32[Array, "B D"],
    score_B: Float32[Array, "B"],
    *,
    sharding: LossSharding,
    config: LossConfig,
) -> ScoredOutput:
    """Weighted sum of CoSENT and AnglE.

    With similarities s of the two texts of a pair, each is log(1 + Σ exp((sⱼ − sᵢ)/τ)) over all i
    and j of the batch where pair i has a higher score than j. CoSENT takes their cosine, AnglE the
    size of the sum of the real and the imaginary part of their product as complex vectors, whose
    real parts are the first half of the dimensions.

    Args:
      x_BD: L2-normalised, on the first axis divided over the devices, as all that follow.
      y_BD: L2-normalised; row i belongs to x's.
      score_B: of each pair, on any scale: only the order counts.
      sharding: which devices.
      config: weights and temperature.
    Source: Su 2022, kexue.fm/archives/8847, for CoSENT; AnglE, arXiv 2309.12871, section 3.4, in
      the form over vectors of unit length.
    """
    everywhere = NamedSharding(sharding.mesh, PartitionSpec())
    score_B = jax.lax.with_sharding_constraint(score_B, everywhere)

    def ranked(similarity_B: Array) -> Array:
        similarity_B = jax.lax.with_sharding_constraint(similarity_B, everywhere)
        return ranking_loss(similarity_B / config.score_temperature, score_B)

    cosine_B = jnp.sum(x_BD * y_BD, axis=-1)
    cosent_loss = angle_loss = None
    loss = jnp.zeros((), jnp.float32)
    if config.cosent_weight > 0:
        cosent_loss = ranked(cosine_B)
        loss += config.cosent_weight * cosent_loss
    if config.angle_weight > 0:
        angle_loss = ranked(jnp.abs(cosine_B + _imaginary(x_BD, y_BD)))
        loss += config.angle_weight * angle_loss
    return ScoredOutput(loss, cosent_loss, angle_loss, jnp.mean(cosine_B))


def ranking_loss(logit_B: Float32[Array, "B"], score_B: Float32[Array, "B"]) -> Float32[Array, ""]:
    """log(1 + Σ exp(logitⱼ − logitᵢ)) over all i and j where i has a higher score than j.

    In the order of the scores, those lower than i's come before i: their sum is one running
    log-sum-exp, read where i's score begins. So memory goes with B, and time with B log B.
    """
    order_B = jnp.argsort(score_B)
    score_B, logit_B = score_B[order_B], logit_B[order_B]
    before_B = jnp.searchsorted(score_B, score_B, side="left")
    running_B = jax.lax.cumlogsumexp(logit_B)
    lower_B = jnp.where(before_B > 0, running_B[jnp.maximum(before_B - 1, 0)], LOWEST)
    return jax.nn.softplus(jax.nn.logsumexp(lower_B - logit_B))


def _imaginary(x_BD: Array, y_BD: Array) -> Array:
    """Imaginary part of the product of each x with the conjugate of its y, as complex vectors."""
    if x_BD.shape[1] % 2:
        x_BD, y_BD = (jnp.pad(z_BD, ((0, 0), (0, 1))) for z_BD in (x_BD, y_BD))
    x_real_BC, x_imaginary_BC = jnp.split(x_BD, 2, axis=1)
    y_real_BC, y_imaginary_BC = jnp.split(y_BD, 2, axis=1)
    return jnp.sum(x_imaginary_BC * y_real_BC - x_real_BC * y_imaginary_BC, axis=-1)
