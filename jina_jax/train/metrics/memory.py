"""Memory of the trainer, for its metrics."""

import resource
import sys

import jax

_UNIT = 1 if sys.platform == "darwin" else 1024
"""Bytes in which the operating system counts."""


def peak_memory() -> dict[str, float]:
    """The most that was used since the start, in GiB.

    Returns: `host_peak_gib`, of this process; `device_peak_gib`, of the fullest of its devices,
      which is left out where they don't tell (CPU).
    """
    host = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _UNIT
    peaks = [(d.memory_stats() or {}).get("peak_bytes_in_use") for d in jax.local_devices()]
    of_devices = [peak for peak in peaks if peak is not None]
    found = {"host_peak_gib": host / 2**30}
    return found | ({"device_peak_gib": max(of_devices) / 2**30} if of_devices else {})
