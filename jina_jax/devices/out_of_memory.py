"""What to change of a configuration whose step does not fit the memory of its devices."""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

from jina_jax.config import RunConfig


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
    divisors = [n for n in range(1, reach + 1) if not reach % n and not config.model.d_model % n]
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


def advice(config: RunConfig, devices: int) -> str:
    """The remedies in words, for the message of a step that does not fit.

    Args:
      config: what does not fit.
      devices: of the machine.
    """
    flags = [f"  {words}" for words, _ in remedies(config, devices)]
    return (
        "any of these makes it smaller, the cheaper ones first:\n" + "\n".join(flags) + "\n"
        "`jina-jax plan` with this config tells which of them fits, without training"
    )
