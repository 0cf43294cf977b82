"""Sentence embeddings against sentence-transformers, with a random model and with the real one."""

import json
import shutil

import numpy as np
import pytest
import sentence_transformers

from jina_jax.config import MeshConfig
from jina_jax.devices.mesh import make_mesh
from jina_jax.errors import UserError
from jina_jax.inference import embedder as encoder_module
from jina_jax.inference.embedder import Embedder
from tests.minilm import minilm_folder
from tests.random_texts import texts

TEXTS = ["", "the sea", "Ärger at SEA", "zzz 東京 !", *texts(60), "whale " * 90]


@pytest.fixture(scope="module")
def encoder(sentence_folder):
    return Embedder.load(sentence_folder)


@pytest.fixture(scope="module")
def expected(sentence_folder):
    model = sentence_transformers.SentenceTransformer(str(sentence_folder), device="cpu")
    assert model.max_seq_length == 100
    return model.encode(TEXTS, batch_size=1)


def test_equals_sentence_transformers(encoder, expected):
    got = encoder.encode(TEXTS)
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-5)
    assert np.ptp(got @ got.T) > 0.1  # Else the texts would all be alike.


def test_one_device_and_blocks_of_the_stream_change_nothing(sentence_folder, expected, monkeypatch):
    monkeypatch.setattr(encoder_module, "TEXTS_AT_ONCE", 7)
    one = Embedder.load(sentence_folder, batch_rows=4, mesh=make_mesh(MeshConfig(data=1)))
    blocks = list(one.stream(text for text in TEXTS))
    assert [len(block) for block in blocks] == [7] * 9 + [2]
    np.testing.assert_allclose(np.concatenate(blocks), expected, rtol=0, atol=1e-5)


def test_the_stream_reads_no_more_than_two_blocks_ahead(encoder, monkeypatch):
    monkeypatch.setattr(encoder_module, "TEXTS_AT_ONCE", 4)
    taken = []
    stream = encoder.stream(taken.append(text) or text for text in TEXTS)
    next(stream)
    assert len(taken) <= 8
    stream.close()


def test_no_texts(encoder):
    assert encoder.encode([]).shape == (0, 24)


def test_an_error_in_the_texts_is_passed_on(encoder):
    def broken():
        yield "the sea"
        raise OSError("gone")

    with pytest.raises(OSError, match="gone"):
        list(encoder.stream(broken()))


def test_the_key_names_weights_and_limit(sentence_folder, encoder, tmp_path):
    shutil.copytree(sentence_folder, tmp_path / "copy")
    assert Embedder.load(tmp_path / "copy").identity() == encoder.identity()
    limits = tmp_path / "copy" / "sentence_bert_config.json"
    limits.write_text(json.dumps({"max_seq_length": 50}))
    shorter = Embedder.load(tmp_path / "copy")
    assert shorter.max_tokens == 50
    assert shorter.identity() != encoder.identity()


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("1_Pooling/config.json", {"pooling_mode_max_tokens": True}, "pools by max;"),
        ("1_Pooling/config.json", {"pooling_mode": "weightedmean"}, "pools by weightedmean;"),
        ("sentence_bert_config.json", {"max_seq_length": 129}, "max_seq_length=129"),
        ("sentence_bert_config.json", {"max_seq_length": "9"}, "max_seq_length='9'"),
        ("config.json", {"model_type": "bert", "vocab_size": 9}, "the files are of two models"),
    ],
)
def test_unusable_folders_are_refused(sentence_folder, tmp_path, name, content, message):
    shutil.copytree(sentence_folder, tmp_path / "copy")
    (tmp_path / "copy" / name).write_text(json.dumps(content))
    with pytest.raises(UserError, match=message):
        Embedder.load(tmp_path / "copy")


def test_a_folder_without_tokenizer_is_refused(sentence_folder, tmp_path):
    shutil.copytree(sentence_folder, tmp_path / "copy")
    (tmp_path / "copy" / "tokenizer.json").unlink()
    with pytest.raises(UserError, match=r"holds no tokenizer.json"):
        Embedder.load(tmp_path / "copy")


def test_the_real_minilm():
    folder = minilm_folder()
    encoder = Embedder.load(folder, mesh=make_mesh(MeshConfig(data=1)))
    assert (encoder.max_tokens, encoder.dimensions) == (256, 384)
    model = sentence_transformers.SentenceTransformer(str(folder), device="cpu")
    long = "How do whales sleep? " * 80  # 481 tokens
    some = ["How do whales sleep?", "Whales rest half of their brain at a time.", "Ärger", long]
    got = encoder.encode(some)
    np.testing.assert_allclose(got, model.encode(some, batch_size=1), rtol=0, atol=1e-6)
