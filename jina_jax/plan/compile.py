"""Compiles the real train step for devices that need not be attached. Runs in a process of its own.

`python -m jina_jax.plan.compile` reads a pickled `Request` from standard input and writes lines of
JSON to standard output: `{"progress": ...}`, and last `{"result": ...}`, a `Compiled`.
"""

import dataclasses
import json
import math
import os
import pickle
import re
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np

from jina_jax.config import FeedConfig, RunConfig
from jina_jax.errors import UserError
from jina_jax.feed.batch import TEXTS_ALONE, BatchFields, RecordKind
from jina_jax.feed.packing import bucket_rows, place
from jina_jax.model.attention import Kernel
from jina_jax.model.flops import Work
from jina_jax.plan.topology import LOCAL, find_topology
from jina_jax.system.processes import die_with_parent

_UNITS = {"": 1, "B": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


@dataclass(frozen=True)
class BatchShape:
    """A global batch of pairs or triplets whose texts all have their column's length."""

    pairs: int
    lengths: tuple[int, ...]
    """Tokens of a query, of a positive and of each hard negative."""
    rows: int
    row_tokens: int
    fields: BatchFields = TEXTS_ALONE
    is_scored: bool = False
    """Of pairs with a score."""

    @property
    def kind(self) -> RecordKind:
        """Of its records."""
        return RecordKind(len(self.lengths), self.is_scored)

    @property
    def negatives(self) -> int:
        """Hard negatives of a record."""
        return len(self.lengths) - 2

    @property
    def texts(self) -> Work:
        """Real tokens, and the positions that attention within texts scores."""
        return Work(self.pairs * sum(self.lengths), self.pairs * sum(n * n for n in self.lengths))

    @property
    def computed(self) -> Work:
        """The rows as they are, padding included."""
        return Work.of_rows(self.rows, self.row_tokens)


def batch_shape(
    feed: FeedConfig, tokens: int, negatives: int = 0, fields: BatchFields = TEXTS_ALONE,
    is_scored: bool = False,
) -> BatchShape:  # fmt: skip
    """The batch of texts of a length, packed as the feed does.

    Args:
      feed: batch size, limits and packing.
      tokens: of each text; 0 takes texts at the feed's limits.
      negatives: hard negatives of each record.
      fields: that the batches of the run have.
      is_scored: whether records are pairs with a score.
    Raises: UserError when a number is negative.
    """
    for name, value in (("tokens", tokens), ("negatives", negatives)):
        if value < 0:
            raise UserError(f"--{name} {value} must not be negative")
    limits = (feed.query_tokens, *[feed.positive_tokens] * (1 + negatives))
    lengths = tuple(min(tokens or limit, limit) for limit in limits)
    placement = place(
        np.tile(lengths, feed.global_batch_size // feed.num_groups),
        row_tokens=feed.row_tokens,
        texts_per_row=feed.texts_per_row,
    )
    multiple = math.lcm(feed.rows_multiple, feed.num_groups)
    rows = bucket_rows(placement.num_rows * feed.num_groups, multiple)
    return BatchShape(
        feed.global_batch_size, lengths, rows, feed.row_tokens, fields, is_scored and not negatives
    )


@dataclass(frozen=True)
class Request:
    """What to compile."""

    config: RunConfig
    shape: BatchShape
    topology: str


@dataclass(frozen=True)
class Compiled:
    """What the compiler said of a step, for one device."""

    device_kind: str
    devices: int
    fits: bool
    needed_bytes: int
    """Main memory: from the memory analysis, or from the error where it doesn't fit."""
    available_bytes: int
    """As the error or this machine says it; 0 where neither does."""
    argument_bytes: int = 0
    temporary_bytes: int = 0
    output_bytes: int = 0
    """Beyond what reuses the memory of the arguments."""
    hbm_bytes: float = 0.0
    """Read and written in a step."""
    collective_bytes: dict[str, float] = field(default_factory=dict)
    collective_count: dict[str, int] = field(default_factory=dict)
    unknown_loops: int = 0
    shown_s: dict[str, float] = field(default_factory=dict)
    """Kind of collective → seconds that the device waits for it, at published peaks; empty where
    these are not known."""
    compile_s: float = 0.0
    attention: Kernel = "at_once"
    hosts: int = 1
    """That the devices belong to."""


def abstract_arguments(config: RunConfig, shape: BatchShape) -> tuple[Any, Any]:
    """Shapes of the state and of a batch, without their values."""
    from jina_jax.train.step import batch_shapes, state_shapes

    return state_shapes(config), batch_shapes(config, shape.rows, shape.kind, shape.fields)


def topology_devices(name: str) -> Sequence[Any]:
    """The devices of TPU slices, described and not attached, or those of this machine."""
    import jax

    if name == LOCAL:
        return jax.devices()
    from jax.experimental import topologies

    found = find_topology(name)
    more: dict[str, Any] = {"num_slices": found.slices} if found.slices > 1 else {}
    if found.chips_per_host == 1:  # libtpu 0.0.42 takes every host to have four.
        more["chips_per_host_bounds"] = (1, 1, 1)
    return topologies.get_topology_desc(
        platform="tpu", topology_name=found.slice_name, **more
    ).devices


def compile_step(request: Request, progress: Callable[[str], None]) -> Compiled:
    """Lowers and compiles the step, and reads off what it needs.

    Raises: UserError when the batch doesn't divide over the devices.
    """
    import jax

    from jina_jax.devices.accelerators import accelerator
    from jina_jax.devices.memory import local_memory_bytes, program_bytes
    from jina_jax.devices.mesh import check_divides, make_mesh
    from jina_jax.plan.overlap import measure_overlap
    from jina_jax.plan.traffic import measure, parse
    from jina_jax.train.step import attention_kernel, make_train_step

    mesh = make_mesh(request.config.mesh, topology_devices(request.topology))
    devices = list(mesh.devices.flat)
    check_divides(request.config, mesh)
    kind, began = devices[0].device_kind, time.perf_counter()
    kernel, why = attention_kernel(request.config, mesh)
    if why:
        progress(f"attention is left to the compiler: {why}")
    progress("tracing")
    step = cast(jax.stages.Wrapped, make_train_step(request.config, mesh))
    lowered = step.lower(*abstract_arguments(request.config, request.shape))
    progress(f"compiling for {len(devices)} × {kind}")
    with tempfile.TemporaryDirectory() as folder:
        # Not `compiled.as_text()`: it cannot print some asynchronous slices of TPU programs.
        dump: dict[str, str | bool] = {"xla_dump_to": folder, "xla_dump_hlo_as_text": True}
        try:
            compiled = lowered.compile(compiler_options=dump)
        except jax.errors.JaxRuntimeError as error:
            needed, available = out_of_memory(str(error))
            return Compiled(
                kind, len(devices), False, needed, available,
                compile_s=time.perf_counter() - began, attention=kernel,
            )  # fmt: skip
        compile_s = time.perf_counter() - began
        progress("reading the compiled step")
        (program,) = Path(folder).glob("*after_optimizations.txt")
        module, known = parse(program.read_text(encoding="utf-8")), accelerator(kind)
        traffic = measure(module)
        shown_s = measure_overlap(module, known).shown_s if known else {}
    memory = compiled.memory_analysis()
    assert memory is not None
    output = memory.output_size_in_bytes - memory.alias_size_in_bytes
    needed = program_bytes(memory, devices[0].platform)
    available = local_memory_bytes(devices) if request.topology == LOCAL else 0
    return Compiled(
        kind, len(devices), not available or needed <= available, needed, available,
        memory.argument_size_in_bytes, needed - memory.argument_size_in_bytes - output, output,
        shown_s=shown_s, compile_s=compile_s, attention=kernel,
        hosts=len({d.process_index for d in devices}),
        **dataclasses.asdict(traffic),
    )  # fmt: skip


def out_of_memory(message: str) -> tuple[int, int]:
    """The bytes needed and available that a compiler's RESOURCE_EXHAUSTED names.

    Raises: RuntimeError with the message when it is another error, or names no figures.
    """
    size = r"([\d.]+)([KMGT]?)"
    for pattern in (
        rf"\({size}\) exceeds available HBM \({size}\)",
        rf"Used {size} of {size} hbm",
    ):
        if "RESOURCE_EXHAUSTED" in message and (found := re.search(pattern, message)):
            needed, needed_unit, available, available_unit = found.groups()
            return (
                round(float(needed) * _UNITS[needed_unit]),
                round(float(available) * _UNITS[available_unit]),
            )
    raise RuntimeError(message)


def main() -> int:
    """Answers one request. What native libraries print goes to standard error."""
    die_with_parent()
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def reply(kind: str, value: Any) -> None:
        replies.write(json.dumps({kind: value}) + "\n")
        replies.flush()

    request = pickle.load(sys.stdin.buffer)  # noqa: S301  Of the process that started this one.
    try:
        result = compile_step(request, lambda text: reply("progress", text))
    except UserError as error:
        reply("user_error", str(error))
        return 0
    reply("result", dataclasses.asdict(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
