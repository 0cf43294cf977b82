"""Published peaks of known devices, per device as JAX counts them.

These are bounds, not measurements. Sources: Google Cloud's pages "TPU v4", "TPU v5e", "TPU v5p" and
"TPU v6e" (of a pod's network, a chip's part); NVIDIA's data sheets of A100, H100, H200 and L4
(dense, without sparsity).
"""

import re
from dataclasses import dataclass
from typing import Literal

from jina_jax.config.fields import ProductPrecision

_TERA, _GIGA, _GIB = 1e12, 1e9, 2**30


@dataclass(frozen=True)
class Accelerator:
    """One kind of device."""

    name: str
    device_kind: str
    """Regular expression that the whole of `jax.Device.device_kind` matches."""
    bfloat16_flops_per_s: float
    float32_flops_per_s: float
    """Of products of float32 matrices at JAX's default precision: TPUs take one pass in bfloat16,
    these GPUs TF32."""
    high_flops_per_s: float
    """At `Precision.HIGH`: TPUs take three passes in bfloat16, these GPUs TF32."""
    highest_flops_per_s: float
    """At `Precision.HIGHEST`: TPUs take six passes in bfloat16."""
    hbm_bytes: int
    hbm_bytes_per_s: float
    interconnect_bytes_per_s: float
    """What a device can receive from its neighbours over all its links together: ICI, NVLink, or
    PCIe where there is neither."""
    network_bytes_per_s: float | None = None
    """What a device can receive from other slices; None where it isn't published."""

    def flops_per_s(self, compute_dtype: Literal["float32", "bfloat16"]) -> float:
        """Peak of the model's matrix products."""
        is_bfloat16 = compute_dtype == "bfloat16"
        return self.bfloat16_flops_per_s if is_bfloat16 else self.float32_flops_per_s

    def float32_products_per_s(self, precision: ProductPrecision) -> float:
        """Peak of products of float32 at a precision that is asked for."""
        return {
            "highest": self.highest_flops_per_s,
            "high": self.high_flops_per_s,
            "default": self.float32_flops_per_s,
        }[precision]


def _tpu(
    name: str, kind: str, bfloat16: float, hbm_gib: int, hbm_gb_per_s: float, ici_gb_per_s: float,
    network_gbit_per_s: float | None = None,
) -> Accelerator:  # fmt: skip
    peak = bfloat16 * _TERA
    return Accelerator(
        name, kind, peak, peak, peak / 3, peak / 6, hbm_gib * _GIB, hbm_gb_per_s * _GIGA,
        ici_gb_per_s * _GIGA, network_gbit_per_s and network_gbit_per_s / 8 * _GIGA,
    )  # fmt: skip


def _gpu(
    name: str, kind: str, peaks: tuple[float, float, float], hbm_gb: int, hbm_gb_per_s: float,
    link_gb_per_s: float,
) -> Accelerator:  # fmt: skip
    bfloat16, tf32, float32 = (peak * _TERA for peak in peaks)
    return Accelerator(
        name, kind, bfloat16, tf32, tf32, float32, hbm_gb * 10**9, hbm_gb_per_s * _GIGA,
        link_gb_per_s * _GIGA,
    )  # fmt: skip


ACCELERATORS = (
    _tpu("TPU v4", r"TPU v4", 275, 32, 1228, 300),
    _tpu("TPU v5e", r"TPU v5 ?(lite|e)", 197, 16, 819, 200, 25),
    _tpu("TPU v5p", r"TPU v5p?", 459, 95, 2765, 600, 50),
    _tpu("TPU v6e", r"TPU v6 ?(lite|e)", 918, 32, 1640, 400, 100),
    _gpu("A100 40GB", r".*A100.*40GB.*", (312, 156, 19.5), 40, 1555, 300),
    _gpu("A100 80GB", r".*A100.*80GB.*", (312, 156, 19.5), 80, 2039, 300),
    _gpu("H100 SXM", r".*H100 80GB HBM3.*", (989.4, 494.7, 66.9), 80, 3350, 450),
    _gpu("H100 PCIe", r".*H100 PCIe.*", (756, 378, 51), 80, 2000, 64),
    _gpu("H200", r".*H200.*", (989.4, 494.7, 66.9), 141, 4800, 450),
    _gpu("L4", r".*\bL4", (121, 60, 30.3), 24, 300, 32),
)


def accelerator(device_kind: str) -> Accelerator | None:
    """The entry of a device kind.

    Args:
      device_kind: as `jax.Device.device_kind` gives it, such as "TPU v5 lite".
    Returns: None for one that the table lacks, such as "cpu": its peak isn't known.
    """
    return next((a for a in ACCELERATORS if re.fullmatch(a.device_kind, device_kind)), None)
