import dataclasses
import io
import json
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sentencepiece
from sentence_transformers import SentenceTransformer
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from jina_jax.config import T5Config
from jina_jax.errors import UserError
from jina_jax.export.huggingface import export_huggingface, verify_export
from jina_jax.inference.embedder import Embedder
from jina_jax.model.encoder import apply, init_params, parameter_count
from jina_jax.model.pooling import pool, unit

TEXTS = [
    "hello world",
    "",
    "the quick brown fox jumps over the lazy dog and this text is cut " * 3,
    "  double  spaces\nand a line break ",
]
MAX_TOKENS = 24
CONFIG = T5Config(vocab_size=96, d_model=24, d_kv=8, d_ff=48, num_layers=2, num_heads=3)


@pytest.fixture(scope="module")
def tokenizer_dir(tmp_path_factory):
    """A SentencePiece vocabulary of T5's conventions and its `tokenizer.json`."""
    folder, model = tmp_path_factory.mktemp("tokenizer"), io.BytesIO()
    corpus = ["the quick brown fox jumps over the lazy dog", "hello world of text embeddings"]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(corpus * 20), model_writer=model, vocab_size=60, bos_id=-1,
        pad_id=0, eos_id=1, unk_id=2, hard_vocab_limit=False, minloglevel=2,
    )  # fmt: skip
    (folder / "spiece.model").write_bytes(model.getvalue())
    pieces = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    vocabulary = [(pieces.id_to_piece(i), pieces.get_score(i)) for i in range(len(pieces))]
    tokenizer = Tokenizer(models.Unigram(vocabulary, unk_id=2))
    tokenizer.normalizer = normalizers.Sequence(
        [
            normalizers.Replace(Regex(r"\s+"), " "),
            normalizers.Replace(Regex("^ +| +$"), ""),
        ]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="always")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", 1)]
    )
    tokenizer.add_special_tokens(["<pad>", "</s>", "<unk>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def export(out_dir, tokenizer_dir, config=CONFIG, seed=0, card="# A card\n"):
    params = init_params(config, jax.random.key(seed))
    export_huggingface(params, config, tokenizer_dir, out_dir, max_tokens=MAX_TOKENS, card=card)
    return params


def our_embeddings(params, config, tokenizer_dir):
    """One text a row, cut and ended by hand."""
    tokenizer = Tokenizer.from_file(str(tokenizer_dir / "tokenizer.json"))
    ids_NL = np.zeros((len(TEXTS), MAX_TOKENS), np.int32)
    segments_NL = np.zeros_like(ids_NL)
    for i, text in enumerate(TEXTS):
        pieces = tokenizer.encode(text, add_special_tokens=False).ids[: MAX_TOKENS - 1]
        ids_NL[i, : len(pieces) + 1] = [*pieces, 1]
        segments_NL[i, : len(pieces) + 1] = 1
    segments = jnp.asarray(segments_NL)
    hidden = apply(config, params, jnp.asarray(ids_NL), segments)
    return np.array(unit(pool(hidden, segments, 1)))[:, 0]


def header(path):
    data = path.read_bytes()
    return json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])


@pytest.mark.parametrize("feed_forward", ["relu", "gated-gelu"])
def test_sentence_transformers_gives_our_embeddings(tmp_path, tokenizer_dir, feed_forward):
    config = dataclasses.replace(CONFIG, feed_forward_proj=feed_forward)
    params = export(tmp_path / "model", tokenizer_dir, config)
    theirs = SentenceTransformer(str(tmp_path / "model"), device="cpu")
    assert theirs.max_seq_length == MAX_TOKENS
    expected = our_embeddings(params, config, tokenizer_dir)
    np.testing.assert_allclose(theirs.encode(TEXTS), expected, rtol=0, atol=1e-5)
    assert str(theirs.similarity_fn_name) == "cosine"


def test_the_folder_holds_exactly_the_promised_files(tmp_path, tokenizer_dir):
    export(tmp_path / "model", tokenizer_dir)
    names = {p.relative_to(tmp_path / "model").as_posix() for p in tmp_path.rglob("model/**/*")}
    assert names == {
        "config.json", "model.safetensors", "tokenizer.json", "spiece.model",
        "tokenizer_config.json", "special_tokens_map.json", "modules.json", "1_Pooling",
        "1_Pooling/config.json", "sentence_bert_config.json",
        "config_sentence_transformers.json", "README.md",
    }  # fmt: skip
    assert list(tmp_path.iterdir()) == [tmp_path / "model"]
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    assert config["architectures"] == ["T5EncoderModel"]
    assert config["is_encoder_decoder"] is False
    # sentence-transformers takes the mean when no mode is set; other readers may not.
    pooling = json.loads((tmp_path / "model" / "1_Pooling" / "config.json").read_text())
    modes = [n for n, is_on in pooling.items() if n.startswith("pooling_mode") and is_on]
    assert modes == ["pooling_mode_mean_tokens"]
    tokenizer_config = json.loads((tmp_path / "model" / "tokenizer_config.json").read_text())
    assert tokenizer_config["tokenizer_class"] == "T5Tokenizer"
    assert (tmp_path / "model" / "README.md").read_text() == "# A card\n"


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o027, 0o640)])
def test_who_may_read_one_file_may_read_all(tmp_path, tokenizer_dir, umask, mode):
    before = os.umask(umask)
    try:
        export(tmp_path / "model", tokenizer_dir)
    finally:
        os.umask(before)
    modes = {p.name: p.stat().st_mode & 0o777 for p in tmp_path.rglob("*") if p.is_file()}
    assert set(modes.values()) == {mode}, modes


def test_parameters_counted_in_the_file(tmp_path, tokenizer_dir):
    export(tmp_path / "model", tokenizer_dir)
    entries = header(tmp_path / "model" / "model.safetensors")
    assert entries.pop("__metadata__") == {"format": "pt"}
    count = sum(int(np.prod(entry["shape"])) for entry in entries.values())
    assert count == parameter_count(CONFIG)


def test_the_file_of_t5_small_has_its_parameters(tmp_path, tokenizer_dir):
    export(tmp_path / "model", tokenizer_dir, T5Config())
    entries = header(tmp_path / "model" / "model.safetensors")
    del entries["__metadata__"]
    assert sum(int(np.prod(entry["shape"])) for entry in entries.values()) == 35_330_816


def test_verify_accepts_the_export(tmp_path, tokenizer_dir):
    params = export(tmp_path / "model", tokenizer_dir)
    assert verify_export(tmp_path / "model", params, CONFIG, TEXTS) <= 1e-6


def test_verify_finds_other_weights(tmp_path, tokenizer_dir):
    params = export(tmp_path / "model", tokenizer_dir)
    other = jax.tree.map(lambda leaf: leaf, params)
    other["blocks"][1]["feed_forward"]["wo"]["kernel"][...] *= 1.001
    with pytest.raises(RuntimeError, match="differ from the model's"):
        verify_export(tmp_path / "model", other, CONFIG, TEXTS)


def test_verify_finds_another_shape(tmp_path, tokenizer_dir):
    params = export(tmp_path / "model", tokenizer_dir)
    path = tmp_path / "model" / "config.json"
    path.write_text(
        path.read_text().replace('"layer_norm_epsilon": 1e-06', '"layer_norm_epsilon": 1')
    )
    with pytest.raises(RuntimeError, match=r"config\.json gives"):
        verify_export(tmp_path / "model", params, CONFIG, TEXTS)


def test_an_earlier_export_is_replaced(tmp_path, tokenizer_dir):
    export(tmp_path / "model", tokenizer_dir, seed=0)
    params = export(tmp_path / "model", tokenizer_dir, seed=1)
    assert verify_export(tmp_path / "model", params, CONFIG, TEXTS) <= 1e-6
    assert list(tmp_path.iterdir()) == [tmp_path / "model"]


def test_anything_else_is_not_overwritten(tmp_path, tokenizer_dir):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "thesis.txt").write_text("years")
    with pytest.raises(UserError, match=r"thesis\.txt"):
        export(tmp_path / "model", tokenizer_dir)
    assert (tmp_path / "model" / "thesis.txt").read_text() == "years"


def test_a_failure_leaves_the_earlier_export(tmp_path, tokenizer_dir):
    params = export(tmp_path / "model", tokenizer_dir)
    with pytest.raises(UnicodeEncodeError):
        export(tmp_path / "model", tokenizer_dir, seed=1, card="\ud800")
    assert verify_export(tmp_path / "model", params, CONFIG, TEXTS) <= 1e-6
    assert list(tmp_path.iterdir()) == [tmp_path / "model"]


def test_a_tokenizer_beyond_the_vocabulary_is_refused(tmp_path, tokenizer_dir):
    with pytest.raises(UserError, match=r"ids up to .* the files are of two models"):
        export(tmp_path / "model", tokenizer_dir, dataclasses.replace(CONFIG, vocab_size=20))
    assert list(tmp_path.iterdir()) == []


def test_a_missing_tokenizer_file_is_named(tmp_path):
    with pytest.raises(UserError, match=r"tokenizer\.json"):
        export(tmp_path / "model", tmp_path)


@pytest.mark.slow
@pytest.mark.network
def test_other_versions_of_sentence_transformers_give_our_embeddings(
    encoded_by_them, tokenizer_dir, tmp_path
):
    folder = tmp_path / "export"
    export(folder, tokenizer_dir)
    ours = Embedder.load(folder).encode(TEXTS)
    assert np.abs(encoded_by_them(folder, TEXTS) - ours).max() < 1e-6
