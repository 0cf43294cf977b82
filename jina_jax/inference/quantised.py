"""Embeddings in fewer bits, and back."""

from typing import Any, get_args

import numpy as np
from jaxtyping import Float, Float32

from jina_jax.config import Precision
from jina_jax.errors import UserError

PRECISIONS = get_args(Precision)
IN_RANGES = ("int8", "uint8")
"""Those that divide a range of each dimension."""


def ranges_of(z_ND: Float[np.ndarray, "N D"]) -> Float32[np.ndarray, "2 D"]:
    """The least and the largest value of each dimension, which int8 and uint8 divide into 256."""
    return np.stack([z_ND.min(axis=0), z_ND.max(axis=0)]).astype(np.float32)


def quantize(
    z_ND: Float[np.ndarray, "N D"],
    precision: Precision,
    ranges_2D: Float32[np.ndarray, "2 D"] | None = None,
) -> np.ndarray:
    """Embeddings with fewer bits.

    Args:
      z_ND: float32 or float16.
      precision: int8 and uint8 number the 256th part of its dimension's range that a value lies in,
        from -128 and from 0; what lies outside counts to the outermost part. binary (int8) and
        ubinary (uint8) hold a bit a dimension, 1 above zero, eight dimensions to a byte.
      ranges_2D: for int8 and uint8; by default those of z_ND. What is compared needs the same.
    Returns: [N, D] of the precision, or [N, ceil(D / 8)] of the binary ones.
    Raises: UserError for another precision, or where one embedding alone would be its own range.
    Source: sentence-transformers, `quantize_embeddings`, whose bytes these are.
    """
    if precision not in PRECISIONS:
        raise UserError(f"no precision {precision!r}; there are {', '.join(PRECISIONS)}")
    if precision in ("float32", "float16"):
        return z_ND.astype(precision)
    if precision in ("binary", "ubinary"):
        bits = np.packbits(z_ND > 0, axis=1)
        return bits if precision == "ubinary" else (bits.astype(np.int16) - 128).astype(np.int8)
    if ranges_2D is None:
        if len(z_ND) == 1:
            raise UserError(
                f"{precision} of one embedding alone has no range to divide: give ranges, of many "
                f"embeddings of the same model"
            )
        if not len(z_ND):
            return z_ND.astype(precision)
        ranges_2D = ranges_of(z_ND)
    low_D, step_D = _steps(ranges_2D)
    level_ND = np.clip(np.floor((z_ND - low_D) / step_D), 0, 255)
    return (level_ND - 128 if precision == "int8" else level_ND).astype(precision)


def restore(
    code_NX: np.ndarray,
    precision: Precision,
    dimensions: int,
    ranges_2D: Float32[np.ndarray, "2 D"] | None = None,
) -> Float32[np.ndarray, "N D"]:
    """The embeddings that quantised ones stand for: the middle of each part of a range, or 1 and -1
    for a bit.

    Args:
      code_NX: of `quantize`.
      precision: that they have.
      dimensions: D of the embeddings.
      ranges_2D: that they were quantised with, for int8 and uint8.
    """
    if precision in ("float32", "float16"):
        return code_NX.astype(np.float32)
    if precision in ("binary", "ubinary"):
        bits = code_NX if precision == "ubinary" else (code_NX.astype(np.int16) + 128)
        is_one = np.unpackbits(bits.astype(np.uint8), axis=1, count=dimensions)
        return np.where(is_one, np.float32(1), np.float32(-1))
    assert ranges_2D is not None
    level_ND = code_NX.astype(np.float32) + np.float32(128.5 if precision == "int8" else 0.5)
    # Of a dimension that has one value alone, that value.
    step_D = (ranges_2D[1] - ranges_2D[0]) / 255
    return (level_ND * step_D[None] + ranges_2D[0][None]).astype(np.float32)


def rounded(
    z_ND: Float32[np.ndarray, "N D"],
    precision: Precision,
    ranges_2D: Float32[np.ndarray, "2 D"] | None = None,
    *,
    normalize: bool,
) -> Float32[np.ndarray, "N D"]:
    """Embeddings as they are after they were quantised and restored.

    Args:
      z_ND: to round.
      precision: to round to.
      ranges_2D: that int8 and uint8 divide.
      normalize: bring them to length 1 again.
    """
    code_NX = quantize(z_ND, precision, ranges_2D)
    found_ND = restore(code_NX, precision, z_ND.shape[1], ranges_2D)
    if not normalize:
        return found_ND
    length_N1 = np.linalg.norm(found_ND, axis=1, keepdims=True)
    return found_ND / np.maximum(length_N1, np.float32(1e-12))


def _steps(ranges_2D: np.ndarray) -> tuple[Any, Any]:
    """Where each dimension's range begins, and the width of its parts."""
    step_D = (ranges_2D[1] - ranges_2D[0]) / 255
    return ranges_2D[0][None], np.where(step_D == 0, 1, step_D)[None]
