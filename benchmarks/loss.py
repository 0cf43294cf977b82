"""Memory and time of the pair loss in tiles, beside the whole similarity matrix, and of its pieces.

All compute the loss in both directions and its gradients with respect to queries and positives,
in float32. Memory is what the compiled program wants beside its arguments and results; it is read
off the compiler, so that batches can be looked at that this machine could not run. Times alternate
between those of a table.

    python benchmarks/loss.py
    python benchmarks/loss.py --pieces-alone
"""

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import tyro

TEMPERATURE = 0.05
DEVICES = 8


@dataclass(frozen=True)
class Options:
    """What to measure."""

    pairs: tuple[int, ...] = (4096, 16384, 65536, 131072, 1048576)
    """Pairs in a batch."""
    dimension: int = 512
    """Of the embeddings."""
    timed_pairs: int = 16384
    """Batches of at most this many pairs are run."""
    whole_pairs: int = 131072
    """The whole matrix is compiled for at most this many."""
    rounds: int = 3
    """Times each is run; the median counts."""
    tile_bytes: int = 16 * 2**20
    """As in the configuration of a run."""
    piece_pairs: tuple[int, ...] = (16384, 131072)
    """Pairs in a batch of the pieces."""
    guide_dimension: int = 384
    """Of the guide's embeddings; all-MiniLM-L6-v2 has 384."""
    pieces_alone: bool = False
    """Measure the pieces of the loss beside the plain one, and nothing else."""
    timed_pieces: int = 16384
    """Pieces are run on batches of at most this many pairs."""
    of_many_devices: bool = False
    """Set by the benchmark itself: print the memory on several devices."""


def _whole(q_BD: Any, p_BD: Any) -> Any:
    """The same loss from the matrix of all logits."""
    import jax
    import jax.numpy as jnp

    logits_BB = jnp.matmul(q_BD, p_BD.T, precision=jax.lax.Precision.HIGHEST) / TEMPERATURE
    positive_B = jnp.sum(q_BD * p_BD, axis=-1) / TEMPERATURE
    sums = jax.nn.logsumexp(logits_BB, axis=1) + jax.nn.logsumexp(logits_BB, axis=0)
    return jnp.mean(sums - 2 * positive_B)


def _in_tiles(options: Options, devices: int, gather: Any) -> Callable[[Any, Any], Any]:
    from jina_jax.config import MeshConfig
    from jina_jax.devices.mesh import make_mesh
    from jina_jax.train.loss.contrastive import contrastive_loss
    from jina_jax.train.loss.log_sums import LossSharding

    sharding = LossSharding(make_mesh(MeshConfig(data=devices)), gather, options.tile_bytes)
    return lambda q, p: contrastive_loss(q, p, temperature=TEMPERATURE, sharding=sharding).loss


def _compile(loss: Callable[[Any, Any], Any], pairs: int, options: Options, devices: int) -> Any:
    import jax

    from jina_jax.config import MeshConfig
    from jina_jax.devices.mesh import make_mesh, replicated, split_first_axis

    mesh = make_mesh(MeshConfig(data=devices))
    rows = split_first_axis(mesh)
    array = jax.ShapeDtypeStruct((pairs, options.dimension), np.float32, sharding=rows)
    step = jax.jit(
        jax.value_and_grad(loss, argnums=(0, 1)), out_shardings=(replicated(mesh), (rows, rows))
    )
    return step.lower(array, array).compile()


def _all_gib(compiled: Any) -> float:
    """With the embeddings, the guide's and the gradients."""
    memory = compiled.memory_analysis()
    sizes = memory.argument_size_in_bytes, memory.output_size_in_bytes
    return (memory.temp_size_in_bytes + sum(sizes)) / 2**30


def _temporaries_gib(compiled: Any) -> float:
    return compiled.memory_analysis().temp_size_in_bytes / 2**30


def _unit(rng: np.random.Generator, pairs: int, dimension: int) -> np.ndarray:
    x_BD = rng.standard_normal((pairs, dimension), dtype=np.float32)
    return x_BD / np.linalg.norm(x_BD, axis=1, keepdims=True)


def _medians_s(programs: list[Any], pairs: int, options: Options) -> list[float]:
    import jax

    rng = np.random.default_rng(0)
    q_BD, p_BD = (jax.device_put(_unit(rng, pairs, options.dimension)) for _ in range(2))
    seconds: list[list[float]] = [[] for _ in programs]
    values = []
    for _ in range(options.rounds):
        for program, times in zip(programs, seconds, strict=True):
            began = time.perf_counter()
            value, _ = jax.block_until_ready(program(q_BD, p_BD))
            times.append(time.perf_counter() - began)
            values.append(float(value))
    assert np.ptp(values) < 1e-5 * values[0], values
    return [statistics.median(times) for times in seconds]


def _one_device(options: Options) -> None:
    print("| pairs | whole, GiB | tiles, GiB | whole, s | tiles, s | ratio of times |")
    print("|---|---|---|---|---|---|")
    for pairs in options.pairs:
        tiles = _compile(_in_tiles(options, 1, "all_gather"), pairs, options, 1)
        cells = [f"{pairs:,}", "", f"{_temporaries_gib(tiles):.3f}", "", "", ""]
        programs = [tiles]
        if pairs <= options.whole_pairs:
            programs.insert(0, _compile(_whole, pairs, options, 1))
            cells[1] = f"{_temporaries_gib(programs[0]):.3f}"
        if pairs <= options.timed_pairs:
            whole_s, tiles_s = _medians_s(programs, pairs, options)
            cells[3:] = f"{whole_s:.2f}", f"{tiles_s:.2f}", f"{tiles_s / whole_s:.2f}"
        print("| " + " | ".join(cells) + " |", flush=True)


def _pieces() -> dict[str, Any]:
    from jina_jax.config import LossConfig

    return {
        "plain": LossConfig(),
        "all directions, one partition": LossConfig(
            query_query_weight=1.0, positive_positive_weight=1.0, partition="joint"
        ),
        "masked by the model": LossConfig(mask_by="model"),
        "masked by a guide": LossConfig(mask_by="guide"),
        "hardness": LossConfig(in_batch_hardness=9.0),
        "spread": LossConfig(spread_weight=1.0),
    }


def _piece(config: Any, pairs: int, options: Options) -> Any:
    """Compiles a function of queries, positives and a guide's embeddings."""
    import jax

    from jina_jax.config import MeshConfig
    from jina_jax.devices.mesh import make_mesh
    from jina_jax.train.loss.contrastive import contrastive_loss
    from jina_jax.train.loss.log_sums import LossSharding

    sharding = LossSharding(make_mesh(MeshConfig(data=1)), "all_gather", options.tile_bytes)

    def loss(q: Any, p: Any, guide: Any) -> Any:
        return contrastive_loss(
            q, p, temperature=TEMPERATURE, sharding=sharding, config=config, guide_BTG=guide
        ).loss

    array = jax.ShapeDtypeStruct((pairs, options.dimension), np.float32)
    guide = jax.ShapeDtypeStruct((pairs, 2, options.guide_dimension), np.int8)
    return jax.jit(jax.value_and_grad(loss, (0, 1))).lower(array, array, guide).compile()


def _compare_pieces(options: Options) -> None:
    import jax

    print("| pairs | piece | temporary, GiB | in all, GiB | beside plain | s | beside plain |")
    print("|---|---|---|---|---|---|---|")
    for pairs in options.piece_pairs:
        programs = {name: _piece(config, pairs, options) for name, config in _pieces().items()}
        gib = {name: _all_gib(program) for name, program in programs.items()}
        seconds: dict[str, list[float]] = {name: [] for name in programs}
        if pairs <= options.timed_pieces:
            rng = np.random.default_rng(0)
            q, p = (jax.device_put(_unit(rng, pairs, options.dimension)) for _ in range(2))
            flat = _unit(rng, 2 * pairs, options.guide_dimension)
            guide = jax.device_put(np.rint(500 * flat).astype(np.int8).reshape(pairs, 2, -1))
            for _ in range(options.rounds):
                for name, program in programs.items():
                    began = time.perf_counter()
                    jax.block_until_ready(program(q, p, guide))
                    seconds[name].append(time.perf_counter() - began)
        for name, times in seconds.items():
            cells = [f"{pairs:,}", name, f"{_temporaries_gib(programs[name]):.3f}"]
            cells += [f"{gib[name]:.3f}", f"{gib[name] / gib['plain']:.2f}"]
            # Side by side, round by round.
            ratios = [a / b for a, b in zip(times, seconds["plain"], strict=True)]
            if times:
                cells += [f"{statistics.median(times):.2f}", f"{statistics.median(ratios):.2f}"]
            print("| " + " | ".join(cells + [""] * (7 - len(cells))) + " |", flush=True)


def _many_devices(options: Options) -> None:
    print(f"| pairs | all_gather, GiB on each of {DEVICES} | ring, GiB on each of {DEVICES} |")
    print("|---|---|---|")
    for pairs in options.pairs:
        found = [
            _compile(_in_tiles(options, DEVICES, gather), pairs, options, DEVICES)
            for gather in ("all_gather", "ring")
        ]
        print(f"| {pairs:,} | " + " | ".join(f"{_temporaries_gib(c):.3f}" for c in found) + " |")


def main() -> None:
    """Runs the benchmark, or the part of it that wants several devices."""
    options = tyro.cli(Options, description=__doc__)
    if options.of_many_devices:
        _many_devices(options)
        return
    if not options.pieces_alone:
        _one_device(options)
        print(flush=True)
    _compare_pieces(options)
    if options.pieces_alone:
        return
    print(flush=True)
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={DEVICES}"
    subprocess.run(
        [sys.executable, __file__, *sys.argv[1:], "--of-many-devices"],
        env=os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
        check=True,
    )


if __name__ == "__main__":
    main()
