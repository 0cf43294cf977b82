"""The loss: its values, and what may be wrong with them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Ge, Le

from jina_jax.config.fields import NonNegativeFloat, PositiveFloat, PositiveInt


@dataclass(frozen=True)
class LossConfig:
    """The losses of Jina Embeddings (arXiv 2307.11224, section 3): of pairs, a + b; of triplets,
    a + b + c. Each term has a weight, and 0 leaves it out; the paper's are 1.

    (a) InfoNCE from queries to positives, with all hard negatives of the batch among the keys where
    there are any; (b) InfoNCE from positives to queries; (c) mean ReLU(s(q, n) - s(q, p) + margin).

    Beyond the paper, (d) learns from a teacher's scores t, which the consistency filter leaves with
    the pairs it keeps (cosines of its encoder) and the margin filter with triplets (logits of its
    cross-encoder): of triplets mean (s(q, p) - s(q, n) - scale (t(q, p) - t(q, n)))^2, MarginMSE
    (Hofstätter et al. 2020, arXiv 2010.02666); of pairs mean (s(q, p) - scale t(q, p))^2.
    """

    query_weight: NonNegativeFloat = 1.0
    """Of (a)."""
    positive_weight: NonNegativeFloat = 1.0
    """Of (b)."""
    margin_weight: NonNegativeFloat = 1.0
    """Of (c), which batches of pairs don't have."""
    margin: Annotated[float, Ge(0), Le(2)] = 0.05
    """A cosine: how much nearer than its hard negative a query's positive has to be."""
    distill_weight: NonNegativeFloat = 0.0
    """Of (d). Sources without a teacher's scores are trained without it."""
    distill_pair_scale: PositiveFloat = 1.0
    """Of a teacher's scores of pairs, which are cosines."""
    distill_triplet_scale: PositiveFloat = 0.05
    """Of a teacher's scores of triplets, which are logits, within about -11..11 for ms-marco
    cross-encoders: differences become those of cosines."""
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
    mask_false_negatives: bool = True
    """Leave out of the denominators, and of (c), texts known to match (same hash)."""
    gather: Literal["all_gather", "ring"] = "all_gather"
    """How the texts of the other devices are had: all at once, or in blocks that travel around the
    devices, so that none holds the embeddings of all. The values differ in rounding."""
    tile_bytes: PositiveInt = 16 * 2**20
    """Most memory of a tile of the similarity matrix, which is never held as a whole."""


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
    if loss.query_weight == loss.positive_weight == 0 and (pairs or loss.margin_weight == 0):
        of = f" of pairs ({', '.join(pairs)})" if pairs else ""
        yield f"loss.query_weight and loss.positive_weight are 0: no loss{of} would be left"
