"""A model between two of one shape: on the line between their tensors, or on the arc."""

from collections.abc import Callable
from typing import Literal

import numpy as np
from jaxtyping import Float32

How = Literal["mean", "slerp"]


def interpolate(
    a: Float32[np.ndarray, "..."], b: Float32[np.ndarray, "..."], share: float, how: How
) -> Float32[np.ndarray, "..."]:
    """A tensor between two, each taken as one vector.

    `mean` is (1 - t) a + t b. `slerp` is sin((1 - t) θ) / sin θ · a + sin(t θ) / sin θ · b with the
    angle θ between the two: of vectors of one length it keeps that length, where the mean is
    shorter, by cos(θ / 2) in the middle. Of parallel vectors the mean is its limit, and is taken;
    also where one is zero, or they are opposite and no arc is the shortest.

    Args:
      a: any shape.
      b: the same.
      share: t in 0..1, the part of b.
      how: `mean` or `slerp`.
    Returns: float32, computed in float64.
    Example: between (1, 0) and (0, 1) at 1 / 2, the mean is (0.5, 0.5) and slerp (0.7071, 0.7071).
    Source: Shoemake 1985, "Animating rotation with quaternion curves", section 3.3; of each tensor
      as one vector in mergekit (arXiv 2403.13257); Qwen3 Embedding (arXiv 2506.05176) merges its
      checkpoints so.
    """
    a_N, b_N = a.astype(np.float64).ravel(), b.astype(np.float64).ravel()
    of_a, of_b = 1 - share, share
    if how == "slerp":
        angle = _angle(a_N, b_N)
        if np.sin(angle) > _PARALLEL:
            of_a, of_b = (np.sin(part * angle) / np.sin(angle) for part in (of_a, of_b))
    return (of_a * a_N + of_b * b_N).astype(np.float32).reshape(a.shape)


_PARALLEL = 1e-7
"""Sine of an angle below which float32 vectors are told apart by their rounding alone."""


def _angle(a_N: np.ndarray, b_N: np.ndarray) -> float:
    """Between two vectors, in radians; 0 where one is zero.

    The cosine's inverse would lose half of the digits of the small angles that are between
    checkpoints of one training. Source: Kahan 2006, "How Futile are Mindless Assessments of
    Roundoff in Floating-Point Computation?", on mangled angles.
    """
    lengths = np.linalg.norm(a_N), np.linalg.norm(b_N)
    if 0 in lengths:
        return 0.0
    u_N, v_N = a_N / lengths[0], b_N / lengths[1]
    return float(2 * np.arctan2(np.linalg.norm(u_N - v_N), np.linalg.norm(u_N + v_N)))


def blend(
    models: list[Callable[[], dict[str, np.ndarray]]], weights: list[float], how: How
) -> dict[str, np.ndarray]:
    """Several models in one, of which two are held at a time.

    They are taken in one after another, each with its weight's share of those so far: so the mean
    is the weighted mean of all, and slerp goes from model to model, which for more than two depends
    a little on their order.

    Args:
      models: each gives its tensors by name, float32, all of the same shapes.
      weights: of each, above 0; only their proportions count.
      how: see `interpolate`.
    Returns: name → float32 tensor.
    """
    total, blended = weights[0], models[0]()
    for read, weight in zip(models[1:], weights[1:], strict=True):
        total += weight
        tensors = read()
        blended = {
            name: interpolate(blended[name], tensors[name], weight / total, how) for name in blended
        }
    return blended
