import jax
import pytest

from jina_jax.config.run.run import T5Config, TokenizerConfig
from jina_jax.export.huggingface import export_huggingface
from jina_jax.model.t5 import init_params
from jina_jax.text.tokenizer import build_tokenizer
from tests.random_texts import texts

SMALL = T5Config(vocab_size=64, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4)


@pytest.fixture(scope="session")
def exported(tmp_path_factory):
    """A folder with random weights, as sentence-transformers and Embedder.load read it."""
    folder = tmp_path_factory.mktemp("exported")
    (folder / "tokenizer").mkdir()
    build_tokenizer(TokenizerConfig("train", vocab_size=38), iter(texts(300)), folder / "tokenizer")
    params = init_params(SMALL, jax.random.key(0))
    export_huggingface(
        params, SMALL, folder / "tokenizer", folder / "model", max_tokens=128, card="# A card\n"
    )
    return folder / "model"
