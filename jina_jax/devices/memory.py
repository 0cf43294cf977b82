"""Memory of the devices: what there is, the most that was used, and what makes a step smaller."""

import dataclasses
import os
import resource
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from jina_jax.config import RunConfig
from jina_jax.errors import OutOfMemory

_UNIT = 1 if sys.platform == "darwin" else 1024
"""Bytes in which the operating system counts."""


def local_memory_bytes(devices: Sequence[Any]) -> int:
    """What one of these JAX devices has; those of a CPU share the machine's memory."""
    limit = (devices[0].memory_stats() or {}).get("bytes_limit")
    if limit is not None:
        return int(limit)
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // len(devices)


def program_bytes(memory: Any, platform: str) -> int:
    """What a compiled program takes of a device while it runs, arguments and results included.

    Args:
      memory: its `memory_analysis()`.
      platform: of the device. For TPUs the sum of the parts counts temporaries that are never
        there at the same time: 17.0 GiB for a step that the compiler puts into 13.7.
    """
    if platform == "tpu":
        return int(memory.peak_memory_in_bytes)
    return int(
        memory.argument_size_in_bytes + memory.temp_size_in_bytes
        + memory.output_size_in_bytes - memory.alias_size_in_bytes
    )  # fmt: skip


def peak_memory() -> dict[str, float]:
    """The most that was used since the start, in GiB.

    Returns: `host_peak_gib`, of this process; `device_peak_gib`, of the fullest of its devices,
      which is left out where they don't tell (CPU).
    """
    import jax  # Not for `jina-jax plan`, whose first process needs `remedies` alone.

    host = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _UNIT
    peaks = [(d.memory_stats() or {}).get("peak_bytes_in_use") for d in jax.local_devices()]
    of_devices = [peak for peak in peaks if peak is not None]
    found = {"host_peak_gib": host / 2**30}
    return found | ({"device_peak_gib": max(of_devices) / 2**30} if of_devices else {})


def remedies(config: RunConfig, devices: int, slices: int = 1) -> Iterator[tuple[str, RunConfig]]:
    """Changes that make a step smaller, each on top of those before, cheaper ones first.

    Those that leave the result as it is come first: layers one by one and computed again,
    parameters divided over more devices, rows encoded in chunks. The last ones take smaller
    batches, which are another run.

    Args:
      config: what does not fit.
      devices: of the machine.
      slices: that they are of, over which parameters are not divided.
    Returns: (flags, changed configuration), each to be compiled.
    """
    flags: dict[str, object] = {}

    def changed(section: str, **values: object) -> tuple[str, RunConfig]:
        nonlocal config
        replace: Callable[..., Any] = dataclasses.replace
        config = replace(config, **{section: replace(getattr(config, section), **values)})
        flags.update({f"--{section}.{k.replace('_', '-')}": v for k, v in values.items()})
        words = (k if v is True else f"{k} {v}" for k, v in flags.items())
        return " ".join(words), config

    if not config.train.scan_layers or config.train.remat != "full":
        yield changed("train", scan_layers=True, remat="full")
    reach = devices // slices // config.mesh.tensor
    divisors = [n for n in range(1, reach + 1) if not reach % n and not config.model.dimensions % n]
    for fsdp in (8, max(divisors)):
        if fsdp in divisors and fsdp > config.mesh.fsdp:
            yield changed("mesh", fsdp=fsdp)
    rows = devices // config.mesh.tensor
    for share in (1, 4):
        chunk = max(config.feed.rows_multiple // share // rows * rows, rows)
        if not config.train.grad_cache_rows or chunk < config.train.grad_cache_rows:
            yield changed("train", grad_cache_rows=chunk)
    pairs = config.feed.global_batch_size
    for divisor in (2, 4, 8, 16):
        yield changed("feed", global_batch_size=max(2, pairs // divisor))


def does_not_fit(what: str, config: RunConfig, devices: int) -> OutOfMemory:
    """The error of a step that does not fit, with the remedies in words.

    Args:
      what: the figures.
      config: what does not fit.
      devices: of the machine.
    """
    flags = "".join(f"  {words}\n" for words, _ in remedies(config, devices))
    return OutOfMemory(
        f"{what}; any of these makes it smaller, the cheaper ones first:\n{flags}"
        "`jina-jax plan` with this config tells which of them fits, without training"
    )


def as_out_of_memory(error: Exception, config: RunConfig, devices: int) -> Exception:
    """The error with what to change, where it is one of memory; else as it is."""
    if "RESOURCE_EXHAUSTED" not in str(error):
        return error
    what = f"a step does not fit the devices ({str(error).splitlines()[0]})"
    return does_not_fit(what, config, devices)
