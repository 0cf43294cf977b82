import jax
import numpy as np
import pytest

from jina_jax.config import T5Config, TokenizerConfig
from jina_jax.inference.embedder import Embedder
from jina_jax.model.encoder import init_params
from jina_jax.text.tokenizer import build_tokenizer, load_tokenizer

CONFIG = T5Config(vocab_size=128, d_model=16, d_kv=4, d_ff=32, num_layers=2, num_heads=4)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    texts = [f"the text number {i} tells of {i * i} things and more" for i in range(200)]
    build_tokenizer(TokenizerConfig("train", vocab_size=100), iter(texts), folder)
    return load_tokenizer(folder)


@pytest.fixture(scope="module")
def params():
    return init_params(CONFIG, jax.random.key(0))


def embedder(params, tokenizer, **options):
    return Embedder(params, CONFIG, tokenizer, **options)


def texts(count):
    rng = np.random.default_rng(0)
    return [
        " ".join(["things", "text", "of", "number"] * int(n)) for n in rng.integers(0, 60, count)
    ]


def test_a_text_has_the_same_embedding_alone_and_in_company(params, tokenizer):
    model = embedder(params, tokenizer, max_tokens=200)
    many = texts(70)
    z = model.encode(many)
    assert z.shape == (70, 16)
    np.testing.assert_allclose(np.linalg.norm(z, axis=1), 1, atol=1e-6)
    for i in (0, 1, 33, 69):
        np.testing.assert_allclose(model.encode([many[i]])[0], z[i], atol=1e-6)
    np.testing.assert_allclose(model.encode(many[::-1])[::-1], z, atol=1e-6)


def test_batch_size_does_not_matter(params, tokenizer):
    many = texts(70)
    a, b = (embedder(params, tokenizer, batch_rows=n).encode(many) for n in (8, 64))
    np.testing.assert_allclose(a, b, atol=1e-6)


def test_long_texts_are_cut_and_keep_their_end(params, tokenizer):
    model = embedder(params, tokenizer, max_tokens=10)
    ids = tokenizer.encode("things " * 50).ids
    assert len(ids) > 40
    (cut,), length = model._tokenised("", 0, ["things " * 50])
    assert cut.tolist() == [*ids[:9], 1] and length.tolist() == [10]
    other = "things " * 70
    np.testing.assert_allclose(*model.encode(["things " * 50, other]), atol=1e-6)


def test_nothing_to_encode(params, tokenizer):
    assert embedder(params, tokenizer).encode([]).shape == (0, 16)
