"""Model folders made by somebody who means harm: each is refused by name and nothing of it runs."""

import os
import pickle
import shutil

import pytest

from jina_jax.cli.main import main
from jina_jax.errors import UserError
from jina_jax.export.from_folder import import_folder
from jina_jax.inference.embedder import Embedder
from jina_jax.mteb.model import open_model
from tests.inference.hostile_folders import CASES, SHAPES, Payload, auto_map, change


@pytest.fixture
def folder(exported, tmp_path):
    shutil.copytree(exported, tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def ran(tmp_path):
    """What a payload would create; asserted absent after the test."""
    yield tmp_path / "the-payload-ran"
    assert not (tmp_path / "the-payload-ran").exists()


@pytest.mark.parametrize("case", CASES)
def test_a_hostile_folder_is_refused_by_name(folder, ran, case):
    damage, message = CASES[case]
    damage(folder, ran)
    with pytest.raises(UserError, match=message):
        Embedder.load(folder)


@pytest.mark.parametrize("case", [c for c in CASES if "tokenizer" not in c])
def test_the_import_refuses_it_too_and_leaves_nothing(folder, ran, case):
    damage, message = CASES[case]
    damage(folder, ran)
    before = {path.name for path in folder.parent.iterdir()}
    with pytest.raises(UserError, match=message):
        import_folder(str(folder), folder.parent / "run")
    assert {path.name for path in folder.parent.iterdir()} == before


@pytest.mark.parametrize("case", SHAPES)
def test_shapes_that_no_model_has(folder, case):
    values, message = SHAPES[case]
    change(folder / "config.json", **values)
    with pytest.raises(UserError, match=message):
        Embedder.load(folder)


def test_an_infinite_number_is_no_json(folder):
    text = (folder / "config.json").read_text().replace("1e-06", "1e999")
    (folder / "config.json").write_text(text)
    with pytest.raises(UserError, match="beyond the range"):
        Embedder.load(folder)


@pytest.mark.parametrize("verb", ["encode", "search", "import", "merge", "mteb"])
def test_every_verb_says_so_in_one_line_and_exits_with_2(folder, ran, verb, capsys):
    auto_map(folder, ran)
    texts = folder.parent / "texts.txt"
    texts.write_text("a text\n")
    after = {
        "encode": [str(texts), str(folder.parent / "out.npy")], "search": [str(texts), "a query"],
        "import": [str(folder.parent / "run")], "mteb": [],
        "merge": [str(folder), str(folder.parent / "run")],
    }[verb]  # fmt: skip
    assert main([verb, str(folder), *after]) == 2
    captured = capsys.readouterr()
    assert "auto_map" in captured.err and "Traceback" not in captured.err


def test_pickles_and_code_beside_safetensors_are_left_alone(folder, ran):
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Payload(ran)))
    (folder / "modeling.py").write_text(f"open({str(ran)!r}, 'w')\n")
    (folder / "setup.py").write_text(f"open({str(ran)!r}, 'w')\n")
    assert Embedder.load(folder).encode(["a text"]).shape == (1, 32)


def test_links_within_the_hub_cache_are_followed(folder):
    cache = folder.parent / "models--x--y"
    snapshot = cache / "snapshots" / "0123"
    (cache / "blobs").mkdir(parents=True)
    for number, path in enumerate(p for p in folder.rglob("*") if p.is_file()):
        blob = path.rename(cache / "blobs" / str(number))
        link = snapshot / path.relative_to(folder)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.relpath(blob, link.parent))
    assert Embedder.load(snapshot).encode(["a text"]).shape == (1, 32)


def test_a_bert_is_judged_alike(sentence_folder, tmp_path, ran):
    shutil.copytree(sentence_folder, tmp_path / "bert")
    auto_map(tmp_path / "bert", ran)
    with pytest.raises(UserError, match="auto_map"):
        open_model(tmp_path / "bert")
