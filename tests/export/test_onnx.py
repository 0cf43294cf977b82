"""The ONNX graph of an exported folder, run by onnxruntime."""

import json

import jax
import numpy as np
import onnxruntime
import pytest
from sentence_transformers import SentenceTransformer

from jina_jax.config import PoolingConfig, T5Config, TokenizerConfig
from jina_jax.export.huggingface import export_huggingface, verify_export
from jina_jax.export.onnx import verify_onnx
from jina_jax.model.encoder import init_params
from jina_jax.text.tokenizer import build_tokenizer, load_tokenizer
from tests.marks import some_slow

# Beyond the 128 positions that the relative bias tells apart.
TEXTS = ["hello world", "", "a text of many tokens " * 40, "another one"]


@pytest.fixture(scope="module", params=some_slow(["gated-gelu"], ["relu", "gated-gelu"]))
def exported(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("onnx")
    corpus = (json.__doc__ or "").splitlines()
    build_tokenizer(TokenizerConfig("train", vocab_size=100), iter(corpus), folder)
    config = T5Config(
        vocab_size=104, d_model=24, d_kv=8, d_ff=48, num_layers=2, num_heads=3,
        feed_forward_proj=request.param,
    )  # fmt: skip
    params = init_params(config, jax.random.key(0))
    export_huggingface(
        params, config, folder, folder / "out", max_tokens=300, card="# A card\n", onnx=True
    )
    return folder / "out", params, config


def test_the_graph_agrees_at_two_batch_sizes_and_lengths(exported):
    folder, params, config = exported
    assert verify_export(folder, params, config, TEXTS) <= 1e-6
    assert (
        verify_onnx(folder, params, config, PoolingConfig(), load_tokenizer(folder), TEXTS) <= 1e-5
    )


def test_its_outputs_are_those_of_sentence_transformers(exported):
    folder, *_ = exported
    tokenizer = load_tokenizer(folder)
    tokenizer.enable_padding(pad_id=0, pad_token="<pad>")
    encodings = tokenizer.encode_batch(TEXTS[:2])
    feed = {
        "input_ids": np.array([e.ids for e in encodings]),
        "attention_mask": np.array([e.attention_mask for e in encodings]),
    }
    session = onnxruntime.InferenceSession(folder / "onnx" / "model.onnx")
    hidden, embedding = session.run(["last_hidden_state", "sentence_embedding"], feed)
    assert hidden.shape == (*feed["input_ids"].shape, 24)
    theirs = SentenceTransformer(str(folder), device="cpu").encode(TEXTS[:2])
    np.testing.assert_allclose(embedding, theirs, atol=1e-5)


def test_a_graph_of_other_parameters_is_found_out(exported):
    folder, params, config = exported
    other = jax.tree.map(lambda x: x * 1.01, params)
    with pytest.raises(RuntimeError, match=r"model\.onnx differ from the model's by"):
        verify_onnx(folder, other, config, PoolingConfig(), load_tokenizer(folder), TEXTS)
