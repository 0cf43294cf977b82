"""Folders of every family: read, made a run of, exported, and loaded by sentence-transformers."""

import dataclasses
import json
import shutil

import numpy as np
import onnxruntime
import pytest
import sentence_transformers
import torch
import transformers
from safetensors.numpy import load_file, save_file
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

from jina_jax.cli.main import main
from jina_jax.config import (
    BertConfig,
    ExportConfig,
    ModernBertConfig,
    MPNetConfig,
    Qwen3Config,
)
from jina_jax.config.files import read_run
from jina_jax.devices.mesh import make_mesh
from jina_jax.errors import UserError
from jina_jax.export.from_folder import import_folder
from jina_jax.export.run import export
from jina_jax.inference.embedder import Embedder
from jina_jax.inference.initial import initial_params
from jina_jax.inference.model_folder import read_folder_tokenizer
from jina_jax.model.encoder import config_to_huggingface, to_huggingface
from tests.export.tuned import tune
from tests.marks import some_slow
from tests.random_texts import WORDS, texts

TEXTS = ["", "the sea", "Ärger at SEA", "zzz 東京 !", *texts(20), "whale " * 90]
ROBERTA_SPECIAL = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]


WORD_LEVEL = [*ROBERTA_SPECIAL, *WORDS[:30]]
SMALL = {
    "vocab_size": len(WORD_LEVEL), "hidden_size": 24, "num_hidden_layers": 2,
    "num_attention_heads": 4, "intermediate_size": 48, "max_position_embeddings": 66,
}  # fmt: skip
SHAPES = {
    "roberta": BertConfig(
        "roberta", **SMALL, pad_token_id=1, type_vocab_size=1, layer_norm_eps=1e-5
    ),
    "mpnet": MPNetConfig(**SMALL),
    "modernbert": ModernBertConfig(**SMALL, local_attention=8, pad_token_id=1),
    "qwen3": Qwen3Config(**SMALL, num_key_value_heads=2, head_dim=8),
}


def family_folder(folder, shape, pooling):
    """A random model of a shape, with a tokenizer whose special tokens are RoBERTa's."""
    vocabulary = {word: number for number, word in enumerate(WORD_LEVEL)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    torch.manual_seed(0)
    document = config_to_huggingface(shape) | {"pad_token_id": 1}
    del document["torch_dtype"]
    model = transformers.AutoModel.from_config(transformers.AutoConfig.for_model(**document))
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.15 * torch.randn_like(weight))
    model.save_pretrained(folder)
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, model_max_length=64, pad_token="<pad>", unk_token="<unk>",
        bos_token="<s>", eos_token="</s>", cls_token="<s>", sep_token="</s>", mask_token="<mask>",
    ).save_pretrained(folder)  # fmt: skip
    write_modules(folder, pooling, 64)


def write_modules(folder, pooling, max_tokens):
    kinds = {"": "Transformer", "1_Pooling": "Pooling", "2_Normalize": "Normalize"}
    modules = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (path, kind) in enumerate(kinds.items())
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling").mkdir(exist_ok=True)
    flags = {f"pooling_mode_{name}": name.startswith(pooling) for name in
             ("cls_token", "mean_tokens", "max_tokens", "lasttoken")}  # fmt: skip
    document = json.dumps({"word_embedding_dimension": 24, **flags})
    (folder / "1_Pooling" / "config.json").write_text(document)
    limits = {"max_seq_length": max_tokens, "do_lower_case": False}
    (folder / "sentence_bert_config.json").write_text(json.dumps(limits))


FOLDERS = some_slow(
    ["bert-mean", "qwen3-lasttoken"],
    ["bert-mean", "bert-cls", "roberta-mean", "mpnet-mean", "modernbert-cls", "qwen3-lasttoken"],
)


@pytest.fixture(scope="module", params=FOLDERS)
def folder(request, sentence_folder, tmp_path_factory):
    family, pooling = request.param.split("-")
    folder = tmp_path_factory.mktemp("family") / request.param
    if family == "bert":
        shutil.copytree(sentence_folder, folder)
        write_modules(folder, pooling, 100)
    else:
        family_folder(folder, SHAPES[family], pooling)
    return folder


@pytest.fixture(scope="module")
def run(folder, tmp_path_factory):
    path = tmp_path_factory.mktemp("imported") / "run"
    import_folder(str(folder), path)
    export(read_run(path))
    return path


def test_embeddings_are_those_of_sentence_transformers(folder):
    model = sentence_transformers.SentenceTransformer(str(folder), device="cpu")
    got = Embedder.load(folder).encode(TEXTS)
    np.testing.assert_allclose(got, model.encode(TEXTS, batch_size=1), rtol=0, atol=1e-6)
    assert np.ptp(got @ got.T) > 0.1  # Else the texts would all be alike.


def test_a_folder_goes_round_bit_by_bit(folder, run):
    before, after = (load_file(f / "model.safetensors") for f in (folder, run / "export"))
    assert set(after) <= set(before)
    assert set(before) - set(after) <= {"pooler.dense.weight", "pooler.dense.bias"}
    for name, array in after.items():
        np.testing.assert_array_equal(array, before[name])
    given, written = (folder / "tokenizer.json", run / "export" / "tokenizer.json")
    assert written.read_bytes() == given.read_bytes()


def test_the_export_gives_sentence_transformers_the_same_embeddings(folder, run):
    ours, theirs = (
        sentence_transformers.SentenceTransformer(str(f), device="cpu")
        for f in (run / "export", folder)
    )
    assert ours.max_seq_length == theirs.max_seq_length
    got = ours.encode(TEXTS, batch_size=1)
    np.testing.assert_allclose(got, theirs.encode(TEXTS, batch_size=1), rtol=0, atol=1e-6)
    for source in (run, run / "export"):
        np.testing.assert_allclose(Embedder.load(source).encode(TEXTS), got, rtol=0, atol=1e-6)


@pytest.fixture(scope="module")
def tuned(folder, tmp_path_factory):
    """A run that starts from the folder, trained for a few steps."""
    base = tmp_path_factory.mktemp("tuned")
    verbs = ("prepare", "train", "export")
    return tune(base, folder, verbs, query=16, positive=32, steps=96).run_path


def test_a_run_takes_everything_from_the_folder(folder, tuned):
    config = read_run(tuned)
    assert config.pooling.mode == folder.name.split("-")[1]
    assert config.model.model_type == folder.name.split("-")[0]
    assert config.train.initial_weights == config.data.tokenizer.source == str(folder)
    assert config.data.max_text_tokens == {"bert": 100}.get(config.model.model_type, 64)


def test_training_starts_from_its_weights_and_learns(folder, tuned):
    losses = [json.loads(line)["loss"] for line in (tuned / "metrics.jsonl").open()]
    assert np.mean(losses[-6:]) < 0.98 * np.mean(losses[:3])
    model = sentence_transformers.SentenceTransformer(str(tuned / "export"), device="cpu")
    got = model.encode(TEXTS, batch_size=1)
    ours = Embedder.load(tuned).encode(TEXTS)
    # A text is cut where training cut it.
    assert model.max_seq_length == 32
    np.testing.assert_allclose(ours, got, rtol=0, atol=1e-6)
    start = Embedder.load(folder).encode(TEXTS)
    assert np.abs(start - ours).max() > 1e-3
    begun = to_huggingface(initial_params(read_run(tuned), make_mesh()), read_run(tuned).model)
    before = load_file(folder / "model.safetensors")
    for name, array in begun.items():
        np.testing.assert_array_equal(array, before[name])


@pytest.mark.slow
@pytest.mark.network
def test_other_versions_of_sentence_transformers_give_the_same(run, encoded_by_them):
    got = encoded_by_them(run / "export", TEXTS)
    np.testing.assert_allclose(got, Embedder.load(run).encode(TEXTS), rtol=0, atol=1e-6)


@pytest.mark.slow
def test_the_onnx_graph_gives_the_same_embeddings(run):
    config = dataclasses.replace(read_run(run), export=ExportConfig(onnx=True))
    folder = export(config)  # Compares the graph with the checkpoint at two batch sizes.
    session = onnxruntime.InferenceSession(folder / "onnx" / "model.onnx")
    tokenizer = read_folder_tokenizer(folder, config.model)
    wanted = Embedder.load(folder).encode(TEXTS[:4])
    for text, z in zip(TEXTS[:4], wanted):
        ids = np.array([tokenizer.encode(text).ids])
        (got,) = session.run(
            ["sentence_embedding"], {"input_ids": ids, "attention_mask": np.ones_like(ids)}
        )
        np.testing.assert_allclose(got[0], z, rtol=0, atol=1e-5)


def test_weights_that_are_pickled_are_refused_by_name(folder, tmp_path, capsys):
    shutil.copytree(folder, tmp_path / "model")
    (tmp_path / "model" / "model.safetensors").unlink()
    (tmp_path / "model" / "pytorch_model.bin").write_bytes(b"pickle")
    assert main(["import", str(tmp_path / "model"), str(tmp_path / "run")]) == 2
    assert "holds pytorch_model.bin, which can run code" in capsys.readouterr().err


def test_a_tokenizer_of_another_model_is_refused(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "model")
    path = tmp_path / "model" / "model.safetensors"
    tensors = load_file(path)
    rows = json.loads((folder / "config.json").read_text())["vocab_size"]
    (name,) = (name for name, array in tensors.items() if array.shape[:1] == (rows,))
    tensors[name] = tensors[name][:8].copy()
    save_file(tensors, path, metadata={"format": "pt"})
    config = json.loads((tmp_path / "model" / "config.json").read_text()) | {"vocab_size": 8}
    (tmp_path / "model" / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="the files are of two models"):
        import_folder(str(tmp_path / "model"), tmp_path / "run")
    assert not (tmp_path / "run").exists()
