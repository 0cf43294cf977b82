"""Contrastive losses over the pairs or triplets of one global batch, on every device of a mesh.

None of them holds the similarity matrix of the batch: see log_sums.py.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float32, Int32

from jina_jax.train.loss.log_sums import (
    Ids,
    LogSums,
    LossSharding,
    Matches,
    known_matches,
    log_sums,
)


class Terms(NamedTuple):
    """Weights of the terms of a loss; 0 leaves one out. All are 0 or more."""

    query: float = 1.0
    """InfoNCE from queries to positives; with hard negatives among the keys, NCE⁺."""
    positive: float = 1.0
    """InfoNCE from positives to queries."""
    margin: float = 1.0
    """Hinge of each query's own hard negatives; of triplets alone."""
    epsilon: float = 0.05
    """A cosine: how much farther than the positive the margin wants a hard negative."""
    distill: float = 0.0
    """Squared distance from a teacher's scores."""


ALL_TERMS = Terms()


class LossOutput(NamedTuple):
    """A loss, and metrics from the same pass."""

    loss: Float32[Array, ""]
    """The weighted sum of the terms."""
    query_loss: Float32[Array, ""]
    """Nats."""
    positive_loss: Float32[Array, ""] | None
    """Nats; None where its weight is 0."""
    margin_loss: Float32[Array, ""] | None
    """A cosine; None for pairs."""
    accuracy: Float32[Array, ""]
    """Share of queries whose positive has the highest cosine of all keys that count."""
    positive_cosine: Float32[Array, ""]
    """Mean of queries and their own positives."""
    in_batch_cosine: Float32[Array, ""]
    """Mean of queries and the positives of other queries that count; 0 if none counts."""
    negative_cosine: Float32[Array, ""] | None
    """Mean of queries and their own hard negatives that count; None for pairs."""
    masked_share: Float32[Array, ""]
    """Of all (query, key other than its positive): those that do not count, being known matches."""
    distill_loss: Float32[Array, ""] | None = None
    """A squared cosine; None where there is no teacher."""


class _Negatives(NamedTuple):
    """The hard negatives of all queries: sums over them, and each query's own."""

    sums: LogSums
    missing: Array
    """Places without a negative, as float32."""
    cosine_BN: Array
    counts_BN: Array
    """True where a query's own negative exists and is no false negative."""


def contrastive_loss(
    q_BD: Float32[Array, "B D"],
    p_BD: Float32[Array, "B D"],
    negatives_BND: Float32[Array, "B N D"] | None = None,
    *,
    temperature: float | Float32[Array, ""],
    sharding: LossSharding,
    terms: Terms = ALL_TERMS,
    identity_BT: Int32[Array, "B T"] | None = None,
    has_negative_BN: Bool[Array, "B N"] | None = None,
    teacher_BS: Float32[Array, "B S"] | None = None,
) -> LossOutput:
    """Weighted sum of InfoNCE from queries to positives, its reverse, a margin, and distillation.

    With cosines s, and τ the temperature:

        query     mean of −log exp(s(q,p)/τ) / Σᵢ [exp(s(q,pᵢ)/τ) + Σⱼ exp(s(q,nᵢⱼ)/τ)]
        positive  mean of −log exp(s(q,p)/τ) / Σᵢ exp(s(qᵢ,p)/τ)
        margin    mean of ReLU(s(q,n) − s(q,p) + ε) over each query's own hard negatives
        distill   of triplets mean of (s(q,p) − s(q,n) − t(q,p) + t(q,n))² over these, of pairs of
                  (s(q,p) − t(q,p))²

    where i runs over the whole batch, whatever device holds it.

    Args:
      q_BD: L2-normalised queries, on the first axis divided over the devices, as all that follow.
      p_BD: L2-normalised positives; row i is query i's.
      negatives_BND: L2-normalised hard negatives; row i are query i's. None for pairs.
      temperature: > 0, dimensionless; divides the cosines (typically 0.05). A traced scalar has a
        gradient.
      sharding: how the work is divided; it changes the values in rounding only.
      terms: which terms, and the margin's ε.
      identity_BT: equal numbers of 0 or more for equal texts (columns: query, positive, hard
        negatives). Where given, positives of pairs that share a text with a query's pair do not
        count for it, nor do texts of its pair that stand as hard negatives, nor, as either, the
        positives of any pair with the same query.
      has_negative_BN: False where a query has fewer hard negatives; what stands there has no
        influence. All have them where not given.
      teacher_BS: t, a teacher's scores of each query with its positive and its hard negatives, on
        the scale of cosines; NaN where there is none, and then nothing is distilled.
    Returns: LossOutput.
    Raises: ValueError where sizes do not fit each other or the devices.
    Example: two orthogonal pairs at temperature 1 give 2 log(1 + 1/e) = 0.6265, half of it from
      each direction.
    Source: Jina Embeddings, arXiv 2307.11224, section 3.1, and 3.2 for hard negatives; van den
      Oord et al. 2018, eq. 4, for one direction; Hofstätter et al. 2020, arXiv 2010.02666, for
      distillation from margins.
    """
    _check_sizes(q_BD, p_BD, negatives_BND, identity_BT, sharding.mesh.size)
    size = len(q_BD)
    scale = 1 / jnp.asarray(temperature, jnp.float32)
    both_ways = terms.positive > 0
    pairs, matches = Ids(jnp.arange(size)), None
    if identity_BT is not None:
        matches, run_B2 = known_matches(identity_BT[:, 0], identity_BT[:, 1])
        pairs = Ids(pairs.pair_N, identity_BT[:, :2], run_B2)
    keys = pairs._replace(run_N2=None)
    sums = log_sums(q_BD, p_BD, scale, pairs, keys, matches, both_ways, sharding)
    row_B, max_B, masked_B, others = sums.row_B, sums.row_max_B, sums.masked_B, size - 1.0
    cosine_B = jnp.sum(q_BD * p_BD, axis=-1)
    positive_B = scale * cosine_B
    margin_loss = negative_cosine = positive_loss = distill_loss = None
    student_BN, is_scored_BN = cosine_B[:, None], jnp.ones((size, 1), bool)
    if negatives_BND is not None:
        hard = _against_negatives(
            q_BD, negatives_BND, scale, sharding, pairs, matches, identity_BT, has_negative_BN
        )
        row_B = jnp.logaddexp(row_B, hard.sums.row_B)
        max_B = jnp.maximum(max_B, hard.sums.row_max_B)
        masked_B += hard.sums.masked_B - hard.missing
        others += hard.cosine_BN.size - hard.missing
        hinge_BN = jax.nn.relu(hard.cosine_BN - cosine_B[:, None] + terms.epsilon)
        margin_loss = _mean_own(hinge_BN, hard.counts_BN)
        negative_cosine = _mean_own(hard.cosine_BN, hard.counts_BN)
        student_BN, is_scored_BN = cosine_B[:, None] - hard.cosine_BN, hard.counts_BN
    if teacher_BS is not None:
        distill_loss = _distance(student_BN, teacher_BS, is_scored_BN)
    # −log of the positive's share is log(1 + others / positive), which keeps its digits near 0.
    query_loss = jnp.mean(jax.nn.softplus(row_B - positive_B))
    if both_ways:
        positive_loss = jnp.mean(jax.nn.softplus(sums.key_N - positive_B))
    return LossOutput(
        _weighted(terms, query_loss, positive_loss, margin_loss, distill_loss),
        query_loss, positive_loss, margin_loss,
        accuracy=_accuracy(positive_B, max_B, scale),
        positive_cosine=jnp.mean(cosine_B),
        in_batch_cosine=_in_batch_cosine(sums, scale),
        negative_cosine=negative_cosine,
        masked_share=jnp.mean(masked_B) / jnp.maximum(others, 1.0),
        distill_loss=distill_loss,
    )  # fmt: skip


def _weighted(
    terms: Terms, query: Array, positive: Array | None, margin: Array | None, distill: Array | None
) -> Array:
    """Sum of the terms that are not None, each times its weight."""
    loss = terms.query * query
    for weight, term in (
        (terms.positive, positive), (terms.margin, margin), (terms.distill, distill),
    ):  # fmt: skip
        if term is not None:
            loss += weight * term
    return loss


def _against_negatives(
    q_BD: Array, negatives_BND: Array, scale: Array, sharding: LossSharding, pairs: Ids,
    matches: Matches | None, identity_BT: Array | None, has_negative_BN: Array | None,
) -> _Negatives:  # fmt: skip
    size, negatives, dimension = negatives_BND.shape
    if has_negative_BN is None:
        has_negative_BN = jnp.ones((size, negatives), bool)
    # −1 stands for a negative that is not there, and is put among the texts of every query.
    texts_BT = jnp.full((size, 1), -1, jnp.int32)
    identity_BN = jnp.zeros((size, negatives), jnp.int32)
    if identity_BT is not None:
        texts_BT = jnp.concatenate([identity_BT[:, :2], texts_BT], axis=1)
        identity_BN = identity_BT[:, 2:]
    identity_BN = jnp.where(has_negative_BN, identity_BN, -1)
    not_a_positive = jnp.full(size * negatives, -1, jnp.int32)
    sums = log_sums(
        q_BD, negatives_BND.reshape(-1, dimension), scale,
        pairs._replace(text_NT=texts_BT), Ids(not_a_positive, identity_BN.reshape(-1, 1)),
        matches, False, sharding,
    )  # fmt: skip
    is_false_negative_BN = (identity_BN[:, :, None] == texts_BT[:, None, :]).any(-1)
    if matches is not None:
        is_false_negative_BN = matches.mask(is_false_negative_BN, pairs.run_N2, identity_BN)
    return _Negatives(
        sums,
        jnp.sum(~has_negative_BN).astype(jnp.float32),
        jnp.sum(q_BD[:, None] * negatives_BND, axis=-1),
        ~is_false_negative_BN,
    )


def _accuracy(positive_B: Array, max_B: Array, scale: Array) -> Array:
    # A tolerance on the cosines, since the two products round differently.
    is_first_B = positive_B >= jax.lax.stop_gradient(max_B) - 1e-6 * scale
    return jnp.mean(is_first_B.astype(jnp.float32))


def _in_batch_cosine(sums: LogSums, scale: Array) -> Array:
    """Mean cosine of queries and the positives of others that count; 0 if none counts."""
    of_others = jax.lax.stop_gradient(jnp.sum(sums.total_B) / scale)
    return of_others / jnp.maximum(jnp.sum(len(sums.masked_B) - 1.0 - sums.masked_B), 1.0)


def _distance(student_BN: Array, teacher_BS: Array, counts_BN: Array) -> Array:
    """Mean squared distance from the teacher: of margins for triplets, of one score for pairs."""
    teacher_BN = teacher_BS
    if teacher_BS.shape[1] > 1:
        teacher_BN = teacher_BS[:, :1] - teacher_BS[:, 1:]
    is_known_BN = ~jnp.isnan(teacher_BN)
    # Chosen before it is squared, so that no NaN reaches a gradient.
    error_BN = jnp.where(is_known_BN, student_BN - teacher_BN, 0.0)
    return _mean_own(jnp.square(error_BN), counts_BN & is_known_BN)


def _mean_own(x_BN: Array, counts_BN: Array) -> Array:
    """Mean over the negatives that count; 0 if none counts."""
    total = jnp.sum(counts_BN.astype(jnp.float32))
    return jnp.sum(jnp.where(counts_BN, x_BN, 0.0)) / jnp.where(total > 0, total, 1.0)


def _check_sizes(
    q_BD: Array, p_BD: Array, negatives_BND: Array | None, identity_BT: Array | None, devices: int
) -> None:
    size, texts = len(q_BD), 2
    for what, x in (("positives", p_BD), ("rows of hard negatives", negatives_BND)):
        if x is not None and len(x) != size:
            raise ValueError(f"{len(x)} {what} for {size} queries; each needs its own")
    if negatives_BND is not None:
        texts += negatives_BND.shape[1]
    if identity_BT is not None and identity_BT.shape != (size, texts):
        raise ValueError(
            f"identities of shape {identity_BT.shape} for {size} records of {texts} texts"
        )
    if size % devices:
        raise ValueError(f"{size} pairs do not divide by {devices} devices")
