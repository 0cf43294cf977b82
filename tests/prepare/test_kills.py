"""Preparation is killed for real, and resumed."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from jina_jax.config import DataConfig, EngineConfig
from jina_jax.shards.manifest import prepared_config
from tests.pairs import config, files, filtered, markers, pair, run, triplet, write

ROOT = Path(__file__).parents[2]
SCRIPT = """
import dataclasses, sys
from pathlib import Path
from jina_jax.config import EngineConfig

from tests.pairs import filtered, run

if __name__ == "__main__":
    out, workers, *sources = sys.argv[1:]
    settings = filtered(*map(Path, sources), engine=EngineConfig("local", int(workers)))
    run(settings, Path(out))
"""


def start(tmp_path, out, workers, sources):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    arguments = [str(out), str(workers), *map(str, sources)]
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    # Its own group, so that a kill may hit the workers as well.
    return subprocess.Popen(
        [sys.executable, str(script), *arguments], env=env, start_new_session=True
    )


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Sources of many blocks and partitions, and what comes of them without a kill."""
    folder = tmp_path_factory.mktemp("corpus")
    sources = [
        write(folder / "first.jsonl", [pair(i) for i in range(1000)] + ["{"] * 5),
        write(folder / "second.jsonl", [pair(i) for i in range(700, 1500)]),
        write(folder / "triplets.jsonl", [triplet(i) for i in range(500)]),
    ]
    run(filtered(*sources, engine=EngineConfig("local", 1)), folder / "whole")
    return sources, files(folder / "whole")


def test_the_number_of_workers_changes_no_byte(corpus, tmp_path):
    sources, expected = corpus
    run(filtered(*sources, engine=EngineConfig("local", 2)), tmp_path / "out")
    assert files(tmp_path / "out") == expected


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_kills_at_random_moments_cost_no_finished_task(corpus, tmp_path, workers):
    sources, expected = corpus
    out, work, chance = tmp_path / "out", tmp_path / "out.work", random.Random(workers)
    kills, progress, grown = 0, {}, 0
    while not out.exists():
        process = start(tmp_path, out, workers, sources)
        # Kills fall between the first new marker and the end, however fast the machine is.
        wanted = len(progress) + chance.randrange(2, 12)
        while process.poll() is None and len(markers(work)) < wanted:
            time.sleep(0.002)
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            kills += 1
        else:
            assert process.returncode == 0
        process.wait()
        now = markers(work)
        if now and not out.exists():
            # What was done before is still done, and was not done again.
            assert progress.items() <= now.items()
            grown += len(now) > len(progress)
            progress = now
        assert kills < 100
    print(f"{kills} kills, {grown} of them after new tasks")
    assert kills >= 4 and grown >= 4
    assert files(out) == expected
    left = sorted(p.name for p in tmp_path.iterdir())
    assert left == ["out", "out.work", "script.py"]
    assert not [p for p in work.rglob(".*") if p.is_file()]


def test_workers_die_with_a_killed_parent(corpus, tmp_path):
    import psutil

    process = start(tmp_path, tmp_path / "out", 2, corpus[0])
    family = []
    while process.poll() is None and len(family) < 3:
        family = psutil.Process(process.pid).children(recursive=True)
        time.sleep(0.01)
    assert process.poll() is None
    process.kill()
    process.wait()
    # A worker that was still importing when its parent died ends once it has begun.
    _, alive = psutil.wait_procs(family, timeout=60)
    assert alive == []


def test_input_that_changes_between_a_kill_and_the_resumption_is_read_again(corpus, tmp_path):
    changing = write(tmp_path / "a.jsonl", [pair(i) for i in range(1500)])
    process = start(tmp_path, tmp_path / "out", 1, [changing])
    while process.poll() is None and len(markers(tmp_path / "out.work")) < 30:
        time.sleep(0.002)
    process.kill()
    process.wait()
    assert not (tmp_path / "out").exists()
    write(changing, [pair(i) for i in range(500, 1000)])
    settings = filtered(changing)
    run(settings, tmp_path / "out")
    run(settings, tmp_path / "afresh")
    assert files(tmp_path / "out") == files(tmp_path / "afresh")


def test_the_engine_is_not_in_the_manifest(corpus):
    _, expected = corpus
    assert b'"engine"' not in expected[Path("manifest.json")]
    assert not [path for path in prepared_config(DataConfig()) if path.startswith("engine")]


KILLED = """
import os, signal, sys
from jina_jax.prepare import {module} as module
def die(*args, **more):
    os.kill(os.getpid(), signal.SIGKILL)
module.{function} = die
from pathlib import Path
from tests.pairs import config, run
run(config(Path({source!r})), Path({out!r}))
"""


@pytest.mark.parametrize(
    "module, function",
    [("pipeline", "hold_out_task"), ("run", "encode_task"), ("run", "publish")],
)
def test_a_killed_run_leaves_nothing_half_made(tmp_path, module, function):
    source = write(tmp_path / "a.jsonl", [pair(i) for i in range(150)])
    out = tmp_path / "out"
    script = KILLED.format(
        module=module, function=function, source=str(source), out=str(out),
    )  # fmt: skip
    killed = subprocess.run([sys.executable, "-c", script], env=os.environ, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert not out.exists()
    assert (tmp_path / "out.work").exists()
    run(config(source), out)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.jsonl", "out", "out.work"]
    run(config(source), tmp_path / "never_killed")
    assert files(out) == files(tmp_path / "never_killed")
