"""The whole way under faults, beside the same way in peace.

    pip install 'jina-jax[ray]'
    python benchmarks/long_run.py --minutes 60

Prepares on a Ray cluster of two nodes without a common disk, from and into an object store, while
nodes and the driver are killed. Trains in four processes, each with a home of its own, whose run
and shards lie in the store, while something happens every few minutes: one process or all are
killed, stopped or hang, the store hangs, a disk is full, a machine is lost with what it has, the
newest checkpoint is damaged. The same is done in peace beside it, on the same machine. At the end
both are evaluated and exported. Then the prepared bytes, the batches and losses of every step, the
final parameters, the scores and the exported files are compared.

The store is one process of this machine. A small disk is mounted where this user may do that; else
that fault is left out, and the log says so.
"""

import hashlib
import itertools
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import tyro

sys.path.insert(0, str(ROOT := Path(__file__).parents[1]))

from tests.nodes import Nodes
from tests.object_store import ObjectStore
from tests.small_disk import small_disk

PROCESSES = 4
BUCKET = "s3://bucket"
NODES_KILLED = 8
HEARTBEAT_S = 20
CONFIG = """
from dataclasses import replace
from jina_jax.config import FaultConfig, MeshConfig, SourceConfig
from jina_jax.configs import demo_from_scratch

def get_config():
    config = demo_from_scratch.get_config()
    numbers = SourceConfig("numbers", paths=("{bucket}/numbers.jsonl",))
    data = replace(
        config.data, sources=(*config.data.sources, numbers), eval_pairs=500,
        records_per_shard=2000,
    )
    return replace(
        config, name="long_run", data=data, data_dir="{bucket}/data",
        feed=replace(config.feed, global_batch_size=64),
        model=replace(config.model, num_layers=2, d_model=64),
        optim=replace(config.optim, learning_rate=5e-4),
        train=replace(
            config.train, num_steps={steps}, log_every_steps=1, checkpoint_every_steps=50
        ),
        mesh=MeshConfig(data=2, fsdp=2),
        faults=FaultConfig(heartbeat_s={heartbeat_s}),
    )
"""


@dataclass(frozen=True)
class Options:
    """How long, and what for."""

    minutes: float = 60.0
    """In which things happen to the training; then it is left alone until it is done."""
    every_s: tuple[float, float] = (90.0, 180.0)
    """From one fault to the next, counted from the first step after it."""
    steps: int = 6000
    seed: int = 0
    workdir: Path | None = None
    """A new folder, which is kept; a temporary one by default."""


def log(text: str) -> None:
    """A line of the log, with the time."""
    print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)


def objects(url: str) -> dict[str, bytes]:
    """What lies below a URL."""
    import fsspec

    system = fsspec.filesystem("s3")
    system.invalidate_cache()
    root = url.removeprefix("s3://")
    return {name.removeprefix(f"{root}/"): system.cat_file(name) for name in system.find(root)}


def digest(files: dict[str, bytes]) -> str:
    """Of names and contents."""
    found = hashlib.sha256()
    for name, content in sorted(files.items()):
        found.update(f"{name} {hashlib.sha256(content).hexdigest()}\n".encode())
    return found.hexdigest()[:16]


def command(verb: str, folder: Path, home: Path, *flags: str) -> "subprocess.Popen[bytes]":
    """A verb in a process group of its own, on a machine whose home is that folder."""
    environment = os.environ | {
        "HOME": str(home),
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "--xla_force_host_platform_device_count=1",
        "JAX_COMPILATION_CACHE_DIR": str(folder / "compiled"),
    }
    output = (home / f"{verb}.log").open("ab")
    return subprocess.Popen(
        [sys.executable, "-m", "jina_jax.cli", verb, *flags],
        env=environment, stdout=output, stderr=output, start_new_session=True,
    )  # fmt: skip


def prepare(folder: Path, chance: random.Random) -> None:
    """Prepares in peace on this machine, and under faults on a cluster; the bytes are equal."""
    config, peace = str(folder / "config.py"), folder / "peace"
    peace.mkdir(exist_ok=True)
    began = time.monotonic()
    alone = command("prepare", folder, peace, config, f"--data-dir={BUCKET}/alone")
    assert alone.wait() == 0, f"see {peace / 'prepare.log'}"
    log(f"prepared in peace in {time.monotonic() - began:.0f} s")
    home, began = folder / "driver", time.monotonic()
    home.mkdir(exist_ok=True)
    nodes = Nodes(folder)
    done = threading.Event()
    ended: list[str] = []

    def kill_nodes() -> None:
        while ended.count("node") < NODES_KILLED and not done.wait(chance.uniform(15, 25)):
            nodes.kill()
            nodes.add()
            ended.append("node")
            log("prepare: a node is killed, another comes")

    killer = threading.Thread(target=kill_nodes, daemon=True)
    killer.start()
    flags = (
        config, "--data.engine.kind=ray", f"--data.engine.ray-address={nodes.cluster.address}",
        f"--data.engine.work-dir={BUCKET}/work",
    )  # fmt: skip
    for wait_s in (chance.uniform(20, 40), chance.uniform(40, 60), None):
        driver = command("prepare", folder, home, *flags)
        with suppress(subprocess.TimeoutExpired):
            driver.wait(wait_s)
        if driver.returncode is None:
            os.killpg(driver.pid, signal.SIGKILL)
            driver.wait()
            ended.append("driver")
            log("prepare: the driver is killed and started again")
        else:
            assert driver.returncode == 0, f"see {home / 'prepare.log'}"
            break
    done.set()
    killer.join()
    nodes.cluster.shutdown()
    alone_files, files = objects(f"{BUCKET}/alone"), objects(f"{BUCKET}/data")
    assert alone_files.keys() == files.keys()
    different = [name for name in files if files[name] != alone_files[name]]
    assert not different, different
    log(
        f"prepared under faults in {time.monotonic() - began:.0f} s, {ended.count('node')} nodes "
        f"and {ended.count('driver')} drivers killed: {len(files)} files, all bytes equal "
        f"({digest(files)})"
    )


@dataclass
class Training:
    """A run of several processes, each on a machine of its own."""

    folder: Path
    name: str
    homes: list[Path]
    processes: "list[subprocess.Popen[bytes]]" = field(default_factory=list)

    @property
    def url(self) -> str:
        """Of the run."""
        return f"{BUCKET}/{self.name}"

    def start(self) -> None:
        """Starts all processes."""
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            port = s.getsockname()[1]
        self.processes = [
            command(
                "train", self.folder, home, str(self.folder / "config.py"),
                f"--workdir={self.url}", f"--distributed.coordinator=127.0.0.1:{port}",
                f"--distributed.processes={PROCESSES}", f"--distributed.process-id={rank}",
                "--distributed.timeout-s=300",
            )
            for rank, home in enumerate(self.homes)
        ]  # fmt: skip

    def alive(self) -> bool:
        """Whether all processes still run."""
        return all(process.poll() is None for process in self.processes)

    def step(self) -> int:
        """Steps that have been logged on the first machine; 0 before there is one."""
        found = list((self.homes[0] / ".cache/jina_jax/runs").glob("*/metrics.jsonl"))
        lines = found[0].read_bytes().splitlines() if found else []
        for line in reversed(lines):
            with suppress(ValueError):
                return int(json.loads(line)["step"])
        return 0

    def lives(self) -> int:
        """How often the first process has begun to train, or to go on."""
        path = self.homes[0] / "train.log"
        return path.read_bytes().count(b", from step ") if path.exists() else 0

    def wait(self, timeout_s: float) -> list[int | None]:
        """Exit codes; None for one that does not end in time."""
        until = time.monotonic() + timeout_s
        for process in self.processes:
            with suppress(subprocess.TimeoutExpired):
                process.wait(max(0.1, until - time.monotonic()))
        return [process.returncode for process in self.processes]

    def end(self) -> None:
        """Kills what is left."""
        for process in self.processes:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


class Faults:
    """What happens to a training, one after another; each says what it saw."""

    def __init__(self, run: Training, server: ObjectStore, disk: Path | None, seed: int):
        self.run, self.server, self.disk = run, server, disk
        self.chance = random.Random(seed)
        self.number = itertools.count()
        self.seen: list[str] = []

    def order(self) -> Iterator[Callable[[], str]]:
        """All faults in random order, again and again; those that come once are in the first."""
        once: list[Callable[[], str]] = [self.lose_machine, self.damage_checkpoint]
        if self.disk is None:
            log("no small disk can be mounted: none is filled")
        else:
            once.append(self.fill_disk)
        while True:
            now = [self.kill_one, self.kill_all, self.stop, self.hang, self.store_hangs, *once]
            self.chance.shuffle(now)
            yield from now
            once = []

    def _others(self, but: int) -> str:
        """How the others end after something happened to one."""
        began = time.monotonic()
        codes = self.run.wait(240)
        others = [code for rank, code in enumerate(codes) if rank != but]
        assert None not in others and 0 not in others, f"{codes} after 240 s"
        self.run.end()
        return f"the others end with {others} within {time.monotonic() - began:.0f} s"

    def kill_one(self) -> str:
        """SIGKILL."""
        rank = self.chance.randrange(PROCESSES)
        os.killpg(self.run.processes[rank].pid, signal.SIGKILL)
        return f"process {rank} is killed; {self._others(rank)}"

    def kill_all(self) -> str:
        """SIGKILL, as when the power fails."""
        self.run.end()
        return "all processes are killed"

    def stop(self) -> str:
        """SIGTERM to one: all save and end."""
        rank = self.chance.randrange(PROCESSES)
        self.run.processes[rank].send_signal(signal.SIGTERM)
        codes = self.run.wait(240)
        assert codes == [128 + signal.SIGTERM] * PROCESSES, codes
        return f"process {rank} is asked to end; all have saved and ended"

    def hang(self) -> str:
        """SIGSTOP."""
        rank = self.chance.randrange(PROCESSES)
        os.killpg(self.run.processes[rank].pid, signal.SIGSTOP)
        found = f"process {rank} hangs; "
        others = [p for r, p in enumerate(self.run.processes) if r != rank]
        until = time.monotonic() + 240
        while any(p.poll() is None for p in others) and time.monotonic() < until:
            time.sleep(0.5)
        os.killpg(self.run.processes[rank].pid, signal.SIGKILL)
        return found + self._others(rank)

    def store_hangs(self) -> str:
        """It does not answer for half a minute."""
        before = self.run.step()
        self.server.process.send_signal(signal.SIGSTOP)
        time.sleep(30)
        self.server.process.send_signal(signal.SIGCONT)
        until = time.monotonic() + 120
        while self.run.alive() and self.run.step() <= before + 20 and time.monotonic() < until:
            time.sleep(1)
        if self.run.alive():
            assert self.run.step() > before + 20, "nothing goes on"
            return "the store does not answer for 30 s; the run goes on by itself"
        return f"the store does not answer for 30 s; {self._others(-1)}"

    def lose_machine(self) -> str:
        """Killed, with its disk."""
        rank = self.chance.randrange(1, PROCESSES)
        os.killpg(self.run.processes[rank].pid, signal.SIGKILL)
        others, home = self._others(rank), self.run.homes[rank]
        shutil.rmtree(home)
        home.mkdir()
        return f"machine {rank} is lost with its disk; {others}; a bare one takes its place"

    def damage_checkpoint(self) -> str:
        """Bytes of the newest sealed step change while nothing runs."""
        import fsspec

        self.kill_all()
        system = fsspec.filesystem("s3")
        system.invalidate_cache()
        root = f"{self.run.url}/checkpoints".removeprefix("s3://")
        names = [name.removeprefix(f"{root}/") for name in system.find(root)]
        newest = max(int(n.split("/")[0]) for n in names if n.endswith("/seal.json"))
        chosen = max(
            (n for n in names if n.startswith(f"{newest}/")),
            key=lambda n: system.info(f"{root}/{n}")["size"],
        )
        content = bytearray(system.cat_file(f"{root}/{chosen}"))
        content[len(content) // 2] ^= 1
        system.pipe_file(f"{root}/{chosen}", bytes(content))
        return f"all are killed, and a bit of checkpoint {newest} flips"

    def fill_disk(self) -> str:
        """The disk of the first machine is full for a minute."""
        assert self.disk
        path = self.run.homes[0] / "train.log"
        before, failed = self.run.step(), path.read_bytes().count(b"FAILED")
        filler = self.disk / "filler"
        with suppress(OSError), filler.open("wb", buffering=0) as file:
            while file.write(b"\0" * 65536):
                pass
        time.sleep(60)
        filler.unlink()
        until = time.monotonic() + 120
        while self.run.alive() and self.run.step() <= before + 60 and time.monotonic() < until:
            time.sleep(1)
        failed = path.read_bytes().count(b"FAILED") - failed
        told = f"the first machine's disk is full for 60 s ({failed} saves failed)"
        if self.run.alive():
            assert self.run.step() > before + 60, "nothing goes on"
            return f"{told}; the run goes on by itself"
        return f"{told}; {self._others(-1)}"


def train(folder: Path, options: Options, server: ObjectStore, disk: Path | None) -> None:
    """Trains one run in peace and one under faults, side by side."""
    homes = [[folder / name / str(r) for r in range(PROCESSES)] for name in ("whole", "harmed")]
    if disk is not None:
        homes[1][0] = disk / "home"
    for home in itertools.chain(*homes):
        home.mkdir(parents=True)
    peace, run = Training(folder, "whole", homes[0]), Training(folder, "harmed", homes[1])
    peace.start()
    faults = Faults(run, server, disk, options.seed)
    run.start()
    assert _progress(run, options), f"it does not begin; see {run.homes[0] / 'train.log'}"
    began = time.monotonic()
    for fault in faults.order():
        if time.monotonic() - began > 60 * options.minutes or not _progress(run, options):
            break
        if _wait(run, peace, faults.chance.uniform(*options.every_s)):
            break
        at, before = run.step(), time.monotonic()
        said = fault()
        if run.alive():
            log(f"step {at:,}: {said}")
        else:
            lives = run.lives()
            run.start()
            while run.alive() and run.lives() == lives:
                time.sleep(0.5)
            assert _progress(run, options), f"it does not go on; see {run.homes[0] / 'train.log'}"
            log(
                f"step {at:,}: {said}; the same command goes on, "
                f"{time.monotonic() - before:.0f} s later"
            )
        faults.seen.append(fault.__name__)
    log(
        f"{len(faults.seen)} faults in {(time.monotonic() - began) / 60:.0f} minutes: "
        + ", ".join(f"{name} {faults.seen.count(name)}" for name in sorted(set(faults.seen)))
    )
    for training in (run, peace):
        codes = training.wait(4 * 3600)
        assert codes == [0] * PROCESSES, f"{training.name}: {codes}"
        log(f"{training.name}: done after {(time.monotonic() - began) / 60:.0f} minutes")


def _progress(run: Training, options: Options) -> bool:
    """Waits until the run has made a step, or is done; False where it ended."""
    before, until = run.step(), time.monotonic() + 600
    while run.alive() and time.monotonic() < until:
        if run.step() != before:
            return run.step() < options.steps - 100
        time.sleep(0.2)
    return False


def _wait(run: Training, peace: Training, seconds: float) -> bool:
    """Waits; whether the run in question ended by itself meanwhile."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        codes = [process.poll() for process in (*run.processes, *peace.processes)]
        assert not any(codes), f"{codes}: a process ended of which nothing was wanted"
        if 0 in codes[:PROCESSES]:
            return True
        time.sleep(0.5)
    return False


ALIKE = ("step", "source", "batch", "loss", "gradient_norm", "learning_rate")
"""Of a line of metrics, what does not depend on time."""


def compare(folder: Path) -> None:
    """Evaluates and exports both runs; says what differs."""
    lines, scores, exports, states = [], [], [], []
    for name in ("whole", "harmed"):
        home = folder / f"{name}-afterwards"
        home.mkdir()
        for verb in ("evaluate", "export"):
            done = command(verb, folder, home, f"{BUCKET}/{name}").wait()
            assert done == 0, f"see {home / f'{verb}.log'}"
        found = objects(f"{BUCKET}/{name}")
        lines.append([json.loads(line) for line in found["metrics.jsonl"].splitlines()])
        scores.append(json.loads(found["evaluation.json"]))
        exports.append({n: c for n, c in found.items() if n.startswith("export/")})
        states.append(_state(found["export/model.safetensors"], folder / "state.safetensors"))
    steps = [[line["step"] for line in of_run] for of_run in lines]
    assert steps[0] == steps[1] == list(range(1, len(steps[0]) + 1)), "steps are missing or twice"
    for name in ALIKE:
        different = [
            one["step"] for one, other in zip(*lines, strict=True) if one[name] != other[name]
        ]
        assert name not in ("source", "batch") or not different, f"{name} of {different[:9]}"
        log(f"{name}: of {len(steps[0]):,} steps {len(different):,} differ")
    assert states[0].keys() == states[1].keys()
    most = max(float(np.abs(states[0][n] - states[1][n]).max()) for n in states[0])
    equal = sum(states[0][n].tobytes() == states[1][n].tobytes() for n in states[0])
    log(f"{equal} of {len(states[0])} exported tensors bit-equal; largest difference {most:.1e}")
    same = [n for n in exports[0] if exports[0][n] == exports[1].get(n)]
    log(f"exported files: {len(same)} of {len(exports[0])} equal, "
        f"others: {sorted(set(exports[0]) - set(same))}")  # fmt: skip
    log(f"scores: {json.dumps(scores[0], sort_keys=True)[:300]}")
    log(f"scores are {'equal' if scores[0] == scores[1] else 'DIFFERENT: ' + str(scores[1])[:300]}")


def _state(content: bytes, path: Path) -> dict[str, Any]:
    from safetensors.numpy import load_file

    path.write_bytes(content)
    return dict(load_file(path))


def main() -> None:
    """Runs it; an AssertionError is a fault found."""
    options = tyro.cli(Options, description=__doc__)
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.workdir or Path(temporary)
        bucket = folder / "buckets" / "bucket"
        bucket.mkdir(parents=True, exist_ok=True)
        text = CONFIG.format(bucket=BUCKET, steps=options.steps, heartbeat_s=HEARTBEAT_S)
        (folder / "config.py").write_text(text)
        pairs = ({"query": f"the square of {n}", "positive": f"{n} times {n} is {n * n}"}
                 for n in range(20_000))  # fmt: skip
        (bucket / "numbers.jsonl").write_text("".join(json.dumps(p) + "\n" for p in pairs))
        server = ObjectStore(folder / "buckets")
        os.environ |= server.environment
        server.start()
        try:
            prepare(folder, random.Random(options.seed))
            with small_disk(folder / "disk", "300m") as disk:
                train(folder, options, server, disk)
                compare(folder)
        finally:
            server.kill()


if __name__ == "__main__":
    main()
