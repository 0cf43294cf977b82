"""The loss: its values, and what may be wrong with them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Ge, Le

from jina_jax.config.fields import NonNegativeFloat, PositiveFloat, PositiveInt, ProductPrecision


@dataclass(frozen=True)
class LossConfig:
    """The losses of Jina Embeddings (arXiv 2307.11224, section 3): of pairs, a + b; of triplets,
    a + b + c. Each term has a weight, and 0 leaves it out; the paper's are 1.

    (a) InfoNCE from queries to positives, with all hard negatives of the batch among the keys where
    there are any; (b) InfoNCE from positives to queries; (c) mean ReLU(s(q, n) - s(q, p) + margin).

    Beyond the paper, (d) learns from a teacher's scores t, which the consistency filter leaves with
    the pairs it keeps (cosines of its encoder) and the margin filter with triplets (logits of its
    cross-encoder); (e) and (f) tell queries from other queries, and positives from other positives
    and their hard negatives, each against the record's own pair (GTE, arXiv 2308.03281); (g) learns
    from a teacher's embeddings, those of data.guide; (h) spreads embeddings out.
    Scored pairs have losses of their own, (i) and (j).
    """

    query_weight: NonNegativeFloat = 1.0
    """Of (a)."""
    positive_weight: NonNegativeFloat = 1.0
    """Of (b)."""
    query_query_weight: NonNegativeFloat = 0.0
    """Of (e)."""
    positive_positive_weight: NonNegativeFloat = 0.0
    """Of (f)."""
    partition: Literal["each", "joint"] = "each"
    """`each` direction of (a), (b), (e) and (f) is a loss; `joint` makes them one, whose
    denominator holds all of them, each sum times its weight (arXiv 2308.03281)."""
    margin_weight: NonNegativeFloat = 1.0
    """Of (c), which batches of pairs don't have."""
    margin: Annotated[float, Ge(0), Le(2)] = 0.05
    """A cosine: how much nearer than its hard negative a query's positive has to be."""
    mask_by: Literal["none", "model", "guide"] = "none"
    """Nothing counts against a record, in-batch or hard negative, whose cosine reaches a limit near
    that of the record's own pair: `model` takes the cosines of the model itself (Qwen3-Embedding,
    arXiv 2506.05176), `guide` those of the data.guide (GISTEmbed, arXiv 2402.16829)."""
    mask_margin_kind: Literal["absolute", "relative"] = "absolute"
    """The limit is the cosine s of the record's own pair plus mask_margin, or plus
    mask_margin · |s| (NV-Retriever, arXiv 2407.15831, where s is above 0)."""
    mask_margin: Annotated[float, Ge(-2), Le(2)] | None = None
    """None takes 0.1 where it is absolute (arXiv 2506.05176) and -0.05, 95% of s, where it is
    relative (arXiv 2407.15831). GISTEmbed's is 0."""
    in_batch_hardness: NonNegativeFloat = 0.0
    """In (a), a negative of another record weighs exp(this · its cosine) more, without a gradient
    of the weight; 9 in LLaVE, arXiv 2503.04812."""
    hard_negative_hardness: NonNegativeFloat = 0.0
    """The same for the record's own hard negatives; 5 in EmbeddingGemma, arXiv 2509.20354."""
    distill_weight: NonNegativeFloat = 0.0
    """Of (d). Sources without a teacher's scores are trained without it."""
    distill: Literal["margin", "kl"] = "margin"
    """(d) of triplets: mean (s(q, p) - s(q, n) - scale (t(q, p) - t(q, n)))^2, MarginMSE
    (Hofstätter et al. 2020, arXiv 2010.02666), or the divergence of the softmax of s over positive
    and hard negatives from that of scale t (KaLM-Embedding-V2, arXiv 2506.20923). (d) of pairs is
    mean (s(q, p) - scale t(q, p))^2."""
    distill_temperature: PositiveFloat = 0.05
    """Divides the cosines of `kl`."""
    distill_pair_scale: PositiveFloat = 1.0
    """Of a teacher's scores of pairs, which are cosines."""
    distill_triplet_scale: PositiveFloat = 0.05
    """Of a teacher's scores of triplets, which are logits, within about -11..11 for ms-marco
    cross-encoders: differences become those of cosines."""
    distill_embeddings_weight: NonNegativeFloat = 0.0
    """Of (g): 1 - the cosine of the guide's embedding of a text and the model's, which a matrix
    that is learned beside the encoder projects into the guide's space (jina-embeddings-v5, arXiv
    2602.15547). No exported model needs the matrix."""
    spread_weight: NonNegativeFloat = 0.0
    """Of (h), for queries and positives: max(0, M - 1/D), M being the mean squared cosine of two of
    a batch and D the dimensions (Zhang et al. 2017, arXiv 1708.06320; arXiv 2509.20354)."""
    spread_mean_weight: NonNegativeFloat = 0.0
    """Of the other part of (h), the squared mean cosine of two of a batch (arXiv 1708.06320)."""
    cosent_weight: NonNegativeFloat = 1.0
    """Of (i), of scored pairs: CoSENT, log(1 + sum exp((s_j - s_i) / score_temperature)) over all i
    of a higher score than j (Su 2022, kexue.fm/archives/8847)."""
    angle_weight: NonNegativeFloat = 0.0
    """Of (j), of scored pairs: the same over differences of angles as complex vectors (AnglE, arXiv
    2309.12871)."""
    score_temperature: PositiveFloat = 0.05
    """Divides the similarities of (i) and (j)."""
    temperature: PositiveFloat = 0.05
    """Divides the cosines of (a) and (b); where it is learned, its first value."""
    learn_temperature: bool = False
    """Learn the temperature beside the encoder: its logarithm, by the same optimizer and schedule,
    without weight decay. No exported model needs it."""
    min_temperature: PositiveFloat = 0.01
    """A learned temperature stays at or above this, and ..."""
    max_temperature: float = 1.0
    """... at or below this."""
    matryoshka_dims: tuple[int, ...] = ()
    """Numbers of first dimensions that shall be embeddings too: the loss of each, on vectors cut
    and normalised, is added to that of all dimensions."""
    matryoshka_weights: tuple[float, ...] = ()
    """Of each of these losses; empty for 1 each. That of all dimensions has 1."""
    quantized: tuple[Literal["int8", "binary"], ...] = ()
    """Precisions that embeddings shall be of use in: the loss of each, on vectors rounded to it
    whose gradient passes as if they were not, is added (jina-embeddings-v5, arXiv 2602.15547)."""
    quantized_weight: PositiveFloat = 1.0
    """Of each of these losses."""
    mask_false_negatives: bool = True
    """Leave out of the denominators, and of (c), texts known to match (same hash)."""
    gather: Literal["all_gather", "ring"] = "all_gather"
    """How the texts of the other devices are had: all at once, or in blocks that travel around the
    devices, so that none holds the embeddings of all. The values differ in rounding."""
    tile_bytes: PositiveInt = 16 * 2**20
    """Most memory of a tile of the similarity matrix, which is never held as a whole."""
    precision: ProductPrecision = "highest"
    """Of the products of embeddings on TPUs and GPUs, in float32: its own, or the faster three or
    one products of bfloat16 (tf32 on GPUs), which round each embedding to 16 or to 8 bits."""

    @property
    def direction_weights(self) -> tuple[float, float, float, float]:
        """Of (a), (b), (e) and (f)."""
        return (
            self.query_weight, self.positive_weight,
            self.query_query_weight, self.positive_positive_weight,
        )  # fmt: skip

    @property
    def wants_guide(self) -> bool:
        """Whether it has a use for the embeddings of data.guide."""
        return self.mask_by == "guide" or self.distill_embeddings_weight > 0

    @property
    def mask_limit(self) -> float:
        """What is added to a record's own cosine, or to its size's part of it."""
        if self.mask_margin is not None:
            return self.mask_margin
        return 0.1 if self.mask_margin_kind == "absolute" else -0.05


def loss_problems(loss: LossConfig, d_model: int, pairs: Sequence[str]) -> Iterator[str]:
    """What is wrong with a loss, a sentence each.

    Args:
      loss: to be checked.
      d_model: dimensions of an embedding.
      pairs: names of the sources of pairs.
    """
    if loss.learn_temperature and not (
        loss.min_temperature <= loss.temperature <= loss.max_temperature
    ):
        yield (
            f"loss.temperature={loss.temperature} must lie in loss.min_temperature.."
            f"loss.max_temperature={loss.min_temperature}..{loss.max_temperature} to be learned"
        )
    for dims in loss.matryoshka_dims:
        if not 0 < dims < d_model:
            yield f"loss.matryoshka_dims: {dims} must lie in 1..{d_model - 1}"
    if len(set(loss.matryoshka_dims)) < len(loss.matryoshka_dims):
        yield f"loss.matryoshka_dims={loss.matryoshka_dims} names a number twice"
    weights = loss.matryoshka_weights
    if weights and len(weights) != len(loss.matryoshka_dims):
        yield (
            f"loss.matryoshka_weights={weights} must be as many as loss.matryoshka_dims="
            f"{loss.matryoshka_dims}, or none for 1 each"
        )
    if any(weight <= 0 for weight in weights):
        yield f"loss.matryoshka_weights={weights} must all be above 0"
    yield from _contradictions(loss)
    if not any(loss.direction_weights) and (pairs or loss.margin_weight == 0):
        of = f" of pairs ({', '.join(pairs)})" if pairs else ""
        yield f"loss.query_weight and loss.positive_weight are 0: no loss{of} would be left"


def _contradictions(loss: LossConfig) -> Iterator[str]:
    """Fields that have no meaning beside each other."""
    if loss.partition == "joint" and loss.query_weight == 0:
        yield (
            "loss.partition='joint' wants loss.query_weight above 0: one partition for all "
            "directions holds the positive by way of that one"
        )
    if loss.mask_by == "none" and (
        loss.mask_margin is not None or loss.mask_margin_kind != "absolute"
    ):
        yield (
            "loss.mask_margin and loss.mask_margin_kind say where a mask begins, and there is "
            "none: set loss.mask_by to 'model' or 'guide'"
        )
    if loss.mask_by != "none" and loss.mask_margin_kind == "relative" and loss.mask_limit <= -1:
        yield (
            f"loss.mask_margin={loss.mask_margin} of the cosine of the record's own pair would "
            f"mask what is at right angles to it; it must be above -1 where it is relative"
        )
    if loss.distill_weight == 0 and loss.distill != "margin":
        yield "loss.distill='kl' without loss.distill_weight: raise the weight above 0"
    if loss.in_batch_hardness > 0 and loss.query_weight == 0:
        yield "loss.in_batch_hardness weighs terms of (a), and loss.query_weight is 0"
    if loss.hard_negative_hardness > 0 and loss.query_weight == 0:
        yield "loss.hard_negative_hardness weighs terms of (a), and loss.query_weight is 0"
    if len(set(loss.quantized)) < len(loss.quantized):
        yield f"loss.quantized={loss.quantized} names a precision twice"
    if loss.cosent_weight == loss.angle_weight == 0:
        yield (
            "loss.cosent_weight and loss.angle_weight are 0: scored pairs would have no loss; give "
            "them no weight in the mixture instead"
        )
