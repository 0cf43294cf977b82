"""Contrastive losses over the pairs or triplets of one global batch, on every device of a mesh.

None of them holds the similarity matrix of the batch: see log_sums.py.
"""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float32, Int8, Int32

from jina_jax.config.loss import LossConfig
from jina_jax.train.loss.distillation import distance, divergence, mean_of
from jina_jax.train.loss.identity import on_each
from jina_jax.train.loss.log_sums import LOWEST, Compare, LogSums, LossSharding, log_sums
from jina_jax.train.loss.matches import RULES, Ids, Matches, known_matches
from jina_jax.train.loss.spread import second_moment_above_chance, squared_mean

PAPER = LossConfig()
_DIRECTIONS = "query_loss", "positive_loss", "query_query_loss", "positive_positive_loss"
"""In the order of `LossConfig.direction_weights`."""


class LossOutput(NamedTuple):
    """A loss, and metrics from the same pass; None where there is no such term."""

    loss: Float32[Array, ""]
    """The weighted sum of the terms."""
    accuracy: Float32[Array, ""]
    """Share of queries whose positive has the highest cosine of all keys that count."""
    positive_cosine: Float32[Array, ""]
    """Mean of queries and their own positives."""
    in_batch_cosine: Float32[Array, ""]
    """Mean of queries and the positives of other queries that count; 0 if none counts."""
    masked_share: Float32[Array, ""]
    """Of all (query, key other than its positive): those that do not count, being known matches."""
    negative_cosine: Float32[Array, ""] | None = None
    """Mean of queries and their own hard negatives that count."""
    label_masked_share: Float32[Array, ""] | None = None
    """As `masked_share`, but being of the same label, and no known match."""
    margin_masked_share: Float32[Array, ""] | None = None
    """As `masked_share`, but for a cosine above the limit, and for nothing else."""
    in_batch_weight: Float32[Array, ""] | None = None
    """Geometric mean of the hardness weights of the in-batch positives that count."""
    hard_negative_weight: Float32[Array, ""] | None = None
    """Geometric mean of the hardness weights of the own hard negatives that count."""
    query_loss: Float32[Array, ""] | None = None
    """Nats, as those of the other directions."""
    positive_loss: Float32[Array, ""] | None = None
    query_query_loss: Float32[Array, ""] | None = None
    positive_positive_loss: Float32[Array, ""] | None = None
    joint_loss: Float32[Array, ""] | None = None
    """Of one partition over all directions."""
    margin_loss: Float32[Array, ""] | None = None
    """A cosine."""
    distill_loss: Float32[Array, ""] | None = None
    """A squared cosine, or nats."""
    spread_loss: Float32[Array, ""] | None = None
    """Squared cosines, of queries and of positives together."""


class _Directions(NamedTuple):
    """Log-sum-exps of each record, by direction, without the positive; None where not summed."""

    query_B: Array
    positive_B: Array | None
    query_query_B: Array | None
    positive_positive_B: Array | None


class _Own(NamedTuple):
    """The hard negatives of each query's own record."""

    cosine_BN: Array
    is_there_BN: Array
    is_known_BN: Array
    """There, and a known match of the query."""
    is_over_BN: Array
    """There, no known match, and above the limit."""

    def counts(self) -> Array:
        return self.is_there_BN & ~self.is_known_BN & ~self.is_over_BN


def contrastive_loss(
    q_BD: Float32[Array, "B D"],
    p_BD: Float32[Array, "B D"],
    negatives_BND: Float32[Array, "B N D"] | None = None,
    *,
    temperature: float | Float32[Array, ""],
    sharding: LossSharding,
    config: LossConfig = PAPER,
    identity_BT: Int32[Array, "B T"] | None = None,
    has_negative_BN: Bool[Array, "B N"] | None = None,
    teacher_BS: Float32[Array, "B S"] | None = None,
    label_B: Int32[Array, "B"] | None = None,
    own_only: Bool[Array, ""] | None = None,
    guide_BTG: Float32[Array, "B T G"] | Int8[Array, "B T G"] | None = None,
) -> LossOutput:
    """Weighted sum of InfoNCE in up to four directions, a margin, distillation and spread.

    With cosines s, and τ the temperature, a direction sums over what a record is told apart from:

        query              Σ exp(s(q,pᵢ)/τ) + Σⱼ exp(s(q,nᵢⱼ)/τ), its own positive not among them
        positive           Σ exp(s(qᵢ,p)/τ)
        query_query        Σ exp(s(q,qᵢ)/τ)
        positive_positive  Σ exp(s(p,pᵢ)/τ) + Σⱼ exp(s(p,nᵢⱼ)/τ)

    where i runs over the other records of the whole batch, whatever device holds them, and for the
    first over its own hard negatives too. The loss of a direction is the mean of
    log(1 + sum / exp(s(q,p)/τ)); that of one partition for all, of log(c + weighted sums /
    exp(s(q,p)/τ)), where c counts the positive as often as GTE does: with the weight of each of the
    first two directions. To these come

        margin   mean of ReLU(s(q,n) − s(q,p) + ε) over each query's own hard negatives
        distill  of triplets mean of (s(q,p) − s(q,n) − t(q,p) + t(q,n))² over these, of pairs of
                 (s(q,p) − t(q,p))²; or the divergence of the softmax of s from that of t
        spread   of queries, and of positives: of their cosines among each other

    Args:
      q_BD: L2-normalised queries, on the first axis divided over the devices, as all that follow.
      p_BD: L2-normalised positives; row i is query i's.
      negatives_BND: L2-normalised hard negatives; row i are query i's. None for pairs.
      temperature: > 0, dimensionless; divides the cosines (typically 0.05). A traced scalar has a
        gradient.
      sharding: how the work is divided; it changes the values in rounding only.
      config: which terms, and what belongs to them.
      identity_BT: equal numbers of 0 or more for equal texts (columns: query, positive, hard
        negatives). Where given, records that share a text of their pairs do not count against each
        other, nor do texts of a pair that stand as hard negatives, nor, as either, the positives of
        any pair with the same query.
      has_negative_BN: False where a query has fewer hard negatives; what stands there has no
        influence. All have them where not given.
      teacher_BS: t, a teacher's scores of each query with its positive and its hard negatives, on
        the scale of cosines; NaN where there is none, and then nothing is distilled.
      label_B: equal numbers of 0 or more for records of one label, whose queries and positives do
        not count against each other; negative for a record without one.
      own_only: True where nothing counts but each query's own hard negatives.
      guide_BTG: embeddings of all texts by a guide, of any length, for `config.mask_by`.
    Returns: LossOutput.
    Raises: ValueError where sizes do not fit each other or the devices.
    Example: two orthogonal pairs at temperature 1 give 2 log(1 + 1/e) = 0.6265, half of it from
      each direction.
    Source: Jina Embeddings, arXiv 2307.11224, section 3.1, and 3.2 for hard negatives; van den
      Oord et al. 2018, eq. 4, for one direction; GTE, arXiv 2308.03281, for four and for one
      partition. The fields of LossConfig name those of the other terms.
    """
    _check_sizes(q_BD, p_BD, negatives_BND, identity_BT, sharding.mesh.size)
    if config.mask_by == "guide" and guide_BTG is None:
        raise ValueError("loss.mask_by='guide' wants the embeddings of a guide")
    if config.mask_by != "guide":
        guide_BTG = None
    size = len(q_BD)
    scale = 1 / jnp.asarray(temperature, jnp.float32)
    cosine_B = jnp.sum(q_BD * p_BD, axis=-1)
    positive_B = scale * cosine_B
    limit_B = _limits(cosine_B, guide_BTG, config)
    ids, matches = _pairs(size, identity_BT, label_B, limit_B, sharding.mesh)
    q_ids, p_ids = (_of_text(ids, i, identity_BT, guide_BTG) for i in (0, 1))
    in_batch = Compare(hardness=config.in_batch_hardness)
    among, both_ways = Compare(itself=True), config.positive_weight > 0
    sums = log_sums(
        q_BD, p_BD, scale, q_ids, p_ids._replace(run_N2=None), matches,
        in_batch._replace(keys_too=both_ways), sharding,
    )  # fmt: skip
    of_queries, of_positives, query_query_B = [sums.row_B], [], None
    if config.query_query_weight > 0:
        query_query_B = log_sums(q_BD, q_BD, scale, q_ids, q_ids, matches, among, sharding).row_B
    if config.positive_positive_weight > 0:
        of_all = log_sums(p_BD, p_BD, scale, p_ids, p_ids, matches, among, sharding)
        of_positives.append(of_all.row_B)
    max_B, masked_BK, others, own = sums.row_max_B, sums.masked_BK, size - 1.0, None
    if negatives_BND is not None:
        own = _own_negatives(
            q_BD, negatives_BND, limit_B, ids, matches, identity_BT, has_negative_BN, guide_BTG
        )
        hard_MD, hard_ids, texts_BT = _hard_negatives(
            negatives_BND, identity_BT, own.is_there_BN, guide_BTG, sharding.mesh
        )
        q_ids, p_ids = (x._replace(text_NT=texts_BT) for x in (q_ids, p_ids))
        hard = log_sums(q_BD, hard_MD, scale, q_ids, hard_ids, matches, in_batch, sharding)
        of_queries.append(hard.row_B)
        if of_positives:
            hard_p = log_sums(p_BD, hard_MD, scale, p_ids, hard_ids, matches, Compare(), sharding)
            of_positives.append(hard_p.row_B)
        max_B = jnp.maximum(max_B, hard.row_max_B)
        missing_B = jnp.sum(~own.is_there_BN, axis=1, dtype=jnp.float32)
        masked_BK += hard.masked_BK + _masked_own(own)
        # Those that are not there were masked as texts.
        masked_BK = masked_BK.at[:, RULES.index("texts")].add(missing_B - jnp.sum(missing_B))
        others += own.is_there_BN.size - jnp.sum(missing_B)
    # The hardness has no part in which is nearest.
    max_B = jnp.where(max_B > LOWEST / 2, max_B * scale / (scale + in_batch.hardness), LOWEST)
    found = _Directions(
        _add_up(of_queries), sums.key_N if both_ways else None,
        query_query_B, _add_up(of_positives) if of_positives else None,
    )  # fmt: skip
    if own_only is not None:
        found, max_B = _unless(own_only, (found, max_B))
    if own is not None:
        own_BN = jnp.where(own.counts(), scale * own.cosine_BN, LOWEST)
        weight_BN = config.hard_negative_hardness * jax.lax.stop_gradient(own.cosine_BN)
        hard_B = jax.nn.logsumexp(own_BN + weight_BN, axis=1)
        found = found._replace(query_B=jnp.logaddexp(found.query_B, hard_B))
        max_B = jnp.maximum(max_B, own_BN.max(axis=1))
    terms = _terms(found, positive_B, config)
    if own is not None:
        hinge_BN = jax.nn.relu(own.cosine_BN - cosine_B[:, None] + config.margin)
        terms["margin_loss"] = mean_of(hinge_BN, own.counts())
    if teacher_BS is not None:
        terms["distill_loss"] = _distilled(cosine_B, own, teacher_BS, config)
    if config.spread_weight > 0 or config.spread_mean_weight > 0:
        terms["spread_loss"] = sum(
            config.spread_weight * second_moment_above_chance(x_BD)
            + config.spread_mean_weight * squared_mean(x_BD)
            for x_BD in (q_BD, p_BD)
        )
    masked_K = jnp.mean(masked_BK, axis=0) / jnp.maximum(others, 1.0)
    in_batch_cosine = _in_batch_cosine(sums, scale + in_batch.hardness)
    own_cosine = None if own is None else mean_of(own.cosine_BN, own.counts())
    return LossOutput(
        _weighted(terms, config),
        accuracy=_accuracy(positive_B, max_B, scale),
        positive_cosine=jnp.mean(cosine_B),
        in_batch_cosine=in_batch_cosine,
        negative_cosine=own_cosine,
        masked_share=masked_K[RULES.index("texts")],
        label_masked_share=None if label_B is None else masked_K[RULES.index("label")],
        margin_masked_share=None if limit_B is None else masked_K[RULES.index("limit")],
        in_batch_weight=_mean_weight(in_batch.hardness, in_batch_cosine),
        hard_negative_weight=_mean_weight(config.hard_negative_hardness, own_cosine),
        **terms,
    )  # fmt: skip


def _limits(cosine_B: Array, guide_BTG: Array | None, config: LossConfig) -> Array | None:
    """Of each record, the cosine from which on nothing counts against it."""
    if config.mask_by == "none":
        return None
    own_B = jax.lax.stop_gradient(cosine_B)
    if guide_BTG is not None:
        own_B = _of_query(guide_BTG)[:, 0]
    # Relative to the size of the cosine: a share of a negative one would be above it.
    relative = config.mask_margin_kind == "relative"
    return own_B + config.mask_limit * (jnp.abs(own_B) if relative else 1.0)


def _of_query(guide_BTG: Array) -> Array:
    """A guide's cosines of each query with the other texts of its record, [B, T - 1]."""
    # Float32 within the sums alone: the array is large.
    squares_BT = jnp.sum(jnp.square(guide_BTG.astype(jnp.float32)), axis=-1)
    query_B1G, others_BSG = guide_BTG[:, :1], guide_BTG[:, 1:]
    products_BS = jnp.sum(query_B1G.astype(jnp.float32) * others_BSG.astype(jnp.float32), axis=-1)
    squares_BS = squares_BT[:, :1] * squares_BT[:, 1:]
    return products_BS * jax.lax.rsqrt(jnp.where(squares_BS > 0, squares_BS, 1.0))


def _pairs(
    size: int, identity_BT: Array | None, label_B: Array | None, limit_B: Array | None, mesh: Mesh
) -> tuple[Ids, Matches | None]:
    """What queries and positives have in common."""
    ids, matches = Ids(jnp.arange(size), label_N=label_B, limit_N=limit_B), None
    if identity_BT is not None:
        matches, run_B2, text_B2 = on_each(
            lambda x_BT: (*known_matches(x_BT[:, 0], x_BT[:, 1]), x_BT[:, :2]),
            identity_BT, mesh=mesh,
        )  # fmt: skip
        ids = ids._replace(text_NT=text_B2, run_N2=run_B2)
    return ids, matches


def _of_text(ids: Ids, text: int, identity_BT: Array | None, guide_BTG: Array | None) -> Ids:
    """Those of queries, text 0, or of positives, text 1."""
    return ids._replace(
        own_N=None if identity_BT is None else identity_BT[:, text],
        guide_NG=None if guide_BTG is None else guide_BTG[:, text],
    )


def _own_negatives(
    q_BD: Array, negatives_BND: Array, limit_B: Array | None, ids: Ids, matches: Matches | None,
    identity_BT: Array | None, has_negative_BN: Array | None, guide_BTG: Array | None,
) -> _Own:  # fmt: skip
    is_there_BN = has_negative_BN
    if is_there_BN is None:
        is_there_BN = jnp.ones(negatives_BND.shape[:2], bool)
    cosine_BN = jnp.sum(q_BD[:, None] * negatives_BND, axis=-1)
    is_known_BN = jnp.zeros(is_there_BN.shape, bool)
    if identity_BT is not None:
        is_known_BN = (identity_BT[:, 2:, None] == identity_BT[:, None, :2]).any(-1)
        if matches is not None and ids.run_N2 is not None:
            is_known_BN = matches.mask(is_known_BN, ids.run_N2, identity_BT[:, 2:])
    is_known_BN &= is_there_BN
    is_over_BN = jnp.zeros(is_there_BN.shape, bool)
    if limit_B is not None:
        of_limit_BN = jax.lax.stop_gradient(cosine_BN)
        if guide_BTG is not None:
            of_limit_BN = _of_query(guide_BTG)[:, 1:]
        is_over_BN = is_there_BN & ~is_known_BN & (of_limit_BN >= limit_B[:, None])
    return _Own(cosine_BN, is_there_BN, is_known_BN, is_over_BN)


def _hard_negatives(
    negatives_BND: Array, identity_BT: Array | None, is_there_BN: Array, guide_BTG: Array | None,
    mesh: Mesh,
) -> tuple[Array, Ids, Array]:  # fmt: skip
    """All hard negatives as keys, and the texts of each row that they are compared with."""
    size, negatives, dimension = negatives_BND.shape
    if identity_BT is None:
        identity_BT = jnp.zeros((size, 2 + negatives), jnp.int32).at[:, :2].set(-1)

    def numbers(identity_BT: Array, is_there_BN: Array) -> tuple[Array, Array]:
        # −1 stands for a negative that is not there, and is put among the texts of every row.
        texts_BT = jnp.pad(identity_BT[:, :2], ((0, 0), (0, 1)), constant_values=-1)
        return jnp.where(is_there_BN, identity_BT[:, 2:], -1).reshape(-1), texts_BT

    own_M, texts_BT = on_each(numbers, identity_BT, is_there_BN, mesh=mesh)
    guide_MG = None
    if guide_BTG is not None:
        guide_MG = guide_BTG[:, 2:].reshape(len(own_M), -1)
    ids = Ids(jnp.repeat(jnp.arange(size), negatives), own_M[:, None], own_M, guide_NG=guide_MG)
    return negatives_BND.reshape(-1, dimension), ids, texts_BT


def _masked_own(own: _Own) -> Array:
    """How many of each query's own hard negatives do not count, by rule."""
    by_rule = {"texts": own.is_known_BN, "limit": own.is_over_BN}
    nothing_BN = jnp.zeros_like(own.is_known_BN)
    return jnp.stack(
        [jnp.sum(by_rule.get(r, nothing_BN), axis=1, dtype=jnp.float32) for r in RULES], axis=1
    )


def _unless(own_only: Array, sums: Any) -> Any:
    """Sums over the batch, or of nothing."""
    return jax.tree.map(lambda x: jnp.where(own_only, LOWEST, x), sums)


def _add_up(sums: list[Array]) -> Array:
    return functools.reduce(jnp.logaddexp, sums)


def _terms(sums: _Directions, positive_B: Array, config: LossConfig) -> dict[str, Array | None]:
    """The losses of the directions, unweighted, and that of all where they share a partition."""

    def over(sum_B: Array | None, count: float = 1.0) -> Array | None:
        # −log of the positive's share is log(1 + others / positive), which keeps its digits near 0.
        if sum_B is None:
            return None
        return math.log(count) + jnp.mean(jax.nn.softplus(sum_B - positive_B - math.log(count)))

    terms = {name: over(sum_B) for name, sum_B in zip(_DIRECTIONS, sums, strict=True)}
    if config.partition == "joint":
        weighted = [
            sum_B + math.log(weight)
            for sum_B, weight in zip(sums, config.direction_weights, strict=True)
            if sum_B is not None
        ]
        terms["joint_loss"] = over(_add_up(weighted), sum(config.direction_weights[:2]))
    return terms


def _weighted(terms: dict[str, Array | None], config: LossConfig) -> Array:
    """Sum of the terms, each times its weight."""
    weights = dict(zip(_DIRECTIONS, config.direction_weights, strict=True))
    if config.partition == "joint":
        weights = {"joint_loss": 1.0}
    weights |= {
        "margin_loss": config.margin_weight, "distill_loss": config.distill_weight,
        "spread_loss": 1.0,
    }  # fmt: skip
    loss = jnp.zeros((), jnp.float32)
    for name, weight in weights.items():
        term = terms.get(name)
        if term is not None:
            loss += weight * term
    return loss


def _distilled(cosine_B: Array, own: _Own | None, teacher_BS: Array, config: LossConfig) -> Array:
    if own is None:
        return distance(cosine_B[:, None], teacher_BS, jnp.ones((len(cosine_B), 1), bool))
    is_scored_BN = own.is_there_BN & ~own.is_known_BN
    if config.distill == "kl":
        student_BS = jnp.concatenate([cosine_B[:, None], own.cosine_BN], axis=1)
        return divergence(student_BS, teacher_BS, is_scored_BN, config.distill_temperature)
    teacher_BN = teacher_BS[:, :1] - teacher_BS[:, 1:]
    return distance(cosine_B[:, None] - own.cosine_BN, teacher_BN, is_scored_BN)


def _mean_weight(hardness: float, cosine: Array | None) -> Array | None:
    if hardness == 0 or cosine is None:
        return None
    return jnp.exp(hardness * jax.lax.stop_gradient(cosine))


def _accuracy(positive_B: Array, max_B: Array, scale: Array) -> Array:
    # A tolerance on the cosines, since the two products round differently.
    is_first_B = positive_B >= jax.lax.stop_gradient(max_B) - 1e-6 * scale
    return jnp.mean(is_first_B.astype(jnp.float32))


def _in_batch_cosine(sums: LogSums, scale: Array) -> Array:
    """Mean cosine of queries and the positives of others that count; 0 if none counts."""
    size = len(sums.row_B)
    masked_B = jnp.sum(sums.masked_BK, axis=1)
    of_others = jax.lax.stop_gradient(jnp.sum(sums.total_B) / scale)
    return of_others / jnp.maximum(jnp.sum(size - 1.0 - masked_B), 1.0)


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
