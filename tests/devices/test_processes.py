"""Real processes on this machine, one for each host: they compute, train, stop and wait as one."""

import dataclasses
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from itertools import chain
from operator import eq

import jax
import numpy as np
import pytest

from jina_jax.checkpoint.checkpoints import load_checkpoint
from jina_jax.cli.main import main
from jina_jax.config import MeshConfig
from jina_jax.train.metrics.writer import read_metrics
from tests.devices.test_mesh import WHOLE, assert_equal, value_and_grad
from tests.trainer import ROOT, curve, evaluations, finish, start, wait_for_step

GRADIENT = """
import sys
import jax
import numpy as np
sys.path.insert(0, {folder!r})
from jina_jax.config import DistributedConfig, MeshConfig
from jina_jax.devices.distributed import is_first, start

port, rank, split, path = sys.argv[1], int(sys.argv[2]), sys.argv[3], sys.argv[4]
start(DistributedConfig("127.0.0.1:" + port, 2, rank, 120), 60)
from tests.devices.test_mesh import WHOLE, value_and_grad
assert jax.process_count() == 2 and jax.local_device_count() == 4
for number, sizes in enumerate(split.split("+")):
    loss, gradient = value_and_grad(WHOLE, MeshConfig(*map(int, sizes.split(","))))
    if is_first():
        np.savez(path + str(number), loss, *jax.tree.leaves(gradient))
"""


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def together(port, rank, processes=2, timeout_s=120):
    return (
        f"--distributed.coordinator=127.0.0.1:{port}", f"--distributed.processes={processes}",
        f"--distributed.process-id={rank}", f"--distributed.timeout-s={timeout_s}",
    )  # fmt: skip


@pytest.mark.slow
def test_two_processes_compute_what_one_device_does(tmp_path):
    splits = [(2, 2, 2), (1, 8, 1)]
    port = str(free_port())
    script = GRADIENT.format(folder=str(ROOT / "tests" / "train"))
    environment = os.environ | {
        "PYTHONPATH": str(ROOT),
        "XLA_FLAGS": "--xla_force_host_platform_device_count=4",
    }
    words = "+".join(",".join(map(str, split)) for split in splits)
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", script, port, str(rank), words, str(tmp_path / "split")],
            env=environment, stderr=subprocess.PIPE, text=True,
        )
        for rank in range(2)
    ]  # fmt: skip
    for process in processes:
        finish(process)
    loss, gradient = value_and_grad(WHOLE, MeshConfig(data=1))
    tree = jax.tree.structure(gradient)
    for number in range(len(splits)):
        found = list(np.load(tmp_path / f"split{number}.npz").values())
        assert_equal((float(found[0]), jax.tree.unflatten(tree, found[1:])), (loss, gradient))


@pytest.mark.slow
def test_two_processes_train_stop_together_and_go_on_as_one(folder, uninterrupted):
    port = free_port()
    two = [
        start(folder, "two", "--mesh.fsdp=2", *together(port, rank), devices=1) for rank in range(2)
    ]
    assert wait_for_step(folder, "two", two[0], 10)
    two[1].send_signal(signal.SIGTERM)  # to the one that writes no metrics
    said = [process.communicate(timeout=300)[1] for process in two]
    assert [process.returncode for process in two] == [128 + signal.SIGTERM] * 2, said
    reached = curve(folder, "two")[-1][0]
    assert 10 <= reached < len(uninterrupted)
    assert all(f"stopped by SIGTERM; step {reached} is saved" in text for text in said)
    assert "of 2 processes (fsdp 2)" in said[0] and "parameters on" not in said[1]
    finish(start(folder, "two", devices=1))
    assert_same_curve(curve(folder, "two"), uninterrupted)


def assert_same_curve(found, expected):
    assert [values[:2] for values in found] == [values[:2] for values in expected]
    np.testing.assert_allclose(
        [values[2] for values in found], [values[2] for values in expected], rtol=1e-5
    )


GROUPS = ("--feed.groups=8", "--train.num-steps=14", "--optim.schedule=constant")


def train_as(folder, run, processes, *flags):
    """A run of so many processes, of a device each."""
    port = free_port()
    started = [
        start(folder, run, *GROUPS, *flags, *together(port, rank, processes), devices=1)
        for rank in range(processes)
    ]
    for process in started:
        finish(process)


def lines_of(folder, run):
    return read_metrics(folder / run / "metrics.jsonl")


def final_params(folder, run):
    return jax.tree.map(np.asarray, load_checkpoint(folder / run).params)


@pytest.fixture(scope="module")
def of_one(folder):
    """Curve and parameters of a run of one process that makes all eight groups."""
    finish(start(folder, "of_one", *GROUPS, devices=1))
    return lines_of(folder, "of_one"), final_params(folder, "of_one")


def assert_same_run(folder, run, expected):
    """The same batches to the bit, losses within 1e-6 and parameters within Adam's rounding."""
    found, params = lines_of(folder, run), final_params(folder, run)
    told_once = "step", "source", "batch"
    for line, of_one in zip(found, expected[0], strict=True):
        assert [line[name] for name in told_once] == [of_one[name] for name in told_once]
        assert line["loss"] == pytest.approx(of_one["loss"], rel=1e-6)
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=0, atol=1e-5), params, expected[1]
    )


@pytest.fixture(scope="module")
def of_four(folder):
    """A run of four processes that ended after 7 steps."""
    train_as(folder, "of_four", 4, "--train.num-steps=7")
    return folder / "of_four"


@pytest.mark.slow
def test_a_run_of_four_processes_is_evaluated_by_one(of_four, capsys):
    """Which waits for no others."""
    assert main(["evaluate", str(of_four)]) == 0, capsys.readouterr().err
    assert (of_four / "evaluation.json").is_file()


@pytest.mark.slow
@pytest.mark.parametrize("processes", [2, 8])
def test_a_run_of_four_processes_goes_on_as_two_or_eight(folder, of_one, of_four, processes):
    """So one, two, four and eight processes train on the same batches."""
    run = f"four_then_{processes}"
    shutil.copytree(of_four, folder / run)
    train_as(folder, run, processes)
    assert_same_run(folder, run, of_one)


@pytest.mark.slow
def test_two_processes_train_adapters_and_their_average_as_one_does(folder, uninterrupted):
    """Each holds half of the frozen matrices, of the adapters and of the average."""
    flags = (
        f"--train.initial-weights={folder / 'whole'}", "--lora.rank=4", "--train.ema-decay=0.5",
        "--train.num-steps=7", "--optim.optimizer=muon",
    )  # fmt: skip
    finish(start(folder, "adapters_of_one", *GROUPS, *flags, devices=1))
    expected = lines_of(folder, "adapters_of_one"), final_params(folder, "adapters_of_one")
    train_as(folder, "adapters_of_two", 2, *flags, "--mesh.fsdp=2")
    assert_same_run(folder, "adapters_of_two", expected)
    before = final_params(folder, "whole")
    np.testing.assert_array_equal(expected[1]["embedding_VD"], before["embedding_VD"])


@pytest.mark.slow
def test_a_checkpoint_of_eight_devices_goes_on_with_four_two_and_one(folder, uninterrupted):
    meshes = [
        (8, ("--mesh.fsdp=2", "--mesh.tensor=2")), (4, ("--mesh.fsdp=4",)),
        (2, ("--mesh.tensor=2",)),
    ]  # fmt: skip
    for part, (devices, flags) in enumerate(meshes):
        process = start(folder, "elastic", *flags, devices=devices)
        assert wait_for_step(folder, "elastic", process, 9 * part + 6)
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 128 + signal.SIGTERM, errors
        assert f"parameters on {devices} cpu device(s)" in errors
    assert curve(folder, "elastic")[-1][0] < len(uninterrupted)
    assert "on 1 cpu device(s)" in finish(start(folder, "elastic", devices=1))
    assert_same_curve(curve(folder, "elastic"), uninterrupted)


@pytest.mark.slow
def test_a_process_that_is_alone_says_so_in_time(folder):
    began = time.monotonic()
    process = start(folder, "alone", *together(free_port(), 0, timeout_s=5), devices=1)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 2, errors
    assert "process 0 of 2 could not join the others" in errors and "within 5 s" in errors
    assert "Traceback" not in errors
    assert time.monotonic() - began < 60


@pytest.mark.slow
def test_processes_with_another_configuration_are_named(folder):
    port = free_port()
    two = [
        start(
            folder, "unlike", f"--optim.learning-rate=0.00{rank + 1}", *together(port, rank),
            devices=1,
        )
        for rank in range(2)
    ]  # fmt: skip
    for process in two:
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 2, errors
        assert "processes 1 have another configuration" in errors


@pytest.mark.slow
def test_a_host_of_a_slice_that_was_told_of_no_other_is_refused(folder, monkeypatch):
    monkeypatch.setenv("TPU_WORKER_HOSTNAMES", "host-0,host-1")
    process = start(folder, "host", devices=1)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 2
    assert "one of 2 hosts of a TPU slice" in errors and "--distributed.coordinator auto" in errors


@pytest.mark.parametrize(
    ("values", "complaint"),
    [
        ({"coordinator": "host"}, "neither HOST:PORT nor auto"),
        ({"coordinator": "host:1"}, "needs distributed.processes"),
        ({"coordinator": "host:1", "processes": 2, "process_id": 2}, r"must lie in 0\.\.1"),
        ({"processes": 2}, "belong to a distributed.coordinator"),
    ],
)
def test_flags_that_do_not_belong_together_are_refused(values, complaint):
    from jina_jax.config import DistributedConfig
    from jina_jax.config.validation import validate
    from jina_jax.errors import UserError

    with pytest.raises(UserError, match=complaint):
        validate(dataclasses.replace(WHOLE, distributed=DistributedConfig(**values)))


@pytest.mark.slow
def test_two_processes_evaluate_during_training_what_one_does(folder):
    port, flags = free_port(), ("--evaluate.every-steps=20",)
    both = [
        start(folder, "both", "--mesh.fsdp=2", *flags, *together(port, rank), devices=1)
        for rank in range(2)
    ]
    for process in both:
        finish(process)
    finish(start(folder, "single", *flags))
    found, expected = (evaluations(folder / run) for run in ("both", "single"))
    assert [line["step"] for line in found] == [20, 40]
    for line, other in zip(found, expected, strict=True):
        assert line == pytest.approx(other, abs=0.01)


@pytest.mark.slow
def test_two_processes_evaluate_and_mine_what_one_does(folder, uninterrupted):
    found = []
    for count in (1, 2):
        port, mined = free_port(), folder / f"mined-by-{count}"
        flags = ("--mine.query-block=50", f"--mine.output-dir={mined}")
        for verb, more in (("evaluate", ()), ("mine", flags)):
            processes = [
                start(
                    folder, "whole", *more, *(together(port, rank) if count > 1 else ()),
                    devices=1, verb=verb,
                )
                for rank in range(count)
            ]  # fmt: skip
            for process in processes:
                finish(process)
        names = [f"{source}.{ending}" for source in ("docs", "numbers")
                 for ending in ("jsonl", "dropped.jsonl")]  # fmt: skip
        lines = [read_metrics(mined / name) for name in names]
        scores = json.loads((folder / "whole" / "evaluation.json").read_text())
        found.append((scores, lines, json.loads((mined / "mined.json").read_text())))
    (scores, lines, report), (of_two, lines_of_two, report_of_two) = found
    assert {"bm25", "trained", "untrained"} == of_two["docs"].keys()
    for task, systems in scores.items():
        for system, measures in systems.items():
            assert of_two[task][system] == pytest.approx(measures, abs=1e-6)
    assert report_of_two == report and sum(map(len, lines)) > 50
    texts = ("query", "positive", "negative", "passage")
    for one, two in zip(chain(*lines), chain(*lines_of_two), strict=True):
        assert one["rank"] == two["rank"]
        for name in one.keys() & {"positive_score", "negative_score", "score"}:
            assert two[name] == pytest.approx(one[name], abs=2e-6)  # They are rounded to 1e-6.
    named = [[tuple(map(line.get, texts)) for line in chain(*of)] for of in (lines, lines_of_two)]
    # Passages whose scores differ in rounding alone may change places.
    assert sum(map(eq, *named)) > 0.98 * len(named[0])
