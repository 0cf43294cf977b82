"""A disk that is full: the alarm comes at once, the save is tried again, nothing good is lost."""

import resource
import signal

import pytest

from jina_jax.checkpoint.checkpoints import Checkpoints
from jina_jax.errors import ExitCode
from jina_jax.train.metrics.writer import read_metrics
from tests.small_disk import mounted
from tests.trainer import curve, finish, start, wait_for_step, wait_until

pytestmark = pytest.mark.slow

LONG = ("--train.num-steps=100000", "--faults.save-retry-s=0.5")


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 12 MB of its own."""
    with mounted(tmp_path / "disk", "12m") as path:
        yield path


def fill(disk):
    """Takes all the room that there is."""
    with (disk / "filler").open("wb", buffering=0) as file:
        try:
            while file.write(b"\0" * 65536):
                pass
        except OSError:
            return


def test_room_that_comes_back_in_time(folder, uninterrupted, small_disk, tmp_path):
    run, log = small_disk / "run", tmp_path / "log"
    with log.open("w") as stderr:
        process = start(folder, str(run), *LONG, stderr=stderr)
    assert wait_for_step(folder, str(run), process, 20)
    fill(small_disk)
    assert wait_until(lambda: "CHECKPOINT FAILED" in log.read_text(), process)
    good = Checkpoints(run / "checkpoints").newest_good()
    assert good
    (small_disk / "filler").unlink()
    wait_until(lambda: Checkpoints(run / "checkpoints").steps[-1] > good + 20, process)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=300) == 128 + signal.SIGTERM, log.read_text()
    lines = read_metrics(run / "metrics.jsonl")
    assert [line["step"] for line in lines] == list(range(1, len(lines) + 1))
    assert lines[-1]["failed_saves"] >= 1
    assert Checkpoints(run / "checkpoints").newest_good() == len(lines)


def test_a_log_that_finds_no_room_ends_no_run(folder, uninterrupted, small_disk):
    """The run lies elsewhere; what it says is lost, and nothing else."""
    (small_disk / "log").write_text("." * 3000)  # Of a page of 4,096, whose rest is its own.
    with (small_disk / "log").open("a") as log:
        process = start(folder, "unheard", stderr=log)
    assert wait_until(lambda: "step 3/" in (small_disk / "log").read_text(), process)
    fill(small_disk)
    assert process.wait(timeout=300) == 0
    assert curve(folder, "unheard") == uninterrupted
    assert "step 40/" not in (small_disk / "log").read_text()


def test_room_that_does_not_come_back(folder, uninterrupted, small_disk, tmp_path):
    run = small_disk / "run"
    process = start(folder, str(run), *LONG)
    assert wait_for_step(folder, str(run), process, 20)
    fill(small_disk)
    _, said = process.communicate(timeout=300)
    assert process.returncode == ExitCode.SAVE_FAILED, said
    assert "(4 of 5 in a row have failed)" in said and "make room or mend the disk" in said
    assert any(line.startswith("jina-jax train: step ") for line in said.splitlines())
    good = Checkpoints(run / "checkpoints").newest_good()
    assert good and good % 7 == 0
    (small_disk / "filler").unlink()
    log = tmp_path / "log"
    with log.open("w") as stderr:
        process = start(folder, str(run), *LONG, stderr=stderr)
    assert wait_until(lambda: f"step {good + 1}/" in log.read_text(), process)
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=300) == 128 + signal.SIGINT, log.read_text()
    assert f"from step {good} of" in log.read_text()


@pytest.mark.slow
def test_files_that_may_not_grow(folder):
    """The same by a limit of the process: saves fail from the first one on."""

    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, limit_bytes))

    # What else is written is smaller than a checkpoint of 64 dimensions.
    limit_bytes = 500_000
    flags = ("--faults.save-retry-s=0.1", "--train.log-every-steps=20", "--model.d-ff=8192")
    process = start(folder, "limited", *flags, before=limit)
    _, said = process.communicate(timeout=300)
    assert process.returncode == ExitCode.SAVE_FAILED, said
    assert "CHECKPOINT FAILED" in said and "File too large" in said
    assert any(line.startswith("jina-jax train: step ") for line in said.splitlines())
    assert not Checkpoints(folder / "limited" / "checkpoints").steps
    finish(start(folder, "limited", *flags[1:]))
    assert Checkpoints(folder / "limited" / "checkpoints").newest_good()
