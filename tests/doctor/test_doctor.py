"""The doctor on real folders, whole and damaged."""

import json
import shutil
import subprocess
import sys

import pytest

from jina_jax.cli.doctor import _of as checks_of
from jina_jax.cli.main import main
from jina_jax.config.files import RUN_FILE
from jina_jax.doctor.devices import device_check
from jina_jax.doctor.machine import folder_checks, machine_checks, tested_versions
from tests.pairs import pair, write

CONFIG = """
from pathlib import Path
from jina_jax.config import FeedConfig, OptimConfig, RunConfig, T5Config, TrainConfig
from tests.pairs import config

def get_config():
    return RunConfig(
        "a", workdir="{folder}/run", data=config(Path("{folder}/pairs.jsonl")),
        feed=FeedConfig(16, 24, 24, 24, 4),
        model=T5Config(vocab_size=64, d_model=16, d_kv=4, d_ff=16, num_layers=1, num_heads=2),
        optim=OptimConfig(warmup_steps=1), train=TrainConfig(num_steps=2, log_every_steps=1),
    )
"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    write(folder / "pairs.jsonl", [pair(i) for i in range(260)])
    (folder / "config.py").write_text(CONFIG.format(folder=folder))
    for verb in ("prepare", "train", "export"):
        assert main([verb, str(folder / "config.py")]) == 0
    return folder / "run"


@pytest.fixture
def run(trained, tmp_path):
    return shutil.copytree(trained, tmp_path / "run")


def look(what, *, full=False):
    """The checks of what was named, without those of the machine."""
    checks = list(checks_of(str(what), full))
    for check in checks:
        assert check.verdict in ("ok", "warning", "failed") and check.detail
        assert check.verdict == "ok" or check.remedy, check
    return checks


def failed(checks):
    return {c.subject: c.detail for c in checks if c.verdict == "failed"}


@pytest.mark.parametrize("full", [False, True])
def test_a_whole_run_is_well(run, full):
    checks = look(run, full=full)
    assert failed(checks) == {}
    verdicts = {c.subject: c.verdict for c in checks}
    for subject in (
        "configuration", "run folder", "source pairs", "shards",
        "records", "tokenizer of the data", "data and config", "checkpoints",
        "tokenizer of the run",
    ):  # fmt: skip
        assert verdicts[subject] == "ok", checks
    assert ("parameters" in verdicts) == full


def test_nothing_is_changed(run):
    before = {p: p.stat().st_mtime_ns for p in run.rglob("*")}
    look(run, full=True)
    assert {p: p.stat().st_mtime_ns for p in run.rglob("*")} == before


def test_every_damaged_shard_is_named(run):
    first, second, *_ = sorted((run / "data" / "train").iterdir())
    first.write_bytes(first.read_bytes()[:-1])
    second.unlink()
    checks = look(run / "data")
    details = [c.detail for c in checks if c.subject == "shards"]
    assert any(str(first) in d for d in details) and any(str(second) in d for d in details)


def test_a_flipped_bit_of_a_checkpoint_is_named(run):
    (step,) = (p for p in (run / "checkpoints").iterdir() if p.name.isdigit())
    largest = max((p for p in step.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    data = bytearray(largest.read_bytes())
    data[len(data) // 2] ^= 1
    largest.write_bytes(data)
    detail = failed(look(run))["checkpoints"]
    assert f"step {step.name}" in detail and largest.relative_to(step).as_posix() in detail


def change(run, section, **fields):
    values = json.loads((run / RUN_FILE).read_text())
    values[section] |= fields
    (run / RUN_FILE).write_text(json.dumps(values))


def test_a_configuration_is_judged_as_by_the_verbs(run):
    change(run, "feed", global_batch_size=1)
    change(run, "data", seed=7)
    change(run, "model", vocab_size=40)
    checks = look(run)
    found = failed(checks)
    assert "leaves no in-batch negatives" in found["configuration"]
    assert "seed: 0 → 7" in found["data and config"]
    assert "model.vocab_size=40" in found["vocabulary"]
    (run / RUN_FILE).write_text("{")
    checks = look(run)
    assert "cannot be read as JSON" in failed(checks)["configuration"]


def test_another_tokenizer_is_told(run):
    path = run / "tokenizer" / "tokenizer.json"
    path.write_text(path.read_text() + " ")
    checks = look(run)
    assert "another one than in" in failed(checks)["tokenizer of the run"]


def test_sources_that_are_gone_fail_until_they_are_prepared(run, trained, tmp_path):
    folder = tmp_path / "new"
    folder.mkdir()
    (folder / "config.py").write_text(CONFIG.format(folder=folder))
    checks = look(folder / "config.py")
    assert "matches no file" in failed(checks)["source pairs"]
    shutil.copytree(run, folder / "run")
    change(folder / "run", "data")
    values = json.loads((folder / "run" / RUN_FILE).read_text())
    values["data"]["sources"][0]["paths"] = [str(folder / "pairs.jsonl")]
    (folder / "run" / RUN_FILE).write_text(json.dumps(values))
    checks = look(folder / "run")
    assert {c.subject: c.verdict for c in checks}["source pairs"] == "warning"


def test_an_exported_model_is_read(run):
    checks = look(run / "export")
    assert {c.subject for c in checks} >= {"model", "tokenizer of the model"}
    (run / "export" / "model.safetensors").write_bytes(b"x")
    checks = look(run / "export")
    assert "model.safetensors" in failed(checks)["model"]


def test_the_exit_code_tells_and_json_holds_all_checks(run, capsys):
    capsys.readouterr()
    assert main(["doctor", str(run), "--json"]) == 0
    checks = json.loads(capsys.readouterr().out)
    assert {"python", "packages", "devices", "clock", "shards"} <= {c["subject"] for c in checks}
    (run / RUN_FILE).write_text("{")
    with pytest.raises(SystemExit) as exit_:
        main(["doctor", str(run), "--json"])
    assert exit_.value.code == 1
    last = json.loads(capsys.readouterr().out)[-1]
    assert last["verdict"] == "failed" and "cannot be read as JSON" in last["detail"]


def test_what_is_nothing_of_these_is_refused(tmp_path, capsys):
    assert main(["doctor", str(tmp_path)]) == 2
    assert "neither a prepared folder" in capsys.readouterr().err


def test_the_table_has_a_remedy_below_each_finding(run, capsys):
    (run / "data" / "manifest.json").write_text("{")
    with pytest.raises(SystemExit) as exit_:
        main(["doctor", str(run / "data")])
    assert exit_.value.code == 1
    lines = capsys.readouterr().out.splitlines()
    at = next(i for i, line in enumerate(lines) if line.startswith("prepared data"))
    assert "failed" in lines[at] and any("→ jina-jax prepare" in line for line in lines[at:])
    assert lines[-1].endswith("1 failed")


def test_another_version_and_a_missing_package_are_told(tmp_path, monkeypatch):
    """A package found first on the path is the one that would be imported."""
    info = tmp_path / "xxhash-0.1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: xxhash\nVersion: 0.1.0\n")
    monkeypatch.syspath_prepend(tmp_path)
    (found,) = (c for c in machine_checks() if c.subject == "packages")
    tested = tested_versions()["xxhash"]
    # Beside others, where the environment is newer than the one that was tested.
    assert found.verdict == "warning" and f"xxhash 0.1.0 (tested: {tested})" in found.detail


def test_a_full_disk_and_a_file_in_the_way_fail(tmp_path):
    (check,) = folder_checks("run folder", tmp_path / "new", 10**18)
    assert check.verdict == "failed" and "are needed" in check.detail
    (tmp_path / "file").write_text("x")
    (check,) = folder_checks("run folder", tmp_path / "file" / "run")
    assert check.verdict == "failed" and "is a file" in check.detail


def test_devices_that_do_not_start_fail(monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", "no_such_platform")
    check = device_check()
    assert check.verdict == "failed" and check.remedy


def test_looking_at_the_machine_alone_starts_no_device_here():
    code = (
        "from jina_jax.cli.main import main; main(['doctor']); from jax._src import xla_bridge; "
        "assert not xla_bridge.backends_are_initialized()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "devices" in done.stdout
