"""Kills one training run again and again, and compares it with one that was left in peace.

`python benchmarks/soak.py` (half an hour on 2 free cores). A trainer on the CPU is ended 200 times,
by SIGKILL or SIGTERM, at random moments: while it starts, restores, compiles, steps, saves and
evaluates. At the end the two runs must have the same parameters, metrics and evaluations, bit by
bit, and every step must have had exactly the records that are planned for it: so no record is seen
twice or missed.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from jina_jax.config import (
    DataConfig,
    EvaluateConfig,
    FeedConfig,
    OptimConfig,
    RunConfig,
    SourceConfig,
    T5Config,
    TokenizerConfig,
    TrainConfig,
)
from jina_jax.config.files import to_json
from jina_jax.prepare.run import prepare
from jina_jax.train.metrics.writer import read_metrics

SAVE_EVERY, EVALUATE_EVERY = 40, 100
IN_START = 0.15
"""Share of the kills that come before the first step."""


def soak_config(folder: Path, run: str, steps: int) -> RunConfig:
    """A run of two sources that takes milliseconds a step."""
    return RunConfig(
        name=run,
        workdir=str(folder / run),
        data_dir=str(folder / "data"),
        data=DataConfig(
            (
                SourceConfig("squares", paths=(f"{folder}/squares.jsonl",), weight=2.0),
                SourceConfig("cubes", paths=(f"{folder}/cubes.jsonl",)),
            ),
            TokenizerConfig("train", vocab_size=100),
            eval_pairs=20,
        ),
        # One text a row: one shape of batch, so that starting again compiles little.
        feed=FeedConfig(16, 16, 16, 16, 1, 32),
        model=T5Config(vocab_size=128, d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2),
        optim=OptimConfig(learning_rate=1e-3, warmup_steps=5),
        train=TrainConfig(num_steps=steps, log_every_steps=1, checkpoint_every_steps=SAVE_EVERY),
        evaluate=EvaluateConfig(
            every_steps=EVALUATE_EVERY, keep_best="retrieval/average/ndcg@10"
        ),
    )  # fmt: skip


def write_sources(folder: Path) -> None:
    """Numbers and their powers, in figures."""
    for name, power in (("squares", 2), ("cubes", 3)):
        lines = (
            json.dumps({"query": f"{name} {n}", "positive": f"of {n} is {n**power}"})
            for n in range(500)
        )
        (folder / f"{name}.jsonl").write_text("".join(f"{line}\n" for line in lines))


def start(folder: Path, run: str) -> "subprocess.Popen[bytes]":
    """`jina-jax train` on one CPU device, with JAX's own cache of compiled programs."""
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": str(folder / "compiled"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    log = (folder / f"{run}.log").open("ab")
    return subprocess.Popen(
        [sys.executable, "-m", "jina_jax.cli", "train", str(folder / run)],
        env=environment, stdout=log, stderr=log,
    )  # fmt: skip


class Victim:
    """The run that is killed."""

    def __init__(self, folder: Path, steps: int, kills: int, chance: random.Random):
        self.folder, self.run_path = folder, folder / "killed"
        self.steps, self.kills, self.chance = steps, kills, chance
        self.start_s = 5.0
        """How long a start takes until the first step, as seen so far."""
        self.tally: Counter[str] = Counter()
        self.lost = 0

    def step(self) -> int:
        """Steps that are logged."""
        lines = read_metrics(self.run_path / "metrics.jsonl")
        return lines[-1]["step"] if lines else 0

    def live_and_die(self, number: int) -> bool:
        """Starts the trainer and ends it; False when it was done before."""
        done_before, began = self.step(), time.monotonic()
        process = start(self.folder, "killed")
        how = self.chance.choice((signal.SIGKILL, signal.SIGTERM))
        in_start = self.chance.random() < IN_START
        if in_start:
            time.sleep(self.chance.uniform(0, self.start_s))
        else:
            target = self._resumed(process, began, done_before) + self.chance.randint(
                1, max(2, 2 * (self.steps - done_before) // (self.kills - number + 1))
            )
            while process.poll() is None and self.step() < min(target, self.steps - 1):
                time.sleep(0.002)
            time.sleep(self.chance.uniform(0, 0.1))
        seen = self._doing(in_start)
        process.send_signal(how)
        code = process.wait(timeout=600)
        if code == 0:
            return False
        expected = {-how, 128 + how} if how == signal.SIGTERM else {-how}
        assert code in expected, f"exit code {code}; see {self.folder / 'killed.log'}"
        self.tally[f"{how.name} {seen}"] += 1
        return True

    def _resumed(self, process: "subprocess.Popen[bytes]", began: float, done: int) -> int:
        """Waits for the first step of this life; gives where it began."""
        path = self.run_path / "metrics.jsonl"
        size = path.stat().st_ino if path.exists() else 0
        while process.poll() is None:
            if path.exists() and path.stat().st_ino != size and (now := self.step()):
                self.start_s = 0.8 * self.start_s + 0.2 * (time.monotonic() - began)
                self.lost += max(0, done - now + 1)
                return now
            time.sleep(0.005)
        return done

    def _doing(self, in_start: bool) -> str:
        if any(self.run_path.glob("checkpoints/saving-*")):
            return "in a save"
        if any(self.run_path.glob("best/saving-*")):
            return "in a save of the best"
        if in_start:
            return "in the start"
        lines = read_metrics(self.run_path / "evaluations.jsonl")
        evaluated = lines[-1]["step"] if lines else 0
        due = self.step() // EVALUATE_EVERY * EVALUATE_EVERY
        return "in an evaluation" if due > evaluated else "in a step"


def planned_batches(config: RunConfig) -> list[str]:
    """Fingerprints of the batches of all steps, drawn anew; every epoch must have every record."""
    from jina_jax.feed.pipeline import feed_of_run
    from jina_jax.shards.manifest import load_manifest

    feed = feed_of_run(config, load_manifest(config.data_path))
    found: list[str] = []
    drawn: list[list[np.ndarray]] = [[] for _ in feed.records]
    for batch in feed.batches:
        found.append(batch.fingerprint)
        drawn[batch.source].append(batch.record_B)
    for (name, size), of_source in zip(feed.records.items(), drawn, strict=True):
        rows = np.concatenate(of_source)
        for epoch in range(len(rows) // size):
            of_epoch = np.sort(rows[epoch * size : (epoch + 1) * size])
            assert (of_epoch == np.arange(size)).all(), f"{name} misses rows in epoch {epoch}"
        print(f"{name}: {len(rows):,} rows drawn of {size}, each once in each epoch")
    return found


TOLD_ONCE = ("step", "source", "batch", "loss", "gradient_norm", "learning_rate", "accuracy")
"""Of a line of metrics, what does not depend on time."""


def compare(folder: Path, config: RunConfig) -> None:
    """Raises AssertionError where the two runs differ."""
    import jax

    from jina_jax.checkpoint.checkpoints import Checkpoints, load_checkpoint
    from jina_jax.train.step import state_shapes

    lines: dict[str, Any] = {
        run: [[line[n] for n in TOLD_ONCE] for line in read_metrics(folder / run / "metrics.jsonl")]
        for run in ("whole", "killed")
    }
    assert [line[0] for line in lines["killed"]] == list(range(1, config.train.num_steps + 1))
    assert lines["whole"] == lines["killed"], "losses or batches differ"
    assert [line[2] for line in lines["killed"]] == planned_batches(config), (
        "batches not as planned"
    )
    evaluations = [read_metrics(folder / run / "evaluations.jsonl") for run in ("whole", "killed")]
    assert evaluations[0] == evaluations[1], "evaluations differ"
    place = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    like = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), state_shapes(config)
    )
    states = []
    for run in ("whole", "killed"):
        checkpoints = Checkpoints(folder / run / "checkpoints")
        step = checkpoints.newest_good()
        assert step == config.train.num_steps
        states.append(checkpoints.restore(step, like))
    bests = [load_checkpoint(folder / run) for run in ("whole", "killed")]
    assert bests[0].step == bests[1].step
    for one, other in zip(
        jax.tree.leaves([states[0], bests[0].params]),
        jax.tree.leaves([states[1], bests[1].params]),
        strict=True,
    ):
        assert np.asarray(one).tobytes() == np.asarray(other).tobytes(), "states differ"
    count = len(jax.tree.leaves(states[0]))
    print(
        f"bit-identical: {count} arrays of the final state, best step {bests[0].step}, "
        f"{len(lines['whole']):,} lines of metrics, {len(evaluations[0])} evaluations"
    )


def main() -> None:
    """Runs the soak; an AssertionError is a fault found."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--steps", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workdir", type=Path, help="kept; a temporary one by default")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.workdir or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        write_sources(folder)
        config = soak_config(folder, "whole", options.steps)
        prepare(config.data, config.data_path, progress=False)
        for run in ("whole", "killed"):
            (folder / run).mkdir()
            of_run = replace(config, workdir=str(folder / run))
            (folder / run / "config.json").write_text(to_json(of_run))
        began = time.monotonic()
        assert start(folder, "whole").wait() == 0, f"see {folder / 'whole.log'}"
        print(
            f"undisturbed: {options.steps:,} steps in {time.monotonic() - began:.0f} s", flush=True
        )
        victim = Victim(folder, options.steps, options.kills, random.Random(options.seed))
        for number in range(options.kills):
            assert victim.live_and_die(number), f"done after {number} kills: give more --steps"
            if number % 10 == 9:
                print(
                    f"{number + 1} kills, step {victim.step():,}, "
                    f"{time.monotonic() - began:,.0f} s", flush=True,
                )  # fmt: skip
        assert start(folder, "killed").wait() == 0, f"see {folder / 'killed.log'}"
        print(f"{options.kills} kills: {dict(sorted(victim.tally.items()))}")
        print(f"{victim.lost:,} steps were done again")
        compare(folder, config)


if __name__ == "__main__":
    main()
