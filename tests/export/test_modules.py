"""Folders with a Dense layer, prompts, or vectors of any length: in, trained, and out again."""

import dataclasses
import functools
import json
import shutil
import subprocess
from pathlib import Path

import jax
import numpy as np
import onnxruntime
import pytest
import torch
from safetensors.numpy import load_file, save_file
from sentence_transformers import SentenceTransformer
from sentence_transformers.models import Dense, Normalize, Pooling, Transformer

from jina_jax.cli.main import main
from jina_jax.config import ExportConfig, PromptConfig
from jina_jax.config.files import read_run
from jina_jax.devices.mesh import make_mesh
from jina_jax.errors import UserError
from jina_jax.export.from_folder import import_folder
from jina_jax.export.run import export
from jina_jax.feed.pipeline import feed_of_run
from jina_jax.inference.embedder import Embedder
from jina_jax.inference.initial import initial_params
from jina_jax.inference.model_folder import model_sha256, read_sentence_config
from jina_jax.shards.manifest import load_manifest
from jina_jax.train.step import embed_texts
from tests.export.tuned import tune
from tests.marks import some_slow
from tests.random_texts import texts

TEXTS = ["", "the sea", "Ärger at SEA", "zzz 東京 !", *texts(20), "whale " * 150]
PROMPTS = {"document": "the text: ", "query": "find: ", "topic": "topic of "}
KINDS = {
    "dense": lambda: [
        Pooling(24, "mean", include_prompt=False),
        Dense(24, 16, activation_function=torch.nn.Tanh()),
        Normalize(),
    ],
    "long": lambda: [
        Pooling(24, "cls"),
        Dense(24, 40, bias=False, activation_function=torch.nn.GELU()),
    ],
    "plain": lambda: [Pooling(24, "mean")],
}


@pytest.fixture(scope="module")
def made(sentence_folder, tmp_path_factory):
    """(kind) → its folder, which sentence-transformers wrote."""
    base = tmp_path_factory.mktemp("modules")

    @functools.cache
    def make(kind):
        first = Transformer(str(sentence_folder), max_seq_length=100)
        torch.manual_seed(1)
        model = SentenceTransformer(
            modules=[first, *KINDS[kind]()], device="cpu", prompts=PROMPTS,
            default_prompt_name="topic" if kind == "plain" else None,
        )  # fmt: skip
        model.save(str(base / kind))
        return base / kind

    return make


@pytest.fixture(scope="module", params=list(KINDS))
def folder(request, made):
    return made(request.param)


@pytest.fixture(scope="module")
def exported(folder, tmp_path_factory):
    path = tmp_path_factory.mktemp("imported") / "run"
    import_folder(str(folder), path)
    return export(read_run(path))


def opened(folder):
    model = SentenceTransformer(str(folder), device="cpu")
    return lambda **options: model.encode(TEXTS, batch_size=1, **options)


@pytest.fixture(scope="module")
def models(folder, exported):
    """Sentence-transformers with the folder and its export; ours with both and the run."""
    ours = [Embedder.load(path, normalize=None) for path in (folder, exported, exported.parent)]
    return opened(folder), opened(exported), ours


@pytest.mark.parametrize("name", [None, *PROMPTS])
def test_embeddings_are_those_of_sentence_transformers(models, name):
    theirs, after, all_ours = models
    wanted = theirs(prompt_name=name)
    np.testing.assert_allclose(after(prompt_name=name), wanted, rtol=1e-6, atol=1e-6)
    for ours in all_ours:
        prompt = None if name is None else ours.prompts.find(name)
        got = ours.encode(TEXTS, prompt=prompt)
        np.testing.assert_allclose(got, wanted, rtol=1e-6, atol=1e-6)
    if name is not None:
        assert np.abs(wanted - theirs(prompt="")).max() > 1e-3  # Prompts do something.


def test_query_and_document_take_their_own_prompts(folder, models):
    model = SentenceTransformer(str(folder), device="cpu")
    ours = models[2][0]
    for prompt, encode in (
        (ours.prompts.query, model.encode_query), (ours.prompts.document, model.encode_document),
    ):  # fmt: skip
        got = ours.encode(TEXTS, prompt=prompt)
        np.testing.assert_allclose(got, encode(TEXTS, batch_size=1), rtol=1e-6, atol=1e-6)


@pytest.mark.slow
@pytest.mark.network
def test_other_versions_of_sentence_transformers_give_the_same(exported, encoded_by_them):
    ours = Embedder.load(exported, normalize=None)
    if encoded_by_them.version == "2.7" and (exported / "2_Dense").is_dir():
        # It takes the weights of a Dense layer from a pickle alone, which no export writes.
        with pytest.raises(subprocess.CalledProcessError):
            encoded_by_them(exported, TEXTS)
        return
    for name, prompt in PROMPTS.items():
        got = encoded_by_them(exported, TEXTS, name)
        np.testing.assert_allclose(got, ours.encode(TEXTS, prompt=prompt), rtol=1e-6, atol=1e-6)


def test_tensors_go_round_bit_by_bit(folder, exported):
    for path in folder.rglob("model.safetensors"):
        name = path.relative_to(folder)
        before, after = load_file(path), load_file(exported / name)
        assert {k for k in before if not k.startswith("pooler.")} == set(after), name
        for tensor, array in after.items():
            np.testing.assert_array_equal(array, before[tensor])
    assert read_sentence_config(exported) == read_sentence_config(folder)


@pytest.fixture(scope="module")
def tuned(folder, tmp_path_factory):
    base = tmp_path_factory.mktemp("tuned")
    verbs = ("prepare", "train", "evaluate", "export")
    return tune(base, folder, verbs, query=64, positive=96, steps=4, prompt="answer: ")


# What is tuned is plain in every other test of a run; here it is one with fewer modules.
with_tuned = pytest.mark.parametrize(
    "folder", some_slow(["dense"], list(KINDS)), indirect=True, scope="module"
)


@with_tuned
def test_training_embeds_texts_behind_the_prompts_of_their_source(tuned, folder):
    feed = feed_of_run(tuned, load_manifest(tuned.data_path))
    batch = next(feed.batches)
    start = Embedder.load(folder)
    pairs = Path(tuned.data.sources[0].paths[0]).read_text()
    lines = [json.loads(line) for line in pairs.splitlines()]
    known = {
        tuple(start.tokenizer.encode(f"{prompt}{line[name]}").ids): f"{prompt}{line[name]}"
        for line in lines
        for name, prompt in (("query", "find: "), ("positive", "answer: "))
    }
    arrays = batch.arrays
    mesh = make_mesh()
    encode = jax.jit(lambda params, batch: embed_texts(params, batch, tuned, mesh))
    z_BTD = np.asarray(encode(initial_params(tuned, mesh), arrays))
    short = 0
    for side, prompt in enumerate(("find: ", "answer: ")):
        found, whole = [], []
        for z, slot in zip(z_BTD[:, side], arrays.slot_BT[:, side]):
            row, number = divmod(int(slot), tuned.feed.texts_per_row)
            ids = arrays.ids_RL[row][arrays.segments_RL[row] == number + 1]
            if text := known.get(tuple(ids.tolist())):  # One that was not cut.
                found.append(z)
                whole.append(text.removeprefix(prompt))
        np.testing.assert_allclose(found, start.encode(whole, prompt=prompt), rtol=1e-6, atol=1e-6)
        short += len(whole)
    assert short > 5


@with_tuned
def test_every_parameter_is_trained(tuned, folder):
    after = Embedder.load(tuned.run_path)
    before = initial_params(tuned, make_mesh())
    for old, new in zip(jax.tree.leaves(before), jax.tree.leaves(after._encoder.params)):
        assert not np.array_equal(old, new) or "plain" in folder.name or old.ndim < 2
    model = SentenceTransformer(str(tuned.export_path), device="cpu")
    got = Embedder.load(tuned.run_path, normalize=None).encode(TEXTS, prompt="find: ")
    theirs = model.encode(TEXTS, batch_size=1, prompt_name="query")
    # Vectors of any length where nothing normalises them.
    length = np.linalg.norm(theirs, axis=1).max()
    np.testing.assert_allclose(got, theirs, rtol=1e-6, atol=1e-6 * max(1.0, length))


def test_the_verb_takes_a_prompt_by_its_name_and_names_those_there_are(folder, tmp_path, capsys):
    (tmp_path / "in.txt").write_text("\n".join(TEXTS[1:]) + "\n")
    arguments = ["encode", str(folder), str(tmp_path / "in.txt"), str(tmp_path / "out.npy")]
    assert main([*arguments, "--prompt-name", "query"]) == 0
    wanted = opened(folder)(prompt_name="query")[1:]
    np.testing.assert_allclose(np.load(tmp_path / "out.npy"), wanted, rtol=1e-6, atol=1e-6)
    assert main([*arguments, "--prompt-name", "summary"]) == 2
    message = "no prompt is named 'summary'; there are document, query, topic"
    assert message in capsys.readouterr().err
    assert main([*arguments, "--prompt-name", "query", "--prompt", "x"]) == 2
    assert main(arguments) == 0
    assert "--prompt-name query" in capsys.readouterr().err


def test_prompts_of_old_names():
    old = PromptConfig((("passage", "passage: "), ("query", "query: ")))
    assert (old.query, old.document, old.other) == ("query: ", "passage: ", "")


def test_prompts_of_a_model_without_any():
    assert PromptConfig().query == PromptConfig().document == PromptConfig().other == ""
    with pytest.raises(UserError, match="no prompt is named 'query'; it has none"):
        PromptConfig().find("query")


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("2_Dense/config.json", {"activation_function": "my.own.Thing"}, "is not known here"),
        ("2_Dense/config.json", {"in_features": 25}, "expected the model's 24 dimensions"),
        ("2_Dense/config.json", {"use_residual": True}, "use_residual=True is not supported"),
        ("config_sentence_transformers.json", {"prompts": {"query": 3}}, "names and texts"),
        ("config_sentence_transformers.json", {"default_prompt_name": "no"}, "none of its prompts"),
    ],
)
def test_what_cannot_be_computed_is_refused_by_name(made, tmp_path, file, change, message):
    folder = shutil.copytree(made("dense"), tmp_path / "model")
    (folder / file).write_text(json.dumps(json.loads((folder / file).read_text()) | change))
    with pytest.raises(UserError, match=message):
        read_sentence_config(folder)


def test_a_folder_with_other_modules_can_be_hashed(made, tmp_path):
    """As a cross-encoder's: it is no sentence encoder, and a filter's model all the same."""
    folder = shutil.copytree(made("dense"), tmp_path / "model")
    before = model_sha256(folder)
    modules = json.loads((folder / "modules.json").read_text())
    (folder / "modules.json").write_text(json.dumps(modules[:1]))
    assert model_sha256(folder) == before
    with pytest.raises(UserError, match="has the modules Transformer"):
        read_sentence_config(folder)
    weights = folder / "2_Dense" / "model.safetensors"
    save_file({name: x + 1 for name, x in load_file(weights).items()}, weights)
    assert model_sha256(folder) != before


@pytest.mark.slow
def test_the_onnx_graph_has_what_is_behind_the_pooling(folder, exported):
    config = dataclasses.replace(read_run(exported.parent), export=ExportConfig(onnx=True))
    if not config.pooling.include_prompt:
        with pytest.raises(UserError, match="the graph sees no prompts"):
            export(config)
        return
    export(config)  # Compares the graph with the checkpoint.
    session = onnxruntime.InferenceSession(exported / "onnx" / "model.onnx")
    tokenizer = Embedder.load(exported).tokenizer
    for text in TEXTS[:4]:
        ids = np.array([tokenizer.encode(text).ids])
        (got,) = session.run(
            ["sentence_embedding"], {"input_ids": ids, "attention_mask": np.ones_like(ids)}
        )
        wanted = Embedder.load(folder, normalize=None).encode([text], prompt="")
        np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-5)
