"""Reads the text of an optimised HLO module: computations, instructions, shapes, loops.

Only what `traffic.py` asks for. `cost_analysis()` of a compiled function would be shorter, but it
counts the body of a loop once, and scanned layers are a loop.
"""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass

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

    def attribute_name(self, key: str) -> str | None:
        """The computation that an attribute such as `body=%x` names."""
        found = re.search(rf"\b{key}=%([\w.\-]+)", self.attributes)
        return found.group(1) if found else None

    def attribute_number(self, key: str) -> int | None:
        """The number of an attribute such as `channel_id=3`."""
        found = re.search(rf"\b{key}=(\d+)", self.attributes)
        return int(found.group(1)) if found else None


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

    Returns: None when it cannot be told.
    """
    noted = re.search(r'"known_trip_count":\{"n":"(\d+)"\}', loop.attributes)
    if noted:
        return int(noted.group(1))
    condition = module.computations[loop.attribute_name("condition") or ""]
    body = module.computations[loop.attribute_name("body") or ""]
    compare = condition.root
    if compare.opcode != "compare" or "direction=LT" not in compare.attributes:
        return None
    counter = condition.instructions[compare.operands[0]].attribute_number("index")
    initial = computation.instructions.get(loop.operands[0])
    if counter is None or initial is None or initial.opcode != "tuple":
        return None
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
