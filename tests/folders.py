"""Small model folders that tests of several rooms share."""

import json
import string
from pathlib import Path

import jax
import pytest
import transformers
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

from jina_jax.config import BertConfig, T5Config, TokenizerConfig
from jina_jax.export.huggingface import export_huggingface
from jina_jax.model.encoder import init_params
from jina_jax.text.tokenizer import build_tokenizer
from tests.bert_oracle import torch_bert
from tests.random_texts import WORDS, texts

SMALL = T5Config(vocab_size=64, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4)
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
SHAPE = {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12}


def _vocabulary() -> dict[str, int]:
    letters = list(string.ascii_lowercase)
    pieces = [*SPECIAL, *WORDS[:8], *letters, *(f"##{letter}" for letter in letters)]
    return {piece: number for number, piece in enumerate(pieces)}


def _write_tokenizer(folder: Path, max_tokens: int) -> None:
    tokenizer = Tokenizer(models.WordPiece(_vocabulary(), unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, model_max_length=max_tokens, pad_token="[PAD]",
        unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]", mask_token="[MASK]",
    ).save_pretrained(folder)  # fmt: skip
    # The class that knows token types; the published models name it too.
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings["tokenizer_class"] = "BertTokenizer"
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    # As all-MiniLM-L6-v2 has it: the file's own limits must not be obeyed.
    tokenizer.enable_truncation(5)
    tokenizer.enable_padding(length=7)
    tokenizer.save(str(folder / "tokenizer.json"))


def _config(**changes) -> BertConfig:
    fields = {
        "vocab_size": len(_vocabulary()), "intermediate_size": 64, "hidden_size": 24,
        "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 128,
    }  # fmt: skip
    return BertConfig(**(fields | changes))


@pytest.fixture(scope="session")
def sentence_folder(tmp_path_factory):
    """A sentence encoder that cuts texts at 100 tokens."""
    folder = tmp_path_factory.mktemp("sentence")
    torch_bert(transformers.BertModel, _config()).save_pretrained(folder)
    _write_tokenizer(folder, 128)
    modules = [("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize")]
    files = {
        "modules.json": [
            {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
            for i, (path, kind) in enumerate(modules)
        ],
        "1_Pooling/config.json": {
            "word_embedding_dimension": 24, "pooling_mode_mean_tokens": True,
            "pooling_mode_cls_token": False,
        },
        "sentence_bert_config.json": {"max_seq_length": 100, "do_lower_case": False},
    }  # fmt: skip
    (folder / "1_Pooling").mkdir()
    (folder / "2_Normalize").mkdir()
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content))
    return folder


@pytest.fixture(scope="session")
def cross_encoder_folder(tmp_path_factory):
    """A random cross-encoder of the architecture of ms-marco-MiniLM-L-6-v2, with 128 positions."""
    folder = tmp_path_factory.mktemp("cross")
    config = _config(**SHAPE, intermediate_size=1536)
    model = torch_bert(
        transformers.BertForSequenceClassification, config, weight_std=0.05, num_labels=1
    )
    model.save_pretrained(folder)
    _write_tokenizer(folder, 128)
    return folder


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
