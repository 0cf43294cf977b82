"""How much of the interconnect's time a compiled step hides behind its other work.

Read from the order of instructions in the text of a scheduled HLO module. A collective that is one
instruction has the device to itself. One that has a start and an end is hidden behind what the
device does in between, as far as that takes as long.
"""

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from jina_jax.devices.accelerators import Accelerator
from jina_jax.plan.traffic import (
    Computation,
    Instruction,
    Module,
    callees,
    collective_kind,
    instruction_bytes,
    received_bytes,
    shape_dimensions,
    trip_count,
)

_BACKGROUND = ("copy-start", "slice-start", "dynamic-slice-start")
"""Traffic of the main memory beside which a device works on."""
_SPREAD = "AsyncCollective"
"""Marks the first and last of the fusions that a TPU spreads a collective over: `...Start` and
`...Done`."""


@dataclass
class Overlap:
    """Seconds of one device in one step, at published peaks."""

    shown_s: dict[str, float] = field(default_factory=dict)
    """Kind of collective → how long the device waits for it and does nothing else."""
    work_s: float = 0.0
    """Of what it does beside collectives: each instruction's products or its bytes of main memory,
    whichever takes longer."""

    def show(self, kind: str, seconds: float) -> None:
        """Adds to what is shown."""
        if seconds > 0:
            self.shown_s[kind] = self.shown_s.get(kind, 0.0) + seconds


@dataclass
class _InFlight:
    """Collectives of a computation that have begun, in their order: they share the links."""

    left: list[tuple[str, str, float]] = field(default_factory=list)
    """Of each: the name of its start or its channel, its kind, and the seconds it still needs."""

    begun: set[str] = field(default_factory=set)
    """Names of those that have not been ended, though they may be over."""

    def begin(self, name: str, kind: str, seconds: float) -> None:
        self.begun.add(name)
        self.left.append((name, kind, seconds))

    def work(self, seconds: float) -> None:
        """The device does something else for so long."""
        while self.left and seconds > 0:
            name, kind, needed = self.left[0]
            if needed > seconds:
                self.left[0] = (name, kind, needed - seconds)
                return
            seconds -= needed
            self.left.pop(0)

    def end(self, name: str, overlap: Overlap) -> None:
        """The device waits for it and for those before it, if it is not over already."""
        self.begun.discard(name)
        while any(one == name for one, _, _ in self.left):
            _, kind, seconds = self.left.pop(0)
            overlap.show(kind, seconds)


def measure_overlap(module: Module, known: Accelerator) -> Overlap:
    """What is shown of the collectives of a module's entry computation and all that it runs.

    Args:
      module: whose instructions stand in the order in which they run.
      known: the peaks of the device.
    """
    return _Schedule(module, known).of(module.entry)


@dataclass
class _Schedule:
    module: Module
    known: Accelerator
    seen: dict[str, Overlap] = field(default_factory=dict)

    def of(self, name: str) -> Overlap:
        """A computation that runs once."""
        if name not in self.seen:
            overlap, in_flight = Overlap(), _InFlight()
            for instruction in self.module.computations[name].instructions.values():
                self._step(self.module.computations[name], instruction, overlap, in_flight)
            self.seen[name] = overlap
        return self.seen[name]

    def _step(
        self, computation: Computation, instruction: Instruction, overlap: Overlap,
        in_flight: _InFlight,
    ) -> None:  # fmt: skip
        opcode = instruction.opcode
        if opcode in ("while", "call", "conditional"):
            self._run(computation, instruction, overlap, in_flight)
        elif opcode.endswith("-done"):
            in_flight.end(instruction.operands[0], overlap)
        elif kind := collective_kind(opcode):
            kind, seconds = self._received(computation, instruction, kind)
            if opcode.endswith("-start"):
                in_flight.begin(instruction.name, kind, seconds)
            else:
                overlap.show(kind, seconds)
        elif opcode not in _BACKGROUND:
            self._fused(computation, instruction, overlap, in_flight)

    def _run(
        self, computation: Computation, instruction: Instruction, overlap: Overlap,
        in_flight: _InFlight,
    ) -> None:  # fmt: skip
        """A loop, or other computations that run once."""
        times, names = 1, list(callees(self.module, instruction))
        if instruction.opcode == "while":
            times = trip_count(self.module, computation, instruction) or 1
            names = [instruction.attribute("body")]
        for name in names:
            inner = self.of(name)
            overlap.work_s += times * inner.work_s
            in_flight.work(times * inner.work_s)
            for kind, seconds in inner.shown_s.items():
                overlap.show(kind, times * seconds)

    def _fused(
        self, computation: Computation, instruction: Instruction, overlap: Overlap,
        in_flight: _InFlight,
    ) -> None:  # fmt: skip
        """An instruction that works: a fusion may begin, carry or end collectives meanwhile."""
        parts = list(self._parts(instruction))
        for part in parts:
            marks = " ".join(i.attributes for i in part.instructions.values())
            begins, ends = f"{_SPREAD}Start" in marks, f"{_SPREAD}Done" in marks
            for inner in part.instructions.values():
                if not (kind := collective_kind(inner.opcode)):
                    continue
                kind, seconds = self._received(part, inner, kind)
                channel = inner.attribute("channel_id")
                if begins:
                    in_flight.begin(channel, kind, seconds)
                elif ends:
                    in_flight.end(channel, overlap)
                elif channel not in in_flight.begun:
                    overlap.show(kind, seconds)
        seconds = self._work_s(computation, instruction, parts)
        overlap.work_s += seconds
        in_flight.work(seconds)

    def _parts(self, instruction: Instruction) -> Iterator[Computation]:
        for name in callees(self.module, instruction):
            part = self.module.computations[name]
            yield part
            for inner in part.instructions.values():
                yield from self._parts(inner)

    def _received(
        self, computation: Computation, instruction: Instruction, kind: str
    ) -> tuple[str, float]:
        kind, received = received_bytes(self.module, computation, instruction, kind)
        return kind, received / self.known.interconnect_bytes_per_s

    def _work_s(
        self, computation: Computation, instruction: Instruction, parts: Sequence[Computation]
    ) -> float:
        inside = [(part, inner) for part in parts for inner in part.instructions.values()]
        products_s = sum(
            product_flops(part, inner)
            / (
                self.known.highest_flops_per_s
                if "operand_precision={highest" in inner.attributes
                else self.known.bfloat16_flops_per_s
            )
            for part, inner in ((computation, instruction), *inside)
        )
        moved = instruction_bytes(self.module, computation, instruction)
        return max(products_s, moved / self.known.hbm_bytes_per_s)


def product_flops(computation: Computation, instruction: Instruction) -> float:
    """Operations of a matrix product, which the TPU compiler writes as a convolution; 0 of others.

    Args:
      computation: that the instruction stands in.
      instruction: any.
    """
    if instruction.opcode not in ("convolution", "dot"):
        return 0.0
    found = [computation.instructions.get(name) for name in instruction.operands]
    if len(found) != 2 or None in found:
        return 0.0
    left, right = (shape_dimensions(one.shape) for one in found if one)
    outputs = math.prod(shape_dimensions(instruction.shape))
    if instruction.opcode == "dot":
        contracted = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", instruction.attributes)
        sizes = [left[int(n)] for n in contracted[1].split(",") if n] if contracted else []
        return 2.0 * outputs * math.prod(sizes)
    labels = re.search(r"dim_labels=\w+_(\w+)->", instruction.attributes)
    if labels is None:
        return 0.0
    summed = math.prod(right) / right[labels[1].index("o")]
    # Of a batch of products: the others meet the zeros in between.
    dilated = re.search(r"lhs_dilate=([\dx]+)", instruction.attributes)
    for size in dilated[1].split("x") if dilated else ():
        summed /= int(size)
    return 2.0 * outputs * summed
