"""Learning from a teacher: its scores of a query's texts, or its embeddings of them."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float32, Int8

from jina_jax.train.loss.log_sums import of_unit_length


def distance(
    student_BN: Float32[Array, "B N"],
    teacher_BN: Float32[Array, "B N"],
    counts_BN: Bool[Array, "B N"],
) -> Float32[Array, ""]:
    """Mean squared distance from a teacher's scores, or from its margins.

    Args:
      student_BN: cosines, or differences of them.
      teacher_BN: the teacher's, on the same scale; NaN where there is none.
      counts_BN: False where nothing is to be learned.
    Returns: 0 if nothing counts.
    Source: Hofstätter et al. 2020, arXiv 2010.02666, for margins.
    """
    is_known_BN = ~jnp.isnan(teacher_BN)
    # Chosen before it is squared, so that no NaN reaches a gradient.
    error_BN = jnp.where(is_known_BN, student_BN - teacher_BN, 0.0)
    return mean_of(jnp.square(error_BN), counts_BN & is_known_BN)


def divergence(
    student_BS: Float32[Array, "B S"],
    teacher_BS: Float32[Array, "B S"],
    counts_BN: Bool[Array, "B N"],
    temperature: float,
) -> Float32[Array, ""]:
    """Mean Kullback-Leibler divergence of a student's softmax over the texts of a query from its
    teacher's, KL(teacher ‖ student).

    Args:
      student_BS: cosines of a query with its positive, first, and its hard negatives.
      teacher_BS: the teacher's scores, on the same scale; NaN where there is none.
      counts_BN: False where a hard negative is not in the softmax.
      temperature: divides both.
    Returns: nats, over the records with two texts or more in their softmax; 0 if there are none.
    Source: Hinton et al. 2015, arXiv 1503.02531, section 2, without its factor of the squared
      temperature; KaLM-Embedding-V2, arXiv 2506.20923, for positives with their hard negatives.
    """
    is_in_BS = jnp.concatenate([jnp.ones((len(counts_BN), 1), bool), counts_BN], axis=1)
    is_in_BS &= ~jnp.isnan(teacher_BS)
    # Records without a known positive, or without another text, have nothing to tell apart.
    counts_B = is_in_BS[:, 0] & (jnp.sum(is_in_BS, axis=1) > 1)

    def log_shares(scores_BS: Array) -> Array:
        # Finite where nothing is in the softmax: the gradient of what is not chosen is no NaN.
        scores_BS = jnp.where(is_in_BS, scores_BS / temperature, -1e30)
        return jnp.where(is_in_BS, jax.nn.log_softmax(scores_BS, axis=1), 0.0)

    teacher_BS, student_BS = log_shares(teacher_BS), log_shares(student_BS)
    share_BS = jnp.where(is_in_BS, jnp.exp(teacher_BS), 0.0)
    return mean_of(jnp.sum(share_BS * (teacher_BS - student_BS), axis=1), counts_B)


def embedding_distance(
    z_BTD: Float32[Array, "B T D"],
    teacher_BTG: Float32[Array, "B T G"] | Int8[Array, "B T G"],
    projection_DG: Float32[Array, "D G"],
    is_there_BT: Bool[Array, "B T"],
) -> Float32[Array, ""]:
    """1 − the mean cosine of projected embeddings and a teacher's, over the texts that are there.

    Args:
      z_BTD: embeddings.
      teacher_BTG: of any length.
      projection_DG: from the one space into the other.
      is_there_BT: False for places without a text.
    Source: jina-embeddings-v5, arXiv 2602.15547, for a student's projection into the space of its
      teacher.
    """
    projected_BTG = jnp.matmul(z_BTD, projection_DG, precision=jax.lax.Precision.HIGHEST)
    # Places without a text have no direction: their norm is not taken at 0.
    squared_BT = jnp.sum(jnp.square(projected_BTG), axis=-1)
    norm_BT = jnp.sqrt(jnp.where(squared_BT > 0, squared_BT, 1.0))
    cosine_BT = jnp.sum(projected_BTG * of_unit_length(teacher_BTG), axis=-1) / norm_BT
    return mean_of(1 - cosine_BT, is_there_BT)


def mean_of(x: Float32[Array, "..."], counts: Bool[Array, "..."]) -> Float32[Array, ""]:
    """Mean over what counts; 0 if nothing does."""
    total = jnp.sum(counts.astype(jnp.float32))
    return jnp.sum(jnp.where(counts, x, 0.0)) / jnp.where(total > 0, total, 1.0)
