"""The one tokenizer of the system: a SentencePiece unigram model in T5's conventions.

Everything encodes through the `tokenizers` library with the `tokenizer.json` written here; a
`spiece.model` lies beside it for what reads only that. T5's conventions: <pad> 0, </s> 1, <unk> 2,
no beginning-of-sequence; </s> ends every text.
"""

import io
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import sentencepiece
from sentencepiece import sentencepiece_model_pb2 as sentencepiece_proto
from tokenizers import AddedToken, Regex, Tokenizer
from tokenizers import decoders as hf_decoders
from tokenizers import models as hf_models
from tokenizers import normalizers as hf_normalizers
from tokenizers import pre_tokenizers as hf_pre_tokenizers
from tokenizers import processors as hf_processors

from jina_jax.config import TokenizerConfig
from jina_jax.errors import UserError
from jina_jax.system.files import in_package
from jina_jax.system.untrusted import (
    MAX_JSON_BYTES,
    inner_path,
    read_bounded,
    read_json,
    refuse_code,
)

SPIECE_FILE = "spiece.model"
TOKENIZER_FILE = "tokenizer.json"
TOKENIZER_EXTRAS = ("tokenizer_config.json", "special_tokens_map.json")
"""What transformers reads beside a `tokenizer.json`, where it is there."""
PAD_ID, EOS_ID, UNK_ID = 0, 1, 2
_SPECIAL = ("<pad>", "</s>", "<unk>")

_PUBLISHED_T5_PIECES = 32000
_EXTRA_IDS = 100
"""The published T5 vocabulary goes on with <extra_id_99> ... <extra_id_0> after its pieces."""
_MAX_TRAIN_CHARACTERS = 4000
"""Of a longer text only the start is learned from, which bounds the trainer's memory."""
_TRAIN_THREADS = 8


def build_tokenizer(config: TokenizerConfig, texts: Iterator[str] | None, out_dir: Path) -> None:
    """Writes `tokenizer.json`, and what belongs to it: `spiece.model` of a T5.

    Args:
      config: where the vocabulary comes from, or how to learn it. A folder with a `tokenizer.json`
        and no `spiece.model` gives that tokenizer as it is, of whatever kind.
      texts: what to learn from, at most `config.train_texts` of them; needed for `train` only.
      out_dir: existing folder.
    Raises: UserError when the vocabulary cannot be fetched, is neither a T5 vocabulary nor a
      `tokenizer.json`, or `config.vocab_size` is less than the characters of the texts. Where they
      fill fewer pieces there are fewer.
    """
    if config.source == "train":
        assert texts is not None
        model_bytes = _train(texts, config.vocab_size)
    else:
        path = _find(config.source)
        if path.name == TOKENIZER_FILE:
            _copy_tokenizer(path.parent, out_dir)
            return
        model_bytes = read_bounded(path, MAX_JSON_BYTES)
    tokenizer = tokenizer_from_spiece(model_bytes, config.source)
    (out_dir / SPIECE_FILE).write_bytes(model_bytes)
    tokenizer.save(str(out_dir / TOKENIZER_FILE), pretty=False)


def _copy_tokenizer(folder: Path, out_dir: Path) -> None:
    """Takes a fast tokenizer as it is, with what transformers reads beside it."""
    tokenizer = load_tokenizer(folder)
    if len(tokenizer.encode("").ids) == 0:
        raise UserError(
            f"{folder / TOKENIZER_FILE} adds no special token to a text, so that an empty text has "
            f"no tokens at all; add a post-processor that ends every text"
        )
    for name in (TOKENIZER_FILE, *TOKENIZER_EXTRAS):
        if (folder / name).is_file():
            path = inner_path(folder, name)
            if name != TOKENIZER_FILE:
                refuse_code(path, read_json(path))
            shutil.copyfile(path, out_dir / name)


def load_tokenizer(folder: Path) -> Tokenizer:
    """Reads `tokenizer.json`; whatever it says, nothing is cut or padded.

    Args:
      folder: as written by `build_tokenizer`, or of a model.
    Raises: UserError when the file is missing, larger than any, or damaged.
    """
    path = inner_path(folder, TOKENIZER_FILE)
    content = read_bounded(path, MAX_JSON_BYTES)
    with _as_user_error(f"{path} cannot be read as a tokenizer"):
        tokenizer = Tokenizer.from_buffer(content)
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def prompt_length(tokenizer: Tokenizer, prompt: str) -> int:
    """Tokens that a text begins with because of its prompt; 0 without one.

    Source: sentence-transformers, which leaves out a special token at the end alone.
    """
    if not prompt:
        return 0
    encoding = tokenizer.encode(prompt)
    return len(encoding.ids) - encoding.special_tokens_mask[-1]


def largest_id(tokenizer: Tokenizer) -> int:
    """The largest of its pieces' and special tokens' ids; -1 where it has none."""
    return max(tokenizer.get_vocab(with_added_tokens=True).values(), default=-1)


def check_ids(tokenizer: Tokenizer, vocab_size: int, folder: Path) -> None:
    """Refuses a tokenizer with ids that the model has no embedding for.

    Args:
      tokenizer: of the folder.
      vocab_size: rows of the model's embedding.
      folder: named in the error.
    Raises: UserError.
    """
    most = largest_id(tokenizer)
    if most >= vocab_size:
        raise UserError(
            f"{folder}: its tokenizer has ids up to {most}, but its model embeds {vocab_size} "
            f"pieces (0..{vocab_size - 1}): the files are of two models"
        )


@contextmanager
def _as_user_error(what: str) -> Iterator[None]:
    """The library raises bare Exceptions, and BaseExceptions where its Rust code panics."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as error:
        raise UserError(f"{what}: {error}") from error


def _find(source: str) -> Path:
    path = in_package(source) or Path(source).expanduser()
    if path.is_file():
        return path
    if path.is_dir():
        for name in (SPIECE_FILE, TOKENIZER_FILE):
            if (path / name).is_file():
                return path / name
        raise UserError(
            f"data.tokenizer.source: the folder {source} holds neither {SPIECE_FILE} nor "
            f"{TOKENIZER_FILE}"
        )
    # A hub id is `owner/name`; anything else can only be a misspelt path.
    if re.fullmatch(r"[\w.-]+/[\w.-]+", source) is None or path.suffix == ".model":
        raise UserError(
            f"data.tokenizer.source={source!r}: no such file or folder; give a {SPIECE_FILE}, "
            f"a folder that holds one, a Hugging Face id such as google-t5/t5-small, or 'train'"
        )
    from huggingface_hub import snapshot_download

    names = [SPIECE_FILE, TOKENIZER_FILE, *TOKENIZER_EXTRAS]
    try:
        return _find(snapshot_download(source, allow_patterns=names))
    except Exception as error:  # Offline, no such repository, no such file, no permission.
        raise UserError(
            f"data.tokenizer.source={source!r} is no local path, and its tokenizer could not be "
            f"fetched from Hugging Face ({type(error).__name__}: {str(error).splitlines()[0]}). "
            f"Fetch it elsewhere and give its path, or use 'train'"
        ) from error


def _train(texts: Iterator[str], vocab_size: int) -> bytes:
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=(text[:_MAX_TRAIN_CHARACTERS] for text in texts),
            model_writer=model,
            model_type="unigram",
            vocab_size=vocab_size,
            # A corpus of fewer pieces gives a smaller vocabulary.
            hard_vocab_limit=False,
            pad_id=PAD_ID,
            eos_id=EOS_ID,
            unk_id=UNK_ID,
            bos_id=-1,
            # Longer sentences are left out silently; UTF-8 takes up to 4 bytes a character.
            max_sentence_length=4 * _MAX_TRAIN_CHARACTERS + 1,
            # Each thread sums its own share of the sentences and the sums are added in thread
            # order: the pieces depend on this number, and on nothing of the machine.
            num_threads=_TRAIN_THREADS,
            minloglevel=2,
        )
    except (RuntimeError, OSError) as error:
        raise UserError(_train_problem(str(error), vocab_size)) from error
    return model.getvalue()


def _train_problem(message: str, vocab_size: int) -> str:
    least = re.search(r"(\d+) vs (\d+)\. Increase vocab_size", message)
    advice = f"its characters alone need {least[2]}" if least else f"sentencepiece says {message}"
    return f"data.tokenizer.vocab_size={vocab_size} cannot be learned from this corpus: {advice}"


def tokenizer_from_spiece(model_bytes: bytes, source: str) -> Tokenizer:
    """The `tokenizers` equivalent of a SentencePiece model.

    Args:
      model_bytes: content of a `spiece.model`.
      source: named in errors.
    Returns: a tokenizer with the ids that the SentencePiece library gives, and </s> at the end.
    Raises: UserError when it is no unigram model in T5's conventions.
    """
    proto = sentencepiece_proto.ModelProto()
    try:
        proto.ParseFromString(model_bytes)
    except Exception as error:  # protobuf's DecodeError has no stable home.
        raise UserError(f"data.tokenizer: {source!r} is no SentencePiece model") from error
    _check_conventions(proto, source)
    vocab = [(piece.piece, piece.score) for piece in proto.pieces]
    extra = [f"<extra_id_{i}>" for i in reversed(range(_EXTRA_IDS))]
    extra = extra if len(vocab) == _PUBLISHED_T5_PIECES else []
    vocab += [(name, 0.0) for name in extra]
    with _as_user_error(f"data.tokenizer: {source!r} is no usable SentencePiece model"):
        return _unigram(vocab, proto.normalizer_spec.precompiled_charsmap, extra)


def _unigram(vocab: list[tuple[str, float]], charsmap: bytes, extra: list[str]) -> Tokenizer:
    tokenizer = Tokenizer(hf_models.Unigram(vocab, unk_id=UNK_ID, byte_fallback=False))
    # SentencePiece drops spaces at the ends and doubled ones, after its character map has made
    # spaces of the other kinds of whitespace.
    steps: list[Any] = [hf_normalizers.Precompiled(charsmap)] if charsmap else []
    steps += [
        hf_normalizers.Replace(Regex("^ +| +$"), ""),
        hf_normalizers.Replace(Regex(" {2,}"), " "),
    ]
    tokenizer.normalizer = hf_normalizers.Sequence(steps)
    tokenizer.pre_tokenizer = hf_pre_tokenizers.Metaspace(prepend_scheme="always")
    tokenizer.decoder = hf_decoders.Metaspace(prepend_scheme="always")
    tokenizer.post_processor = hf_processors.TemplateProcessing(
        single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", EOS_ID)]
    )
    tokenizer.add_special_tokens([AddedToken(t, normalized=False) for t in _SPECIAL])
    tokenizer.add_special_tokens(
        [AddedToken(t, lstrip=True, rstrip=True, normalized=False) for t in extra]
    )
    return tokenizer


def _check_conventions(proto: Any, source: str) -> None:
    spec, start = proto.normalizer_spec, tuple(piece.piece for piece in proto.pieces[:3])
    wrong = ""
    if proto.trainer_spec.model_type != sentencepiece_proto.TrainerSpec.UNIGRAM:
        wrong = "it is not a unigram model"
    elif start != _SPECIAL:
        wrong = f"its first pieces are {start}, T5's are {_SPECIAL}"
    elif not (spec.add_dummy_prefix and spec.remove_extra_whitespaces and spec.escape_whitespaces):
        wrong = "it treats whitespace otherwise"
    elif proto.trainer_spec.byte_fallback:
        wrong = "it falls back to bytes, T5's does not"
    if wrong:
        raise UserError(f"data.tokenizer: {source!r} is no T5 vocabulary: {wrong}")
