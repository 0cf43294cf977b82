"""The shortest time that a step can take by published peaks (Williams et al. 2009)."""

import math
from dataclasses import dataclass

from jina_jax.config import T5Config
from jina_jax.devices.accelerators import Accelerator
from jina_jax.model.flops import StepFlops


@dataclass(frozen=True)
class Roofline:
    """A bound, never a measurement: each resource at its peak, all of them at the same time."""

    compute_s: float
    hbm_s: float
    interconnect_s: float
    network_s: float
    """Between slices."""
    model_flops_per_s_at_peak: float
    """Of all devices, in the model's dtype."""
    model_flops: int

    @property
    def step_s(self) -> float:
        """No step is shorter."""
        return max(self._times.values())

    @property
    def bound(self) -> str:
        """What takes longest."""
        return max(self._times, key=lambda name: self._times[name])

    @property
    def _times(self) -> dict[str, float]:
        return {
            "compute": self.compute_s,
            "HBM": self.hbm_s,
            "interconnect": self.interconnect_s,
            "network between slices": self.network_s,
        }

    @property
    def mfu(self) -> float:
        """No step reaches a greater share of the peak with what the model must compute."""
        return self.model_flops / self.step_s / self.model_flops_per_s_at_peak


def roofline(
    flops: StepFlops,
    model: T5Config,
    known: Accelerator,
    *,
    devices: int,
    hbm_bytes: float,
    received_bytes: float,
    between_slices_bytes: float = 0.0,
) -> Roofline:
    """The roofline of a step.

    Args:
      flops: operations of all devices; the loss is computed in float32 at the highest precision.
      model: its dtype chooses the peak.
      known: what a device can do.
      devices: that share the work evenly.
      hbm_bytes: read and written by one device.
      received_bytes: over the interconnect, by one device.
      between_slices_bytes: from other slices, by one device.
    """
    peak = devices * known.flops_per_s(model.compute_dtype)
    encoder_s = (flops.hardware - flops.loss) / peak
    loss_s = flops.loss / (devices * known.highest_flops_per_s)
    return Roofline(
        compute_s=encoder_s + loss_s,
        hbm_s=hbm_bytes / known.hbm_bytes_per_s,
        interconnect_s=received_bytes / known.interconnect_bytes_per_s,
        network_s=between_slices_bytes / (known.network_bytes_per_s or math.inf),
        model_flops_per_s_at_peak=peak,
        model_flops=flops.model,
    )
