"""What a compiled step moves: bytes over the interconnect and bytes to and from memory.

Read from the text of the optimised HLO module. `cost_analysis()` of a compiled function would be
shorter, but it counts the body of a loop once, and scanned layers are a loop.
"""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field

_COLLECTIVES = (
    "all-gather",
    "all-reduce",
    "reduce-scatter",
    "all-to-all",
    "collective-permute",
)
BETWEEN_SLICES = "between slices"
"""What comes from other slices over the data center's network."""
_NO_TRAFFIC = {
    "send", "recv",
    "parameter", "get-tuple-element", "tuple", "bitcast", "constant", "while", "call",
    "conditional", "partition-id", "replica-id", "after-all", "iota", "broadcast",
    "opt-barrier", "custom-call", "async-start", "async-update",
}  # fmt: skip
_KERNEL = 'custom_call_target="tpu_custom_call"'
_SHAPE = re.compile(r"\b(pred|bf16|[a-z]+\d+[a-z0-9]*)\[([\d,]*)\](\{[^}]*\})?")
_COMPUTATION = re.compile(r"^(ENTRY )?%([\w.\-]+) \(")
_INSTRUCTION = re.compile(r"^\s+(ROOT )?%([\w.\-]+) = ")
_NAME = re.compile(r"%([\w.\-]+)")


@dataclass(frozen=True)
class Instruction:
    """One line of a computation."""

    name: str
    opcode: str
    shape: str
    """As printed: `bf16[8,128]{1,0:T(8,128)S(1)}`, or a tuple of such."""
    operand_text: str
    """What stands in the parentheses: names, or the value of a constant."""
    attributes: str

    @property
    def operands(self) -> list[str]:
        """Names of the instructions it reads."""
        return _NAME.findall(self.operand_text)

    def attribute(self, key: str) -> str:
        """The `x` of `body=%x`, or the `3` of `channel_id=3`; empty where there is none."""
        found = re.search(rf"\b{key}=%?([\w.\-]+)", self.attributes)
        return found.group(1) if found else ""


@dataclass(frozen=True)
class Computation:
    """A named list of instructions, the last one its result."""

    name: str
    instructions: dict[str, Instruction]

    @property
    def root(self) -> Instruction:
        """The instruction whose value is the computation's."""
        return list(self.instructions.values())[-1]


@dataclass(frozen=True)
class Module:
    """A parsed HLO module."""

    computations: dict[str, Computation]
    entry: str
    partitions: int


def shape_bytes(shape: str, *, hbm_only: bool = False) -> int:
    """Bytes of an array, or of all arrays of a tuple.

    Args:
      shape: as printed in HLO.
      hbm_only: leave out what the layout puts into another memory than the main one (`S(1)` is a
        TPU core's own).
    """
    total = 0
    for dtype, dimensions, layout in _SHAPE.findall(shape):
        if hbm_only and re.search(r"S\([1-9]", layout):
            continue
        digits = re.search(r"\d+", dtype)
        bits = int(digits.group()) if digits else 8  # pred
        count = math.prod(int(d) for d in dimensions.split(",") if d)
        total += -(-count * bits // 8)
    return total


def shape_dimensions(shape: str) -> list[int]:
    """The sizes of an array's axes, or of a tuple's first array."""
    found = _SHAPE.search(shape)
    return [int(size) for size in found[2].split(",") if size] if found else []


def split_tuple(shape: str) -> list[str]:
    """The elements of a tuple's shape."""
    elements, depth, first = [], 0, 1
    for i, character in enumerate(shape):
        depth += (character in "([{") - (character in ")]}")
        if (depth == 1 and character == ",") or depth == 0:
            elements.append(shape[first:i].strip())
            first = i + 1
    return elements


def _closing(text: str, start: int) -> int:
    """Index of the parenthesis that closes the one at `start`."""
    depth = 0
    for i in range(start, len(text)):
        depth += (text[i] == "(") - (text[i] == ")")
        if depth == 0:
            return i
    raise ValueError(f"unbalanced parentheses: {text[start : start + 80]}")


def _parse_instruction(line: str, name: str, start: int) -> Instruction:
    end = _closing(line, start) + 1 if line[start] == "(" else line.index(" ", start)
    opening = line.index("(", end)
    closing = _closing(line, opening)
    return Instruction(
        name, line[end:opening].strip(), line[start:end], line[opening + 1 : closing],
        line[closing + 1 :],
    )  # fmt: skip


def parse(text: str) -> Module:
    """Parses `compiled.as_text()`.

    Raises: ValueError when it isn't the text of an HLO module.
    """
    computations: dict[str, Computation] = {}
    entry = ""
    instructions: dict[str, Instruction] | None = None
    for line in text.splitlines():
        if header := _COMPUTATION.match(line):
            instructions = {}
            computations[header.group(2)] = Computation(header.group(2), instructions)
            entry = header.group(2) if header.group(1) else entry
        elif line.startswith("}"):
            instructions = None
        elif instructions is not None and (found := _INSTRUCTION.match(line)):
            name = found.group(2)
            instructions[name] = _parse_instruction(line, name, found.end())
    if not entry:
        raise ValueError("no ENTRY computation: this is no HLO module")
    partitions = re.search(r"num_partitions=(\d+)", text[: text.index("\n")])
    return Module(computations, entry, int(partitions.group(1)) if partitions else 1)


def callees(module: Module, instruction: Instruction) -> Iterator[str]:
    """Computations that an instruction runs once: of fusions, calls, branches and async starts."""
    if instruction.opcode in ("fusion", "call", "async-start", "conditional", "custom-call"):
        named = re.search(
            r"\b(?:calls|to_apply|called_computations|branch_computations)="
            r"(\{[^}]*\}|%[\w.\-]+)",
            instruction.attributes,
        )
        for name in _NAME.findall(named.group(1)) if named else ():
            if name in module.computations:
                yield name


def trip_count(module: Module, computation: Computation, loop: Instruction) -> int | None:
    """How often the body of a `while` runs.

    The compiler notes it for some loops; for the others it is found from a counter that is compared
    with a constant and raised by a constant.

    Returns: None when it is unknown.
    """
    noted = re.search(r'"known_trip_count":\{"n":"(\d+)"\}', loop.attributes)
    if noted:
        return int(noted.group(1))
    condition = module.computations[loop.attribute("condition")]
    body = module.computations[loop.attribute("body")]
    compare = condition.root
    if compare.opcode != "compare" or "direction=LT" not in compare.attributes:
        return None
    index = condition.instructions[compare.operands[0]].attribute("index")
    initial = computation.instructions.get(loop.operands[0])
    if not index or initial is None or initial.opcode != "tuple":
        return None
    counter = int(index)
    limit = _constant(condition, compare.operands[1])
    first = _constant(computation, initial.operands[counter])
    step = _step(body, counter)
    if limit is None or first is None or not step:
        return None
    return max(0, -(-(limit - first) // step))


def _constant(computation: Computation, name: str) -> int | None:
    instruction = computation.instructions.get(name)
    while instruction is not None and instruction.opcode in ("copy", "bitcast", "convert"):
        instruction = computation.instructions.get(instruction.operands[0])
    if instruction is None or instruction.opcode != "constant":
        return None
    return int(instruction.operand_text) if instruction.operand_text.isdigit() else None


def _step(body: Computation, counter: int) -> int | None:
    """What an iteration adds to element `counter` of the loop's tuple."""
    raised = body.instructions.get(body.root.operands[counter])
    while raised is not None and raised.opcode in ("copy", "bitcast"):
        raised = body.instructions.get(raised.operands[0])
    if raised is None or raised.opcode != "add":
        return None
    return next((c for o in raised.operands if (c := _constant(body, o)) is not None), None)


@dataclass
class Traffic:
    """Of one device in one step, loops multiplied by their trip counts."""

    collective_bytes: dict[str, float] = field(default_factory=dict)
    """Kind → bytes that a device receives; `BETWEEN_SLICES` is one."""
    collective_count: dict[str, int] = field(default_factory=dict)
    """Kind → how often one runs."""
    hbm_bytes: float = 0.0
    """Bytes read from and written to main memory: an estimate, of each instruction's operands
    and results that lie there."""
    unknown_loops: int = 0
    """Loops whose trip count is unknown; their bodies count once."""


def measure(module: Module) -> Traffic:
    """Adds up the traffic of a module's entry computation and all that it runs."""
    traffic = Traffic()
    _visit(module, module.entry, 1, False, traffic, set())
    return traffic


def _visit(
    module: Module, name: str, times: int, is_fused: bool, traffic: Traffic, seen: set[str]
) -> None:
    computation = module.computations[name]
    for instruction in computation.instructions.values():
        if instruction.opcode == "while":
            trips = trip_count(module, computation, instruction)
            traffic.unknown_loops += trips is None
            body = instruction.attribute("body")
            _visit(module, body, times * (1 if trips is None else trips), False, traffic, seen)
            continue
        kind = instruction.opcode.removesuffix("-start")
        if collective_kind(instruction.opcode):
            # The compiler spreads a collective over several fusions, to overlap it with their
            # work; equal channels mean that they are one.
            channel = instruction.attribute("channel_id")
            if not (is_fused and channel in seen):
                kind, received = received_bytes(module, computation, instruction, kind)
                if received:
                    _add(traffic, kind, times, received)
            if is_fused and channel:
                seen.add(channel)
        elif kind == "recv" and "xla_megascale_runtime" in instruction.attributes:
            _add(traffic, BETWEEN_SLICES, times, _from_other_slices(module, instruction))
        elif not is_fused:
            traffic.hbm_bytes += times * instruction_bytes(module, computation, instruction)
        for callee in callees(module, instruction):
            fused = is_fused or instruction.opcode in ("fusion", "custom-call")
            _visit(module, callee, times, fused, traffic, seen)


def collective_kind(opcode: str) -> str:
    """The kind of a collective or of its start; empty for another instruction."""
    kind = opcode.removesuffix("-start")
    return kind if kind in _COLLECTIVES else ""


def received_bytes(
    module: Module, computation: Computation, instruction: Instruction, kind: str
) -> tuple[str, float]:
    """The kind of a collective, and the bytes that a device receives in it.

    Args:
      module: the program.
      computation: that the instruction stands in.
      instruction: a collective or its start.
      kind: as the instruction has it; some are fusions that do less than that.
    """
    size = _group_size(instruction, module.partitions)
    if size == 1:
        return kind, 0.0
    if kind == "all-reduce" and computation.name.startswith("all-reduce-scatter"):
        kind = "reduce-scatter"  # a fusion of the TPU compiler that keeps a slice of the sum
    sent = sum(shape_bytes(s) for s in _operand_shapes(computation, instruction))
    received = {
        "all-gather": sent * (size - 1),
        "all-reduce": 2 * sent * (size - 1) / size,
        "reduce-scatter": sent * (size - 1) / size,
        "all-to-all": sent * (size - 1) / size,
        "collective-permute": sent,
    }[kind]
    return kind, received


def _from_other_slices(module: Module, recv: Instruction) -> float:
    """Bytes that the network brings to a device of a slice, on an average of the slice's devices.

    The compiler parts a collective over slices into collectives within each and transfers by the
    hosts, of which `recv` takes the result: what the device had before counts for nothing, and a
    sum is received in parts on the way out and back.

    Raises: ValueError for another kind of transfer than collectives become.
    """
    result = shape_bytes(split_tuple(recv.shape)[0])
    kind = re.search(r'_xla_megascale_transfer_type="(\w+)"', recv.attributes)
    target = re.search(r'_xla_megascale_target=("\{([\d,]+)\}x|\{\{.*?\}\})', recv.attributes)
    if kind is None or target is None:
        raise ValueError(f"no kind or target in the transfer between slices {recv.name}")
    if kind[1] == "ONE_TO_ONE":
        # {{100002->200000},...}: device 2 of slice 1 sends to device 0 of slice 2.
        pairs = re.findall(r"->(\d+)\d{5}\b", target[1])
        return result * len(pairs) / len(set(pairs)) / module.partitions
    slices = len(target[2].split(","))
    shares = {
        "ALL_REDUCE": 2 * (slices - 1) / slices,
        "ALL_GATHER": (slices - 1) / slices,
        "ALL_TO_ALL": (slices - 1) / slices,
        "REDUCE_SCATTER": slices - 1,
    }
    if kind[1] not in shares:
        raise ValueError(f"{recv.name} is a transfer between slices of unknown kind {kind[1]}")
    return result * shares[kind[1]]


def _add(traffic: Traffic, kind: str, times: int, received: float) -> None:
    traffic.collective_bytes[kind] = traffic.collective_bytes.get(kind, 0) + times * received
    traffic.collective_count[kind] = traffic.collective_count.get(kind, 0) + times


def _group_size(instruction: Instruction, partitions: int) -> int:
    """Devices that take part in one group of a collective."""
    text = instruction.attributes
    if instruction.opcode.startswith("collective-permute"):
        return partitions
    if listed := re.search(r"replica_groups=\{\{([\d,]*)\}", text):
        return len(listed.group(1).split(","))
    if counted := re.search(r"replica_groups=\[\d+,(\d+)\]<=", text):
        return int(counted.group(1))
    if named := re.search(r"replica_groups=mesh\[([^\]]*)\]\s*\{([^}]*)\}", text):
        sizes = {k: int(v) for k, v in re.findall(r"'([^']+)'=(\d+)", named.group(1))}
        axes = re.findall(r"'([^']+)'(?::\(\d+\)(\d+))?", named.group(2))
        return math.prod(int(part) if part else sizes[axis] for axis, part in axes)
    return partitions


def _operand_shapes(computation: Computation, instruction: Instruction) -> Iterator[str]:
    for name in instruction.operands:
        if name in computation.instructions:
            yield computation.instructions[name].shape


def _hbm(shape: str) -> int:
    return shape_bytes(shape, hbm_only=True)


def instruction_bytes(module: Module, computation: Computation, instruction: Instruction) -> int:
    """Bytes that an instruction outside of fusions reads from and writes to main memory.

    A slice of an array costs the slice and not the array, whether read or updated in place, and
    so does a gather.
    """
    opcode = instruction.opcode
    if _KERNEL in instruction.attributes:
        # Of the kernels of `attention_tpu` a step reads and writes each array once.
        return _hbm(instruction.shape) + sum(map(_hbm, _operand_shapes(computation, instruction)))
    if opcode in _NO_TRAFFIC or opcode.endswith("-done") or opcode.startswith(_COLLECTIVES):
        return 0
    if opcode in ("copy-start", "slice-start", "dynamic-slice-start"):
        # In the background: the result names the source, the target and a signal.
        return _transfer_bytes(*split_tuple(instruction.shape)[:2])
    if opcode == "fusion":
        fused = module.computations.get(instruction.attribute("calls"))
        if fused is not None:
            return _fusion_bytes(computation, instruction, fused)
    shapes = list(_operand_shapes(computation, instruction))
    if opcode in ("dynamic-slice", "slice", "gather"):
        return _transfer_bytes(shapes[0], instruction.shape)
    if opcode == "dynamic-update-slice":
        return 2 * _hbm(shapes[1])
    if opcode == "scatter":
        return 3 * _hbm(shapes[-1])
    return _hbm(instruction.shape) + sum(map(_hbm, shapes))


def _transfer_bytes(source: str, target: str) -> int:
    """What the smaller of the two holds, once for each of them that lies in main memory."""
    size = min(shape_bytes(source), shape_bytes(target))
    return size * ((_hbm(source) > 0) + (_hbm(target) > 0))


def _fusion_bytes(computation: Computation, fusion: Instruction, fused: Computation) -> int:
    parameters = {
        int(i.operand_text): i.name for i in fused.instructions.values() if i.opcode == "parameter"
    }
    updated = {name for i in _updates(fused) for name in _through_bitcasts(fused, i.operands[0])}
    total = 0
    for number, operand in enumerate(fusion.operands):
        shape = (
            computation.instructions[operand].shape if operand in computation.instructions else ""
        )
        if number in parameters and _hbm(shape):
            total += _parameter_bytes(fused, parameters[number], shape, updated)
    updates = _updates(fused)
    if updates:
        written = sum(shape_bytes(fused.instructions[i.operands[1]].shape) for i in updates)
        others = _hbm(fusion.shape) - sum(_hbm(i.shape) for i in updates)
        return total + (written + max(0, others) if _hbm(fusion.shape) else 0)
    return total + _hbm(fusion.shape)


def _updates(fused: Computation) -> list[Instruction]:
    """Updates in place that a fusion gives back."""
    roots = fused.root.operands if fused.root.opcode == "tuple" else [fused.root.name]
    found = [fused.instructions[n] for root in roots for n in _through_bitcasts(fused, root)]
    return [i for i in found if i.opcode == "dynamic-update-slice"]


def _through_bitcasts(computation: Computation, name: str) -> list[str]:
    """The name, and what it is a bitcast of."""
    names = [name]
    while computation.instructions[names[-1]].opcode == "bitcast":
        names.append(computation.instructions[names[-1]].operands[0])
    return names


def _parameter_bytes(fused: Computation, name: str, shape: str, updated: set[str]) -> int:
    if name in updated:
        return 0
    users = [i for i in fused.instructions.values() if name in i.operands]
    if users and all(
        u.opcode in ("dynamic-slice", "slice", "gather") and u.operands[0] == name for u in users
    ):
        return min(_hbm(shape), sum(shape_bytes(u.shape) for u in users))
    return _hbm(shape)
