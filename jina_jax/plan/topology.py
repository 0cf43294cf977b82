"""The machines that a step can be compiled for without having one."""

import math
import re
from dataclasses import dataclass

from jina_jax.errors import UserError

LOCAL = "local"
"""Names the devices of this machine."""

_GIB = 2**30


@dataclass(frozen=True)
class Family:
    """One generation of TPUs."""

    name: str
    device_kind: str
    usable_hbm_bytes: int | None
    """Of the published memory of a chip, what the compiler lets a program use. None where nothing
    can be planned: without a v4 at hand, the compiler takes each of its chips for two devices."""
    slices: tuple[str, ...]
    """Chips along each axis of the slices that are offered."""


_CHIPS_A_HOST = 4
_TWO_AXES = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
_THREE_AXES = (
    "2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8", "8x8x16", "8x16x16",
)  # fmt: skip
FAMILIES = (
    Family("v4", "TPU v4", None, _THREE_AXES),
    Family("v5e", "TPU v5 lite", round(15.75 * _GIB), _TWO_AXES),
    Family("v5p", "TPU v5", round(95.73 * _GIB), _THREE_AXES),
    Family("v6e", "TPU v6 lite", round(31.24 * _GIB), _TWO_AXES),
)


@dataclass(frozen=True)
class Topology:
    """Slices of TPU pods, all alike."""

    slice_name: str
    """As the compiler names one."""
    slices: int
    family: Family
    chips: int
    """Of all slices."""

    @property
    def size(self) -> str:
        """Chips along each axis of a slice, such as `16x16`."""
        return self.slice_name.partition(":")[2]

    @property
    def hosts_per_slice(self) -> int:
        """Machines that the chips of a slice are attached to, each with as many."""
        return self.chips // self.slices // self.chips_per_host

    @property
    def chips_per_host(self) -> int:
        """Chips that one process sees as its own devices."""
        return min(self.chips // self.slices, _CHIPS_A_HOST)


def find_topology(name: str) -> Topology:
    """The topology of a name such as `v5e:16x16`, or `2xv5e:16x16` for two slices.

    Raises: UserError naming those that are known.
    """
    several = re.fullmatch(r"([1-9]\d*)x(v.*)", name)
    slices, slice_name = (int(several[1]), several[2]) if several else (1, name)
    generation, _, size = slice_name.partition(":")
    for family in FAMILIES:
        if family.name == generation and size in family.slices:
            chips = math.prod(int(n) for n in size.split("x"))
            return Topology(slice_name, slices, family, slices * chips)
    known = "".join(f"\n  {f.name}: {', '.join(f.slices)}" for f in FAMILIES)
    raise UserError(
        f"no topology {name!r}; give {LOCAL} for this machine's devices, or GENERATION:SLICE "
        f"such as v5e:16x16, or 2xv5e:16x16 for two slices, of{known}"
    )
