"""Figures in Weights & Biases: its real client, offline, in real trainers."""

import os
import signal
import struct

import pytest

from jina_jax.config import RunConfig, TrainConfig
from jina_jax.errors import UserError
from jina_jax.train.metrics.writer import open_boards, read_metrics
from tests.trainer import children, finish, start, stop_at, wait_for_step

FLAGS = ("--train.wandb-project=squares", "--evaluate.every-steps=10")
_BLOCK, _HEADER = 32768, 7


def records(path):
    """The records of a .wandb file: a log of LevelDB, whose blocks hold parts of records."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, at, whole = path.read_bytes(), _HEADER, b""
    while at + _HEADER <= len(data):
        if _BLOCK - at % _BLOCK < _HEADER:
            at += _BLOCK - at % _BLOCK
            continue
        _, length, kind = struct.unpack_from("<IHB", data, at)
        whole += data[at + _HEADER : at + _HEADER + length]
        at += _HEADER + length
        if kind in (1, 4):  # Whole, or the last part.
            yield Record.FromString(whole)
            whole = b""


def history(run):
    """Of each start: name → step → value."""
    for path in sorted(run.glob("wandb/offline-run-*/*.wandb")):
        found = {}
        for record in records(path):
            items = {i.key or i.nested_key[0]: i.value_json for i in record.history.item}
            for name, value in items.items():
                found.setdefault(name, {})[int(items["step"])] = float(value)
        yield found


@pytest.mark.slow
def test_figures_go_on_in_the_same_run_after_a_stop(folder, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    code, said = stop_at(folder, "boards", 12, signal.SIGTERM, *FLAGS)
    assert code == 128 + signal.SIGTERM, said
    finish(start(folder, "boards", *FLAGS))
    run = folder / "boards"
    assert len({path.name for path in run.glob("wandb/*/*.wandb")}) == 1, "another run"
    first, second = history(run)
    lines = read_metrics(run / "metrics.jsonl")
    for name in ("loss", "gradient_norm", "pairs_per_s"):
        assert first[name] | second[name] == {v["step"]: v[name] for v in lines}
    name = "retrieval/average/ndcg@10"
    evaluations = {v["step"]: v[name] for v in read_metrics(run / "evaluations.jsonl")}
    assert first[f"evaluation/{name}"] | second[f"evaluation/{name}"] == evaluations


@pytest.mark.slow
def test_a_client_that_dies_does_not_end_the_run(folder, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    process = start(folder, "lost_board", FLAGS[0])
    assert wait_for_step(folder, "lost_board", process, 5)
    (client,) = (pid for pid, words in children(process.pid).items() if "wandb-core" in words)
    os.kill(client, signal.SIGKILL)
    said = finish(process)
    assert said.count("WEIGHTS & BIASES LOST") == 1


def test_without_a_key_the_error_names_the_way(tmp_path, monkeypatch):
    for name in ("WANDB_MODE", "WANDB_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    config = RunConfig("x", str(tmp_path), train=TrainConfig(wandb_project="squares"))
    with pytest.raises(UserError, match=r"wandb login.*\n?.*WANDB_MODE=offline"):
        open_boards(config, 0)
