"""What preparation costs as data grow: 0.5, 2 and 8 million pairs with the files of 1.6 billion.

    python benchmarks/prepare_scale.py

Blocks and partitions are a two-hundredth of what they are at 1.6 billion pairs, so that 8 million
have the same numbers of them: some 1,600 runs, 2,048 partitions, and as many ranges as their
product. If a pair cost the same at every size, work that grows with the square of the data would
show as time a pair. Each size runs in a process of its own; memory is what a process has for itself
(unique set size), sampled ten times a second. The seconds of all processors are shown beside those
of the clock, since they depend less on what else the machine does.
"""

import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil
import tyro
from prepare_speed import engine, input_in

from jina_jax.prepare import ingest, pipeline

_SCALED_BYTES = 850_000
"""Of a block, and of a partition."""


@dataclass(frozen=True)
class Options:
    """What to measure."""

    pairs: tuple[int, ...] = (500_000, 2_000_000, 8_000_000)
    workers: int = 2
    folder: Path | None = None
    """Work here, and keep the input for another run; a temporary folder otherwise."""


@dataclass(frozen=True)
class Measured:
    """One size."""

    pairs: int
    blocks: int
    partitions: int
    clock_s: float
    processors_s: float
    driver_mib: float
    worker_mib: float
    """Of the largest worker."""


class _Peaks:
    """Samples the memory of this process and of its children while a block runs."""

    def __init__(self) -> None:
        self.driver = self.worker = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._sample)

    def __enter__(self) -> "_Peaks":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _sample(self) -> None:
        me = psutil.Process()
        while not self._stop.wait(0.1):
            self.driver = max(self.driver, me.memory_full_info().uss)
            for child in me.children(recursive=True):
                try:
                    self.worker = max(self.worker, child.memory_full_info().uss)
                except psutil.Error:
                    continue


def measure(pairs: int, workers: int, folder: Path) -> Measured:
    """Runs the stages before tokenising, in this process and its workers."""
    for module, name in (
        (ingest, "BLOCK_BYTES"), (ingest, "LARGEST_BLOCK_BYTES"), (pipeline, "PARTITION_BYTES"),
    ):  # fmt: skip
        assert hasattr(module, name)
        setattr(module, name, _SCALED_BYTES)
    scratch = folder / "scale"
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    numbers = {"read": 0, "deduplicate": 0}
    plain = pipeline.Pipeline.results

    def counted(run, tasks, what, *rest):  # type: ignore[no-untyped-def]
        numbers[what] = len(tasks)
        return plain(run, tasks, what, *rest)

    pipeline.Pipeline.results = counted  # type: ignore[method-assign]
    before = _processors_s()
    started = time.perf_counter()
    with _Peaks() as peaks:
        engine(folder / f"pairs-{pairs}.jsonl", scratch, workers)
    clock_s, processors_s = time.perf_counter() - started, _processors_s() - before
    shutil.rmtree(scratch)
    mib = [peak / 2**20 for peak in (peaks.driver, peaks.worker)]
    counts = numbers["read"], numbers["deduplicate"]
    return Measured(pairs, *counts, clock_s, processors_s, *mib)


def _processors_s() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def main(options: Options) -> None:
    """Prints a line a size, and the ratios of the last to the first."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        found = []
        for pairs in options.pairs:
            input_in(folder, pairs)
            load = os.getloadavg()[0]
            code = (
                f"import json, prepare_scale as s; from pathlib import Path\n"
                f"from dataclasses import asdict\n"
                f"if __name__ == '__main__':\n"
                f" print(json.dumps(asdict(s.measure({pairs}, {options.workers}, "
                f"Path({str(folder)!r})))))"
            )
            script = folder / "measure.py"
            script.write_text(code)
            path = os.pathsep.join([str(Path(__file__).parent), *sys.path])
            ran = subprocess.run(
                [sys.executable, str(script)], check=True, capture_output=True, text=True,
                env=os.environ | {"PYTHONPATH": path},
            )  # fmt: skip
            one = Measured(**json.loads(ran.stdout.splitlines()[-1]))
            found.append(one)
            rates = [seconds / pairs * 1e6 for seconds in (one.clock_s, one.processors_s)]
            print(
                f"{pairs:>10,} pairs  {one.blocks:5,} blocks  {one.partitions:5,} partitions  "
                f"{one.clock_s:7.1f} s  {rates[0]:5.2f} µs a pair  {rates[1]:5.2f} of processors  "
                f"driver {one.driver_mib:5.0f} MiB  worker {one.worker_mib:5.0f} MiB  "
                f"(load {load:.1f})",
                flush=True,
            )
        first, last = found[0], found[-1]
        for name in ("clock_s", "processors_s"):
            a, b = (asdict(one)[name] / one.pairs for one in (first, last))
            print(f"{name} a pair: {b / a:.2f} times the first")
        for name in ("driver_mib", "worker_mib"):
            print(f"{name}: {asdict(last)[name] / asdict(first)[name]:.2f} times the first")


if __name__ == "__main__":
    main(tyro.cli(Options))
