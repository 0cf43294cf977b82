"""Memory and open files of a trainer over many steps: they must not grow.

`python benchmarks/steady.py` trains a tiny model for 20,000 steps on the CPU, with a save every 500
and two data workers, and prints resident memory and open file descriptors of the trainer and of a
worker as it goes. The last line compares the first and the last quarter.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from jina_jax.config import EvaluateConfig
from jina_jax.config.files import to_json
from jina_jax.prepare.run import prepare
from jina_jax.train.metrics.writer import read_metrics

sys.path.insert(0, str(Path(__file__).parent))
from soak import soak_config, write_sources


def resident_mb(pid: int) -> float:
    """Resident memory of a process."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def descriptors(pid: int) -> int:
    """Open file descriptors of a process."""
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


def a_worker(pid: int) -> int:
    """A data worker of a trainer."""
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in task.read_text().split():
            if "spawn_main" in Path(f"/proc/{child}/cmdline").read_text():
                return int(child)
    raise AssertionError("no worker")


def watch(process: "subprocess.Popen[bytes]", metrics: Path, every: int) -> list[list[float]]:
    """Step, memory and descriptors, every so many steps, until the trainer ends."""
    rows: list[list[float]] = []
    print(f"{'step':>8}{'MB':>10}{'files':>8}{'worker MB':>12}{'files':>8}", flush=True)
    while process.poll() is None:
        lines = read_metrics(metrics)
        if lines and lines[-1]["step"] >= (len(rows) + 1) * every:
            worker = a_worker(process.pid)
            row = [
                lines[-1]["step"], resident_mb(process.pid), descriptors(process.pid),
                resident_mb(worker), descriptors(worker),
            ]  # fmt: skip
            rows.append(row)
            print("{:8,.0f}{:10,.1f}{:8,.0f}{:12,.1f}{:8,.0f}".format(*row), flush=True)
        time.sleep(0.2)
    return rows


def main() -> None:
    """Trains and watches."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=20_000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_sources(folder)
        config = soak_config(folder, "run", options.steps)
        config = replace(
            config,
            feed=replace(config.feed, workers=2),
            train=replace(config.train, log_every_steps=100, checkpoint_every_steps=500),
            evaluate=EvaluateConfig(),
        )
        prepare(config.data, config.data_path, progress=False)
        (folder / "run").mkdir()
        (folder / "run" / "config.json").write_text(to_json(config))
        process = subprocess.Popen(
            [sys.executable, "-m", "jina_jax.cli", "train", str(folder / "run")],
            env=os.environ | {"JAX_PLATFORMS": "cpu"}, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        rows = watch(process, folder / "run" / "metrics.jsonl", options.steps // 20)
        assert process.returncode == 0, f"exit code {process.returncode}"
    quarter = max(1, len(rows) // 4)
    for column, what in enumerate(("MB", "files", "worker MB", "worker files"), 1):
        first = max(row[column] for row in rows[:quarter])
        last = max(row[column] for row in rows[-quarter:])
        print(f"{what}: at most {first:,.1f} in the first quarter, {last:,.1f} in the last")


if __name__ == "__main__":
    main()
