"""Models merged into one: folders, runs and steps, against NumPy in float64."""

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from sentence_transformers import SentenceTransformer

from jina_jax import api
from jina_jax.checkpoint.checkpoints import load_checkpoint
from jina_jax.cli.main import main
from jina_jax.cli.tables import inspect
from jina_jax.config import ExportConfig
from jina_jax.config.files import read_run
from jina_jax.errors import UserError
from jina_jax.export.merge import merge
from jina_jax.inference.embedder import Embedder
from tests.model.test_interpolation import slerp
from tests.prepared import tiny_config
from tests.random_texts import texts
from tests.trainer import ROOT, wait_until

WEIGHTS = (1.0, 0.5, 2.5)


@pytest.fixture(scope="module")
def folders(sentence_folder, tmp_path_factory):
    """Three models of one shape, as three seeds of one training would be."""
    base, found = tmp_path_factory.mktemp("seeds"), []
    chance = np.random.default_rng(0)
    for number in range(3):
        folder = base / f"seed-{number}"
        shutil.copytree(sentence_folder, folder)
        path = folder / "model.safetensors"
        tensors = load_file(path)
        moved = {
            name: x + (0.3 * x.std() * chance.normal(size=x.shape)).astype(np.float32)
            for name, x in tensors.items()
            if x.dtype == np.float32
        }
        save_file(tensors | moved, path, {"format": "pt"})
        found.append(folder)
    return found


def in_float64(folder):
    return {n: x.astype(np.float64) for n, x in load_file(folder / "model.safetensors").items()}


def expected_of(models, how):
    if how == "mean":
        total = sum(WEIGHTS)
        return {
            name: sum(w * m[name] for w, m in zip(WEIGHTS, models)) / total for name in models[0]
        }
    one, two, three = models
    a, b, c = WEIGHTS
    return {
        name: between(between(one[name], two[name], b / (a + b)), three[name], c / (a + b + c))
        for name in one
    }


def between(a, b, t):
    return slerp(a, b, t) if np.any(a) and np.any(b) else (1 - t) * a + t * b


@pytest.mark.parametrize("how", ["mean", "slerp"])
def test_folders_give_what_numpy_gives(folders, tmp_path, how):
    run = tmp_path / "merged"
    arguments = [*map(str, folders), str(run), "--how", how, "--weights", *map(str, WEIGHTS)]
    assert main(["merge", *arguments]) == 0
    assert main(["export", str(run)]) == 0
    found = load_file(run / "export" / "model.safetensors")
    expected = expected_of([in_float64(folder) for folder in folders], how)
    assert len(found) > 30
    for name, tensor in found.items():
        np.testing.assert_allclose(tensor, expected[name], rtol=0, atol=1e-6, err_msg=name)
    # It is a model like others, and tells what it was made of.
    some = texts(10)
    theirs = SentenceTransformer(str(run / "export"), device="cpu").encode(some)
    np.testing.assert_allclose(Embedder.load(run).encode(some), theirs, atol=1e-6)
    assert np.abs(theirs - Embedder.load(folders[0]).encode(some)).max() > 1e-2
    card = (run / "export" / "README.md").read_text(encoding="utf-8")
    assert "Merged from 3 models" in card and ("(slerp)" in card) == (how == "slerp")
    assert "| seed-1 |  | 0.125 |" in card and str(folders[0].parent) not in card
    assert f"merged by {how} from {folders[0]} (0.25), " in inspect(run, 1)
    assert [p.name for p in tmp_path.iterdir()] == ["merged"]


@pytest.fixture(scope="module")
def trained(folder):
    """A run with three checkpoints."""
    config = tiny_config(str(folder))
    config = dataclasses.replace(
        config,
        workdir=str(folder / "soup"),
        train=dataclasses.replace(config.train, num_steps=6, checkpoint_every_steps=2),
        export=ExportConfig(push_to="owner/theirs", output_dir=str(folder / "elsewhere")),
    )
    api.train(config)
    return config.run_path


def leaves(run, step=None):
    return [np.asarray(x, np.float64) for x in jax.tree.leaves(load_checkpoint(run, step).params)]


@pytest.mark.slow
def test_the_newest_steps_of_a_run_are_averaged(trained, tmp_path, capsys):
    run = tmp_path / "averaged"
    assert main(["merge", str(trained), str(run), "--last-steps", "3"]) == 0
    steps = [leaves(trained, step) for step in (2, 4, 6)]
    for found, *of in zip(leaves(run), *steps, strict=True):
        np.testing.assert_allclose(found, np.mean(of, axis=0), atol=1e-6)
    apart = [np.abs(a - b).max() for a, b in zip(leaves(run), steps[2], strict=True)]
    assert max(apart) > 1e-4
    # A run that every verb takes, with the data of the one that it was made of; what it writes
    # goes to no place of that one's.
    scores = api.evaluate(read_run(run)).retrieval["average"]["trained"]
    assert 0 < scores["ndcg@10"] <= 1
    assert read_run(run).export == ExportConfig() and read_run(run).name == "averaged"
    said = load_checkpoint(run).merged
    assert [(part.step, round(part.weight, 6)) for part in said.parts] == [
        (2, 0.333333), (4, 0.333333), (6, 0.333333),
    ]  # fmt: skip
    assert main(["train", str(run)]) == 2
    assert "holds a model that was merged, which no training goes on in" in capsys.readouterr().err


def test_runs_and_single_steps_are_merged(trained, tmp_path):
    merge([f"{trained}@2", str(trained)], tmp_path / "merged", weights=(3, 1))
    of = leaves(trained, 2), leaves(trained)
    for found, a, b in zip(leaves(tmp_path / "merged"), *of, strict=True):
        np.testing.assert_allclose(found, 0.75 * a + 0.25 * b, atol=1e-6)
    parts = load_checkpoint(tmp_path / "merged").merged.parts
    assert [(part.model, part.step) for part in parts] == [
        (str(trained), 2), (str(trained), 6),
    ]  # fmt: skip
    # A run and its own export are one model: the merge is that model.
    config = dataclasses.replace(read_run(trained), export=ExportConfig())
    merge([str(trained), str(api.export(config))], tmp_path / "same", how="slerp")
    for found, a in zip(leaves(tmp_path / "same"), leaves(trained), strict=True):
        np.testing.assert_array_equal(found, a)


def changed(folder, tmp_path, file, change):
    other = tmp_path / "other"
    shutil.copytree(folder, other)
    document = json.loads((other / file).read_text(encoding="utf-8"))
    change(document)
    (other / file).write_text(json.dumps(document), encoding="utf-8")
    return other


def swap_two_words(document):
    vocabulary = document["model"]["vocab"]
    vocabulary["sea"], vocabulary["full"] = vocabulary["full"], vocabulary["sea"]


DIFFERENCES = {
    "config.json": (
        lambda d: d.update(num_attention_heads=6), r"model\.num_attention_heads: 4 → 6$",
    ),
    "1_Pooling/config.json": (
        lambda d: d.update(pooling_mode_mean_tokens=False, pooling_mode_cls_token=True),
        r"pooling\.mode: mean → cls$",
    ),
    "tokenizer.json": (swap_two_words, r"tokenizer\.model\.vocab\.sea: 6 → 8\n  and 1 more$"),
}  # fmt: skip


@pytest.mark.parametrize("file", DIFFERENCES)
def test_another_model_is_refused_with_the_first_difference(folders, tmp_path, file):
    change, message = DIFFERENCES[file]
    other = changed(folders[1], tmp_path, file, change)
    with pytest.raises(UserError, match=f"cannot be merged with .*\n  {message}"):
        merge([str(folders[0]), str(other)], tmp_path / "merged")
    assert [p.name for p in tmp_path.iterdir()] == ["other"]


def test_prompts_are_those_of_the_first(folders, tmp_path, capsys):
    shutil.copytree(folders[1], tmp_path / "other")
    prompts = {"prompts": {"query": "find: "}, "default_prompt_name": None}
    (tmp_path / "other" / "config_sentence_transformers.json").write_text(json.dumps(prompts))
    for first, second, query in ((folders[0], tmp_path / "other", ""),
                                 (tmp_path / "other", folders[0], "find: ")):  # fmt: skip
        out = tmp_path / f"merged-{first.name}"
        merge([str(first), str(second)], out)
        assert f"has other prompts than {first}, whose are taken" in capsys.readouterr().err
        assert Embedder.load(out).prompts.query == query


def test_another_family_is_refused_by_its_name(folders, trained, tmp_path):
    with pytest.raises(UserError, match=r"\n  family: BERT → T5\n"):
        merge([str(folders[0]), str(trained)], tmp_path / "merged")


def test_arguments_that_make_no_sense_are_refused(folders, trained, tmp_path):
    one, two, run, out = str(folders[0]), str(folders[1]), str(trained), tmp_path / "merged"
    cases = [
        ([one], {}, "takes two models or more"),
        ([one, two], {"weights": (1.0,)}, "1 numbers for 2 models"),
        ([one, two], {"weights": (1.0, 0.0)}, "--weights 1 0: each must be above 0"),
        ([one, two], {"weights": (1.0, float("nan"))}, "must be above 0 and finite"),
        ([one, two], {"last_steps": 2}, "takes them of one run"),
        ([run], {"last_steps": 4}, r"must lie in 2\.\.3: .* has the steps 2, 4, 6;"),
        ([run, f"{run}@5"], {}, r"no undamaged step 5 in .*; the steps there are: 2, 4, 6"),
        ([run, f"{run}@newest"], {}, r"the number of a step; .* has 2, 4, 6"),
        ([run, str(tmp_path / "nowhere")], {}, "nowhere"),
    ]
    for models, options, message in cases:
        with pytest.raises(UserError, match=message):
            merge(models, out, **options)
    assert not list(tmp_path.iterdir())
    with pytest.raises(UserError, match="is there already"):
        merge([one, two], folders[2])


def test_a_kill_leaves_no_half_run_and_the_next_call_makes_it(folders, tmp_path):
    out = tmp_path / "merged"
    command = [sys.executable, "-m", "jina_jax.cli", "merge", *map(str, folders), str(out)]
    process = subprocess.Popen(command, env=os.environ | {"PYTHONPATH": str(ROOT)})
    saving = tmp_path / ".merged.partial" / "result" / "checkpoints"
    assert wait_until(saving.exists, process)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not out.exists()
    merge([str(folder) for folder in folders], out)
    assert [p.name for p in tmp_path.iterdir()] == ["merged"]
    assert load_checkpoint(out).step == 0
