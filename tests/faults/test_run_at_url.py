"""A run folder in an object store: killed on one machine, gone on with on another."""

import json
import signal

import jax
import numpy as np
import pytest

from jina_jax.checkpoint.checkpoints import load_checkpoint
from jina_jax.cli.main import main
from jina_jax.config.files import local_folder
from jina_jax.errors import ExitCode
from jina_jax.system.objects import list_objects, put_object, read_object
from tests.devices.test_processes import free_port, together
from tests.object_store import ObjectStore
from tests.prepared import STEPS
from tests.trainer import finish, start, wait_until

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("buckets")
    (folder / "bucket").mkdir()
    server = ObjectStore(folder)
    server.start()
    yield server
    server.kill()


@pytest.fixture(autouse=True)
def credentials(server, monkeypatch):
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """Makes this process, and those that it starts, work on a machine that has nothing yet."""

    def on(name):
        monkeypatch.setenv("HOME", str(tmp_path / name))
        local_folder.cache_clear()

    on("first")
    return on


def train(folder, url, *flags, **options):
    return start(folder, "unused", f"--workdir={url}", *flags, **options)


def curve_at(url):
    lines = (read_object(f"{url}/metrics.jsonl") or b"").decode().splitlines()
    return [(v["step"], v["source"], v["loss"], v["gradient_norm"]) for v in map(json.loads, lines)]


def steps_at(url):
    """The sealed steps."""
    names = list_objects(f"{url}/checkpoints")
    return sorted(int(n.split("/")[0]) for n in names if n.endswith("/seal.json"))


def params_of(run_path):
    return jax.tree.map(np.asarray, load_checkpoint(run_path).params)


def test_killed_here_it_goes_on_elsewhere_with_the_same_parameters(folder, uninterrupted, machine):
    url = "s3://bucket/killed"
    process = train(folder, url)
    wait_until(lambda: len(steps_at(url)) > 1, process)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert steps_at(url)[-1] < STEPS
    machine("second")
    said = finish(train(folder, url, "--faults.heartbeat-s=2"))
    assert "waiting 2 s" in said and "from step 0 of" not in said
    assert curve_at(url) == uninterrupted
    assert steps_at(url) == [28, 35, 40]
    machine("third")
    found, expected = params_of(local_folder(url)), params_of(folder / "whole")
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_verbs_read_it_and_put_what_they_make(folder, machine, capsys):
    url = "s3://bucket/verbs"
    finish(train(folder, url, "--train.num-steps=8"))
    machine("second")
    for verb in ("evaluate", "export"):
        assert main([verb, url]) == 0, capsys.readouterr().err
    assert main(["report", url]) == 0
    assert main(["inspect", url]) == 0
    assert main(["doctor", url, "--full"]) == 0
    said = capsys.readouterr().out
    assert f"and in {url}/export" in said and f"and in {url}/report" in said
    assert "step 7, 8 as it was sealed" in said and "of step 8, all finite" in said
    names = list_objects(url)
    for name in ("evaluation.json", "export/model.safetensors", "export/config.json",
                 "export/1_Pooling/config.json", "report/index.html"):  # fmt: skip
        assert names[name] > 0
    machine("third")
    start_from = ("--train.num-steps=6", "--train.initial-weights")
    for number, begin in enumerate((url, f"{url}/export")):
        finish(train(folder, f"s3://bucket/after{number}", *start_from, begin))
        assert steps_at(f"s3://bucket/after{number}") == [6]


def test_a_damaged_newest_step_is_left_for_the_one_before(folder, uninterrupted, machine):
    url = "s3://bucket/damaged"
    finish(train(folder, url))
    for name in list_objects(f"{url}/checkpoints"):
        if name.startswith("40/params"):
            put_object(b"x" * 99, f"{url}/checkpoints/{name}")
    machine("second")
    said = finish(train(folder, url))
    assert f"CHECKPOINT DAMAGED: {url}/checkpoints/40" in said and "from step 35" in said
    assert curve_at(url) == uninterrupted and steps_at(url) == [28, 35, 40]


def test_two_trainers_do_not_share_it(folder, machine):
    url = "s3://bucket/shared"
    first = train(folder, url, "--train.num-steps=100000")
    wait_until(lambda: steps_at(url), first)
    machine("second")
    second = train(folder, url)
    _, said = second.communicate(timeout=120)
    assert second.returncode == ExitCode.USER_ERROR and f"{url} is being trained in by" in said
    machine("first")
    third = train(folder, url)
    _, said = third.communicate(timeout=120)
    assert third.returncode == ExitCode.USER_ERROR and f"{url} is being trained in by" in said
    first.send_signal(signal.SIGTERM)
    _, said = first.communicate(timeout=120)
    assert first.returncode == 128 + signal.SIGTERM, said
    assert read_object(f"{url}/trainer.json") is None
    reached = curve_at(url)[-1][0]
    assert steps_at(url)[-1] == reached


@pytest.mark.parametrize("resumed", [1, 2])
def test_processes_save_and_any_number_goes_on(folder, uninterrupted, machine, resumed):
    url = f"s3://bucket/processes{resumed}"
    port, flags = free_port(), ("--mesh.fsdp=2",)
    two = [train(folder, url, *flags, *together(port, r), devices=1) for r in range(2)]
    wait_until(lambda: len(steps_at(url)) > 1, two[0])
    two[1].send_signal(signal.SIGTERM)
    said = [process.communicate(timeout=300)[1] for process in two]
    assert [process.returncode for process in two] == [128 + signal.SIGTERM] * 2, said
    step = steps_at(url)[-1]
    names = [n for n in list_objects(f"{url}/checkpoints/{step}") if n.startswith("params")]
    assert sorted(name.split(".")[1] for name in names) == ["0", "1"]
    machine("second")
    port = free_port()
    if resumed == 1:
        finish(train(folder, url, devices=2))
    else:
        two = []
        for rank in range(2):
            machine(f"second-{rank}")
            two.append(train(folder, url, *together(port, rank), devices=1))
        for process in two:
            finish(process)
    found = curve_at(url)
    assert [v[:2] for v in found] == [v[:2] for v in uninterrupted]
    np.testing.assert_allclose([v[2] for v in found], [v[2] for v in uninterrupted], rtol=1e-5)
