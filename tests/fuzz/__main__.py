"""Fuzzes the readers of every file format.

    python -m tests.fuzz --seconds 60 [--target jsonl ...]

Each target reads changed copies of small valid files in a process of its own, guided by coverage
(atheris). A reader may raise nothing but UserError; a crash, a hang of 20 s or 2 GiB of memory
end the process and are findings too. Findings, with the input that shows them, lie in the folder
given by --findings. Exit code 1 when there are any.
"""

import argparse
import json
import os
import random
import re
import resource
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path
from typing import NamedTuple

from tests.fuzz.corpus import corpus
from tests.fuzz.mutation import change_bytes, mutated
from tests.fuzz.targets import TARGETS, run

TIMEOUT_S = 20
MEMORY_MIB = 2048
_DATA_BYTES = 6 << 30
_START_S = 60
"""Imports and compilation before the first input."""


class Done(NamedTuple):
    """What fuzzing a target came to."""

    seconds: float
    executions: int
    findings: Counter[str]
    """What went wrong and where → how often."""


def read(target: str, folder: Path, data: bytes, findings: Path) -> str:
    """Reads one input and keeps it when something went wrong.

    Returns: what went wrong and where, or an empty text.
    """
    try:
        run(target, folder, data)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # Panics of Rust are no Exceptions.
        frames = traceback.extract_tb(error.__traceback__)
        ours = [f for f in frames if "jina_jax" in f.filename or "fuzz" in f.filename][-1]
        what = f"{type(error).__name__} at {Path(ours.filename).name}:{ours.lineno}"
        name = re.sub(r"[^\w.]+", "-", f"{target}-{what}")
        if not (findings / name).exists():
            (findings / name).write_bytes(data)
            (findings / f"{name}.txt").write_text("".join(traceback.format_exception(error)))
        return what
    return ""


def fuzz_blindly(target: str, seconds: float, seed: int, findings: Path) -> Done:
    """Without coverage and in this process: for a short look."""
    rng, found, count = random.Random(seed), Counter[str](), 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        pool = corpus(folder)[target]
        for path in folder.iterdir():
            path.unlink()
        began = time.monotonic()
        while time.monotonic() - began < seconds:
            data = rng.choice(pool)
            for _ in range(rng.choice((0, 1, 1, 2, 4))):
                data = mutated(data, target, rng, lambda d: change_bytes(d, rng))
            if what := read(target, folder, data, findings):
                found[what] += 1
            count += 1
        return Done(time.monotonic() - began, count, found)


def _child(target: str, flags: list[str], findings: Path) -> None:
    """Fuzzes until libFuzzer's time is over; never returns."""
    import atheris

    resource.setrlimit(resource.RLIMIT_DATA, (_DATA_BYTES, _DATA_BYTES))
    folder = Path(tempfile.mkdtemp(dir="/dev/shm" if Path("/dev/shm").is_dir() else None))
    tally: Counter[str] = Counter()

    def one(data: bytes) -> None:
        if what := read(target, folder, data, findings):
            tally[what] += 1
            (findings / f"{target}.tally").write_text(json.dumps(tally))

    def mutator(data: bytes, max_size: int, seed: int) -> bytes:
        rng = random.Random(seed)
        changed = mutated(data, target, rng, lambda d: _either(d, max_size, rng))
        return changed[:max_size]

    def _either(data: bytes, max_size: int, rng: random.Random) -> bytes:
        return change_bytes(data, rng) if rng.random() < 0.3 else atheris.Mutate(data, max_size)

    for name, module in list(sys.modules.items()):
        if name.startswith("jina_jax.") and any(
            part in name for part in ("data", "model_folder", "untrusted", "config")
        ):
            for value in vars(module).values():
                if getattr(value, "__module__", "") == name and hasattr(value, "__code__"):
                    atheris.instrument_func(value)
    atheris.Setup([sys.argv[0], *flags], one, custom_mutator=mutator)
    atheris.Fuzz()


def fuzz(target: str, seconds: float, seed: int, findings: Path) -> Done:
    """Fuzzes a target in child processes, one after another where they die."""
    executions, found, began, left = 0, Counter[str](), time.monotonic(), seconds
    (findings / f"{target}.tally").unlink(missing_ok=True)
    with tempfile.TemporaryDirectory() as name:
        pool = Path(name) / "corpus"
        pool.mkdir()
        with tempfile.TemporaryDirectory() as scratch:
            for number, data in enumerate(corpus(Path(scratch))[target]):
                (pool / str(number)).write_bytes(data)
        while left > 0:
            flags = [
                str(pool), f"-max_total_time={max(int(left), 1)}", f"-timeout={TIMEOUT_S}",
                f"-rss_limit_mb={MEMORY_MIB}", f"-seed={seed}", "-print_final_stats=1",
                "-max_len=200000", f"-artifact_prefix={findings}/{target}-",
            ]  # fmt: skip
            command = [sys.executable, "-m", "tests.fuzz", "--child", target, str(findings), *flags]
            child_began = time.monotonic()
            process = subprocess.Popen(
                command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True,
                errors="replace",
            )  # fmt: skip
            try:
                _, log = process.communicate(timeout=left + _START_S + 2 * TIMEOUT_S)
            except subprocess.TimeoutExpired:
                process.kill()
                _, log = process.communicate()
                # On a busy machine it may not have come to its first input.
                found["hang"] += "INITED" in log
            counts = re.findall(r"number_of_executed_units: (\d+)|^#(\d+)", log, re.MULTILINE)
            executions += max((int(a or b) for a, b in counts), default=0)
            if process.returncode != 0 and "INITED" in log:
                how = re.search(r"SUMMARY: libFuzzer: ([\w-]+)", log)
                dead = process.returncode
                found[
                    how[1] if how else f"exit {dead}" if dead > 0 else signal.Signals(-dead).name
                ] += 1
                (findings / f"{target}-{seed}.log").write_text(log)
            left -= time.monotonic() - child_began
            seed += 1
    tally = findings / f"{target}.tally"
    if tally.exists():
        found.update(json.loads(tally.read_text()))
    return Done(time.monotonic() - began, executions, found)


def main() -> int:
    """Runs the command line."""
    if sys.argv[1:2] == ["--child"]:
        _child(sys.argv[2], sys.argv[4:], Path(sys.argv[3]))
    parser = argparse.ArgumentParser(
        prog="python -m tests.fuzz", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--seconds", type=float, default=10, help="for each target")
    parser.add_argument("--target", action="append", choices=sorted(TARGETS), help="all by default")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--findings", type=Path, default=Path("fuzz-findings"))
    parser.add_argument("--blind", action="store_true", help="no coverage, in this process")
    options = parser.parse_args()
    options.findings.mkdir(parents=True, exist_ok=True)
    way = fuzz_blindly if options.blind else fuzz
    total, seconds, wrong = 0, 0.0, False
    for target in options.target or TARGETS:
        done = way(
            target, options.seconds, options.seed or int.from_bytes(os.urandom(3)), options.findings
        )
        total, seconds, wrong = (
            total + done.executions,
            seconds + done.seconds,
            wrong or bool(done.findings),
        )
        outcome = "; ".join(f"{n} × {what}" for what, n in done.findings.items()) or "nothing found"
        print(f"{target}: {done.seconds:.0f} s, {done.executions:,} inputs, {outcome}", flush=True)
    print(
        f"{seconds:.0f} s, {total:,} inputs" + (f"; findings: {options.findings}" if wrong else "")
    )
    return int(wrong)


if __name__ == "__main__":
    sys.exit(main())
