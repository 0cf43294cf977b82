"""Folders that may only be read: what can work does, all else says so in one line at once."""

import ctypes
import json
import os
import shutil
import subprocess
import sys
from typing import NamedTuple

import pytest

from jina_jax.errors import ExitCode
from tests.trainer import ROOT, finish, start, wait_for_step

pytestmark = pytest.mark.slow

_PR_CAPBSET_DROP, _CAP_DAC_OVERRIDE = 24, 1


def without_privilege():
    """Permissions hold for root too in the program that this process becomes; called before it."""
    if not os.geteuid() and ctypes.CDLL(None).prctl(_PR_CAPBSET_DROP, _CAP_DAC_OVERRIDE, 0, 0, 0):
        os._exit(99)


@pytest.fixture(scope="module", autouse=True)
def permissions_hold():
    if subprocess.run(["true"], preexec_fn=without_privilege).returncode:
        pytest.skip("root cannot lay down its privilege here, and may write everywhere")


_RUN_ALL = """
import contextlib, io, json, sys
from jina_jax.cli.main import main

done = []
for args in json.loads(sys.stdin.read()):
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(args)
    done.append((code, out.getvalue(), err.getvalue()))
print(json.dumps(done))
"""


class Done(NamedTuple):
    """What a command ended with, and what it said."""

    code: int
    out: str
    err: str


def run_all(commands):
    """`jina-jax ARGS` of several, one after another in a process of their own."""
    given = json.dumps([[str(arg) for arg in args] for args in commands])
    done = subprocess.run(
        [sys.executable, "-c", _RUN_ALL], input=given, preexec_fn=without_privilege,
        env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return [Done(*one) for one in json.loads(done.stdout.splitlines()[-1])]


def change_mode(folder, change):
    subprocess.run(["chmod", "-R", change, str(folder)], check=True)


@pytest.fixture(scope="module")
def trained(folder):
    finish(start(folder, "short", "--train.num-steps=7"))
    return folder / "short"


@pytest.fixture(scope="module", params=["rights", "disk"])
def closed(request, trained, tmp_path_factory):
    """A run that may only be read, and the words for why; the data in it too."""
    run = tmp_path_factory.mktemp("theirs") / "run"
    shutil.copytree(trained, run)
    shutil.copytree(trained.parent / "data", run / "data")
    if request.param == "rights":
        change_mode(run, "a-w")
        yield run, "[Errno 13] Permission denied"
        change_mode(run, "u+w")
        return
    mounts = [["mount", "--bind", run, run], ["mount", "-o", "remount,ro,bind", run]]
    if os.geteuid() or any(subprocess.run(m, capture_output=True).returncode for m in mounts):
        pytest.skip("mounting a disk that is read only needs root")
    yield run, "[Errno 30] Read-only file system"
    subprocess.run(["umount", "-l", run], check=True)


REFUSED = (
    ("train", "--workdir", ["{run}"]),
    ("export", "--export.output-dir", ["{run}"]),
    ("report", "--output", ["{run}"]),
    ("mine", "--mine.output-dir", ["{run}"]),
    ("negation", "--negation.output-dir", ["{run}"]),
    ("prepare", "--data-dir", ["{run}", "--data-dir={run}/other"]),
    ("encode", "OUT", ["{run}", "{text}", "{run}/embeddings.npy"]),
    ("import", "RUN", ["{run}", "{run}/imported"]),
    ("merge", "OUT", ["{run}", "{run}", "{run}/merged"]),
    ("mteb", "--output", ["{run}"]),
)


def test_what_must_write_says_so_in_one_line(closed, tmp_path):
    run, problem = closed
    (tmp_path / "text.txt").write_text("one\ntwo\n")
    names = {"run": run, "text": tmp_path / "text.txt"}
    commands = [[verb, *(arg.format(**names) for arg in args)] for verb, _, args in REFUSED]
    for (verb, option, _), done in zip(REFUSED, run_all(commands), strict=True):
        # The first and only line: nothing is read or computed before.
        assert done.err == (
            f"jina-jax {verb}: {problem}: '{run}': ask its owner for the right, or give another "
            f"{option}\n"
        )
        assert done.code == ExitCode.USER_ERROR and not done.out


def test_what_only_reads_it_works(closed, tmp_path):
    run, problem = closed
    (tmp_path / "text.txt").write_text("one\ntwo\n")
    evaluated, *others = run_all([
        ("evaluate", run),
        ("search", run, tmp_path / "text.txt", "two"),
        ("encode", run, tmp_path / "text.txt", tmp_path / "embeddings.npy"),
        ("export", run, f"--export.output-dir={tmp_path / 'export'}"),
        ("report", run, f"--output={tmp_path / 'report'}"),
        ("inspect", run),
        ("show-config", run),
        ("prepare", run, f"--data-dir={run / 'data'}"),
    ])  # fmt: skip
    assert [done.code for done in others] == [0] * 7, others
    for made in ("embeddings.npy", "export/model.safetensors", "report/index.html"):
        assert (tmp_path / made).is_file()
    assert evaluated.code == 0 and "average · trained" in evaluated.out
    assert evaluated.err.splitlines()[-1] == (
        f"these scores are not kept: {run / 'evaluation.json'} may not be written "
        f"({problem.partition('] ')[2]})"
    )


def test_a_run_on_data_that_may_only_be_read_starts_again(folder, tmp_path):
    data = tmp_path / "data"
    shutil.copytree(folder / "data", data)
    change_mode(data, "a-w")
    flags = (f"--data-dir={data}", "--train.num-steps=7")
    try:
        for _ in range(2):
            finish(start(folder, str(tmp_path / "run"), *flags, before=without_privilege))
    finally:
        change_mode(data, "u+w")


def test_a_right_that_is_lost_while_training_ends_the_run(folder, tmp_path):
    flags = ("--train.num-steps=100000", "--faults.save-retry-s=0.1")
    process = start(folder, str(tmp_path / "run"), *flags, before=without_privilege)
    assert wait_for_step(folder, str(tmp_path / "run"), process, 20)
    (tmp_path / "run" / "checkpoints").chmod(0o555)
    # Orbax, were it asked to save there, would keep the process for ten minutes.
    _, said = process.communicate(timeout=120)
    assert process.returncode == ExitCode.SAVE_FAILED, said
    assert "CHECKPOINT FAILED" in said and "Permission denied" in said
