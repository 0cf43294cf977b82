"""Contrastive losses over the pairs of one global batch."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float32, Int32


def info_nce(
    q_BD: Float32[Array, "B D"],
    k_ND: Float32[Array, "N D"],
    *,
    temperature: float,
    exclude_BN: Bool[Array, "B N"] | None = None,
) -> Float32[Array, ""]:
    """Mean cross-entropy of each query against every key.

    Args:
      q_BD: L2-normalised queries.
      k_ND: L2-normalised keys; row i < B is query i's positive.
      temperature: > 0, dimensionless; divides the cosines (typically 0.05).
      exclude_BN: True where a key must not count as a negative of a query; a query's own positive
        is never excluded.
    Returns: nats.
    Raises: ValueError if N < B.
    Example: two orthogonal pairs at temperature 1 give log(1 + 1/e) = 0.3133.
    Source: van den Oord et al. 2018, eq. 4.
    """
    if k_ND.shape[0] < q_BD.shape[0]:
        raise ValueError(f"{k_ND.shape[0]} keys for {q_BD.shape[0]} queries; each needs its own")
    logits_BN = _similarity(q_BD, k_ND) / temperature
    # Not the diagonal of the logits: on a sharded batch that would gather them.
    positive_B = jnp.sum(q_BD * k_ND[: q_BD.shape[0]], axis=-1) / temperature
    if exclude_BN is not None:
        own_BN = jnp.arange(q_BD.shape[0])[:, None] == jnp.arange(k_ND.shape[0])[None, :]
        logits_BN = jnp.where(exclude_BN & ~own_BN, -jnp.inf, logits_BN)
    return jnp.mean(jax.nn.logsumexp(logits_BN, axis=-1) - positive_B)


def pair_loss(
    q_BD: Float32[Array, "B D"],
    p_BD: Float32[Array, "B D"],
    *,
    temperature: float,
    identity_BT: Int32[Array, "B 2"] | None = None,
) -> Float32[Array, ""]:
    """InfoNCE from queries to positives plus InfoNCE from positives to queries.

    Args:
      q_BD: L2-normalised queries.
      p_BD: L2-normalised positives, row by row.
      temperature: divides the cosines.
      identity_BT: equal numbers for equal texts (column 0 queries, 1 positives). Where given,
        pairs i and j that share a text are not each other's negatives.
    Returns: nats, the sum of both directions.
    Source: Jina Embeddings, arXiv 2307.11224, section 3.1.
    """
    exclude_BB = None if identity_BT is None else shares_text(identity_BT)
    return info_nce(q_BD, p_BD, temperature=temperature, exclude_BN=exclude_BB) + info_nce(
        p_BD, q_BD, temperature=temperature, exclude_BN=exclude_BB
    )


def shares_text(identity_BT: Int32[Array, "B T"]) -> Bool[Array, "B B"]:
    """True at (i, j) where a text of pair i is also a text of pair j.

    Symmetric, so one mask serves both directions. True on the diagonal.
    """
    equal_BBTT = identity_BT[:, None, :, None] == identity_BT[None, :, None, :]
    return jnp.any(equal_BBTT, axis=(2, 3))


def in_batch_accuracy(
    q_BD: Float32[Array, "B D"], p_BD: Float32[Array, "B D"]
) -> Float32[Array, ""]:
    """Share of queries whose own positive has the highest cosine of the batch."""
    similarity_BB = _similarity(q_BD, p_BD)
    positive_B = jnp.sum(q_BD * p_BD, axis=-1)
    # A tolerance, since the two products round differently.
    return jnp.mean((positive_B >= similarity_BB.max(axis=-1) - 1e-6).astype(jnp.float32))


def _similarity(a_ND: Float32[Array, "N D"], b_MD: Float32[Array, "M D"]) -> Array:
    # Full precision: TPUs and GPUs would otherwise round the inputs to bfloat16 or tf32.
    return jnp.matmul(a_ND, b_MD.T, precision=jax.lax.Precision.HIGHEST)
