"""A config of two phases, from its prepared data to an exported model, through the command line."""

import json

import numpy as np
import pytest

from jina_jax.checkpoint.checkpoints import load_checkpoint
from jina_jax.cli.main import main
from jina_jax.config.files import load_config, load_phases
from jina_jax.errors import UserError
from jina_jax.shards.manifest import load_manifest
from jina_jax.train.metrics.writer import read_metrics
from tests.prepared import tiny_config, write_jsonl

CONFIG = """
from dataclasses import replace
from jina_jax.config import DataConfig, SourceConfig, TokenizerConfig
from jina_jax.config import LossConfig
from tests.prepared import tiny_config

FOLDER = {folder!r}

def get_config():
    pairs = tiny_config(FOLDER)
    pairs = replace(
        pairs,
        data=replace(pairs.data, sources=pairs.data.sources[1:], eval_pairs=10,
                     tokenizer=TokenizerConfig("train", 60)),
        train=replace(pairs.train, num_steps=12),
    )
    source = SourceConfig(
        "closer", paths=(FOLDER + "/triplets.jsonl",), negative_field="negative"
    )
    triplets = replace(
        pairs, name="triplets", workdir=FOLDER + "/second", data_dir="",
        data=DataConfig(
            (source, pairs.data.sources[0]), TokenizerConfig(FOLDER + "/data/tokenizer"),
            eval_pairs=10,
        ),
        loss=LossConfig(margin_weight=2.0),
    )
    return pairs, triplets
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("phases")
    rows = [json.loads(line) for line in write_jsonl(folder).read_text().splitlines()]
    for row, other in zip(rows, rows[1:] + rows[:1]):
        row["negative"] = other["positive"]
    (folder / "triplets.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "config.py").write_text(CONFIG.format(folder=str(folder)))
    for verb in ("prepare", "train"):
        assert main([verb, str(folder / "config.py")]) == 0
    return folder


def test_both_phases_train_and_the_second_has_pairs_and_triplets(folder):
    first = read_metrics(folder / "run" / "metrics.jsonl")
    second = read_metrics(folder / "second" / "metrics.jsonl")
    assert [v["step"] for v in first] == [v["step"] for v in second] == list(range(1, 13))
    assert not any("margin_loss" in v for v in first)
    assert [v["source"] for v in second][:4] == ["closer", "numbers", "closer", "numbers"]
    for v in second:
        assert ("margin_loss" in v) == ("negative_cosine" in v) == (v["source"] == "closer")
        total = v["query_loss"] + v["positive_loss"] + 2 * v.get("margin_loss", 0.0)
        assert v["loss"] == pytest.approx(total, rel=1e-6)
    of_triplets = [v["margin_loss"] for v in second if v["source"] == "closer"]
    assert min(of_triplets) > 0
    # A negative is the positive of another triplet: some of a batch are in it twice.
    assert max(v["masked_share"] for v in second) > 0


def test_the_second_phase_starts_where_the_first_ends(folder, tmp_path):
    config = f"{folder / 'config.py'}:triplets"
    flags = ["--workdir", str(tmp_path / "one"), "--data-dir", str(folder / "second" / "data")]
    assert main(["train", config, *flags, "--train.num-steps=1", "--optim.warmup-steps=1",
                 "--optim.learning-rate=1e-12", "--optim.weight-decay=0"]) == 0  # fmt: skip
    before, after = load_checkpoint(folder / "run"), load_checkpoint(tmp_path / "one")
    assert (before.step, after.step) == (12, 1)
    a, b = (np.asarray(t.params["embedding_VD"].get_value()) for t in (before, after))
    np.testing.assert_allclose(a, b, atol=1e-9)
    random = load_checkpoint(folder / "second").params["embedding_VD"].get_value()
    assert np.abs(np.asarray(random) - a).max() > 1e-3


def test_evaluation_and_export_of_the_second_phase(folder):
    for verb in ("evaluate", "export"):
        assert main([verb, f"{folder / 'config.py'}:triplets"]) == 0
    results = json.loads((folder / "second" / "evaluation.json").read_text())
    assert results.keys() == {"closer", "numbers", "average"}
    card = (folder / "second" / "export" / "README.md").read_text()
    assert "hard negatives" in card and "margin of 0.05" in card


def test_another_vocabulary_is_refused(folder, capsys, tmp_path):
    config = f"{folder / 'config.py'}:triplets"
    flags = ["--workdir", str(tmp_path / "other")]
    tokenizer = ["--data.tokenizer.source=train", "--data.tokenizer.vocab-size=50"]
    assert main(["prepare", config, *flags, *tokenizer]) == 0
    assert main(["train", config, *flags, *tokenizer]) == 2
    errors = " ".join(capsys.readouterr().err.split())
    assert "learned another vocabulary than the prepared data have" in errors
    assert f"data.tokenizer.source={folder / 'run' / 'tokenizer'}" in errors


def test_overrides_need_a_phase(folder, capsys):
    config = folder / "config.py"
    assert main(["train", str(config), "--train.num-steps=3"]) == 2
    assert f"{config}:tiny or {config}:triplets" in capsys.readouterr().err
    assert main(["train", f"{config}:pairs"]) == 2
    assert f"no phase 'pairs'; choose {config}:tiny or {config}:triplets" in capsys.readouterr().err
    with pytest.raises(UserError, match="several phases; choose"):
        load_config(str(config))


def test_phases_need_names_and_folders_of_their_own(tmp_path):
    path = tmp_path / "same.py"
    same = "from tests.prepared import tiny_config\n\ndef get_config():\n    return {}\n"
    path.write_text(same.format("tiny_config('a'), tiny_config('b')"))
    with pytest.raises(UserError, match="each phase needs a name of its own"):
        load_phases(str(path))
    path.write_text(same.format("()"))
    with pytest.raises(UserError, match="or a tuple of them"):
        load_phases(str(path))
    path.write_text(same.format("tiny_config('a')"))
    assert load_phases(str(path)) == (tiny_config("a"),)


REFRESH = """
from dataclasses import replace
from jina_jax.config import SourceConfig, TokenizerConfig
from jina_jax.config import MineConfig
from tests.prepared import tiny_config

FOLDER = {folder!r}

def mined(phase):
    path = str(phase.mine_path / "numbers.jsonl")
    return SourceConfig("closer", paths=(path,), negative_field="negative")

def get_config():
    first = tiny_config(FOLDER)
    numbers = first.data.sources[1]
    first = replace(
        first,
        data=replace(first.data, sources=(numbers,), eval_pairs=10,
                     tokenizer=TokenizerConfig("train", 60)),
        train=replace(first.train, num_steps=8),
        mine=MineConfig(negatives_per_pair=2, margin=-1.0, margin_kind="absolute"),
    )
    def after(before, name):
        tokenizer = TokenizerConfig(str(first.data_path / "tokenizer"))
        data = replace(first.data, sources=(numbers, mined(before)), tokenizer=tokenizer,
                       negatives_per_record=2)
        return replace(first, name=name, workdir=FOLDER + "/" + name, data_dir="", data=data)
    second = after(first, "second")
    return first, second, after(second, "third")
"""


@pytest.fixture(scope="module")
def refreshed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("refresh")
    write_jsonl(folder)
    (folder / "config.py").write_text(REFRESH.format(folder=str(folder)))
    assert main(["run", str(folder / "config.py")]) == 0
    return folder


@pytest.mark.slow
def test_one_command_mines_anew_between_phases(refreshed):
    first, second = (
        json.loads((refreshed / run / "mined" / "mined.json").read_text())
        for run in ("run", "second")
    )
    assert not (refreshed / "third" / "mined").exists()
    assert first["model"] != second["model"]
    assert first["sources"][0]["triplets"] > 100
    texts = [(refreshed / run / "mined" / "numbers.jsonl").read_text() for run in ("run", "second")]
    assert texts[0] != texts[1]
    for phase, of_model in (("second", 0), ("third", 1)):
        found = load_manifest(refreshed / phase / "data").sources[1]
        assert found.read == texts[of_model].count("\n")
        assert found.records < 0.7 * found.train
        metrics = read_metrics(refreshed / phase / "metrics.jsonl")
        assert sum("margin_loss" in line for line in metrics) == 4
    assert (refreshed / "third" / "evaluation.json").is_file()
    assert (refreshed / "third" / "export" / "model.safetensors").is_file()


@pytest.mark.slow
def test_run_again_does_nothing_again(refreshed, capsys):
    before = {p: p.stat().st_mtime_ns for p in refreshed.rglob("*.arrayrecord")}
    assert main(["run", str(refreshed / "config.py")]) == 0
    assert before == {p: p.stat().st_mtime_ns for p in refreshed.rglob("*.arrayrecord")}
    assert "already holds what this configuration mines" in capsys.readouterr().err
