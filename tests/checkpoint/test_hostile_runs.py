"""Run folders that come from elsewhere: their configuration is read within bounds, or refused."""

import dataclasses
import json

import pytest

from jina_jax.checkpoint.checkpoints import load_checkpoint
from jina_jax.cli.main import main
from jina_jax.config import OptimConfig, RunConfig, T5Config
from jina_jax.config.files import RUN_FILE, read_run, to_json
from jina_jax.config.validation import validate
from jina_jax.errors import UserError


@pytest.fixture
def run(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / RUN_FILE).write_text(to_json(RunConfig("a", model=T5Config(d_model=32))))
    return tmp_path


def change(run, **sections):
    values = json.loads((run / RUN_FILE).read_text())
    for name, fields in sections.items():
        values[name] = values[name] | fields if isinstance(fields, dict) else fields
    (run / RUN_FILE).write_text(json.dumps(values))


CASES = {
    "no object": (lambda run: (run / RUN_FILE).write_text("[]"), "expected an object"),
    "damaged": (lambda run: (run / RUN_FILE).write_text("{"), "cannot be read as JSON"),
    "large": (lambda run: (run / RUN_FILE).write_text(" " * (17 << 20)), "16,777,216 bytes"),
    "a key twice": (
        lambda run: (run / RUN_FILE).write_text('{"model": {}, "model": {}}'), "is there twice",
    ),
    "no model": (lambda run: (run / RUN_FILE).write_text('{"name": "a"}'), "no section 'model'"),
    "a text": (lambda run: change(run, model={"d_model": "wide"}), r"model\.d_model"),
    "a billion layers": (lambda run: change(run, model={"num_layers": 10**9}), r"num_layers=10"),
    "no list": (lambda run: change(run, model=7), "model"),
    "an unknown field": (lambda run: change(run, model={"code": "x"}), r"model\.code"),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_a_run_whose_configuration_is_hostile_is_refused(run, case, capsys):
    damage, message = CASES[case]
    damage(run)
    with pytest.raises(UserError, match=message):
        load_checkpoint(run)
    (run / "texts.txt").write_text("a text\n")
    assert main(["encode", str(run), str(run / "texts.txt"), str(run / "out.npy")]) == 2
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize("case", ["no object", "damaged", "large", "a key twice", "a text"])
@pytest.mark.parametrize("verb", ["inspect", "show-config", "train"])
def test_every_verb_that_reads_it_exits_with_2(run, case, verb, capsys):
    CASES[case][0](run)
    assert main([verb, str(run)]) == 2
    assert RUN_FILE in capsys.readouterr().err


def test_an_infinite_setting_comes_back(run):
    config = RunConfig("a", optim=OptimConfig(clip_norm=float("inf")))
    (run / RUN_FILE).write_text(to_json(config))
    assert read_run(run) == dataclasses.replace(config, workdir=str(run))


def test_a_setting_that_is_no_number_is_named():
    config = RunConfig("a", optim=OptimConfig(learning_rate=float("nan")))
    with pytest.raises(UserError, match=r"optim\.learning_rate is NaN"):
        validate(config)


def test_a_path_that_orbax_takes_for_a_pattern_is_refused_before_a_step(folder, tmp_path, capsys):
    where = tmp_path / "tries [2]"
    assert main(["train", str(folder / "config.py"), f"--workdir={where}"]) == 2
    assert "Orbax takes '[' in a path for a pattern" in capsys.readouterr().err
    assert not list(where.rglob("metrics.jsonl"))
