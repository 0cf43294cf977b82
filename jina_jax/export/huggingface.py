"""Writes a folder that sentence-transformers and transformers load, without needing either."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from flax import nnx
from safetensors.numpy import save_file

from jina_jax.config import ModelConfig, Pooling
from jina_jax.errors import UserError
from jina_jax.export.onnx import ONNX_DATA, ONNX_FILE, ONNX_FOLDER, embed, verify_onnx, write_onnx
from jina_jax.inference.model_folder import CONFIG_FILE, WEIGHTS_FILE, read_encoder
from jina_jax.model.encoder import config_to_huggingface, from_huggingface, to_huggingface
from jina_jax.system.atomic import sync
from jina_jax.system.untrusted import read_json
from jina_jax.text.tokenizer import (
    SPIECE_FILE,
    TOKENIZER_EXTRAS,
    TOKENIZER_FILE,
    check_ids,
    load_tokenizer,
)

_SPECIAL_TOKENS = {"eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
# Names of classes and options as sentence-transformers 2 wrote them: 5 and 6 read them too.
_MODULES = [
    {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{name}"}
    for i, (path, name) in enumerate(
        [("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize")]
    )
]
_SENTENCE_TRANSFORMERS = {
    # The oldest versions that the folder is made for: a newer number makes those warn.
    "__version__": {"sentence_transformers": "2.7.0", "transformers": "4.44.2", "pytorch": "2.3.0"},
    "model_type": "SentenceTransformer",
    "prompts": {},
    "default_prompt_name": None,
    "similarity_fn_name": "cosine",
}
_WRITTEN = frozenset(
    (
        CONFIG_FILE, WEIGHTS_FILE, SPIECE_FILE, TOKENIZER_FILE, *TOKENIZER_EXTRAS, "modules.json",
        "1_Pooling", "1_Pooling/config.json",
        "sentence_bert_config.json", "config_sentence_transformers.json", "README.md",
        ONNX_FOLDER, f"{ONNX_FOLDER}/{ONNX_FILE}", f"{ONNX_FOLDER}/{ONNX_DATA}",
    )
)  # fmt: skip
_LARGEST_DIFFERENCE = 1e-6
_POOLING_MODES = {
    "cls": "cls_token", "mean": "mean_tokens", "lasttoken": "lasttoken",
}  # fmt: skip


def export_huggingface(
    params: nnx.State,
    config: ModelConfig,
    tokenizer_dir: Path,
    out_dir: Path,
    *,
    pooling: Pooling = "mean",
    max_tokens: int,
    card: str,
    onnx: bool = False,
) -> None:
    """Writes the model as a folder for sentence-transformers 2.7 and later.

    The folder appears whole or not at all; an earlier export at the same place is replaced.

    Args:
      params: parameters of the encoder.
      config: their shape.
      tokenizer_dir: holds `tokenizer.json` and what belongs to it.
      out_dir: folder to write.
      pooling: of the hidden states of a text.
      max_tokens: texts are cut to this many tokens, end-of-sequence included.
      card: content of `README.md`, from `model_card.render_card`.
      onnx: also write the graph that `write_onnx` describes.
    Raises: UserError when a tokenizer file is missing or has ids beyond the vocabulary, or
      `out_dir` holds anything else than an earlier export.
    """
    _check_replaceable(out_dir)
    if not (tokenizer_dir / TOKENIZER_FILE).is_file():
        raise UserError(f"{tokenizer_dir} holds no {TOKENIZER_FILE}: prepare the data first")
    out_dir.parent.mkdir(parents=True, exist_ok=True)
    partial = out_dir.with_name(f".{out_dir.name}.partial")
    earlier = out_dir.with_name(f".{out_dir.name}.earlier")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        _write_folder(partial, params, config, tokenizer_dir, pooling, max_tokens, card)
        if onnx:
            write_onnx(partial, config, pooling)
        if out_dir.exists():
            # A leftover is the only copy only while out_dir is missing.
            shutil.rmtree(earlier, ignore_errors=True)
            out_dir.rename(earlier)
        partial.rename(out_dir)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    shutil.rmtree(earlier, ignore_errors=True)


def _check_replaceable(out_dir: Path) -> None:
    if not out_dir.exists() and not out_dir.is_symlink():
        return
    if out_dir.is_symlink() or not out_dir.is_dir():
        raise UserError(f"{out_dir} is not a folder; give another place for the export")
    names = {p.relative_to(out_dir).as_posix() for p in out_dir.rglob("*")}
    if foreign := sorted(names - _WRITTEN):
        raise UserError(
            f"{out_dir} holds {foreign[0]!r}, which no export writes; "
            "move it away or give another place for the export"
        )


def _write_folder(
    folder: Path,
    params: nnx.State,
    config: ModelConfig,
    tokenizer_dir: Path,
    pooling: Pooling,
    max_tokens: int,
    card: str,
) -> None:
    (folder / "1_Pooling").mkdir(parents=True)
    for name in (SPIECE_FILE, TOKENIZER_FILE, *TOKENIZER_EXTRAS):
        if (tokenizer_dir / name).is_file():
            shutil.copyfile(tokenizer_dir / name, folder / name)
    check_ids(load_tokenizer(folder), config.vocab_size, tokenizer_dir)
    modes = {f"pooling_mode_{mode}": name == pooling for name, mode in _POOLING_MODES.items()}
    documents: dict[str, Any] = {
        CONFIG_FILE: config_to_huggingface(config),
        **_tokenizer_documents(folder, max_tokens),
        "modules.json": _MODULES,
        "1_Pooling/config.json": {"word_embedding_dimension": config.dimensions, **modes},
        "sentence_bert_config.json": {"max_seq_length": max_tokens, "do_lower_case": False},
        "config_sentence_transformers.json": _SENTENCE_TRANSFORMERS,
    }
    for name, document in documents.items():
        (folder / name).write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    (folder / "README.md").write_text(card, encoding="utf-8")
    # transformers 4 refuses a file without this metadata.
    tensors = to_huggingface(params, config)
    save_file(tensors, folder / WEIGHTS_FILE, metadata={"format": "pt"})
    sync(folder / WEIGHTS_FILE)


def _tokenizer_documents(folder: Path, max_tokens: int) -> dict[str, Any]:
    """What transformers reads beside `tokenizer.json`: as it came, or as a T5's is."""
    settings, special = TOKENIZER_EXTRAS
    if not (folder / SPIECE_FILE).is_file():
        given = read_json(folder / settings) if (folder / settings).is_file() else {}
        base = {"tokenizer_class": "PreTrainedTokenizerFast"}
        return {settings: base | given | {"model_max_length": max_tokens}}
    tokens = load_tokenizer(folder).get_vocab(with_added_tokens=True)
    extra = sorted(
        (t for t in tokens if t.startswith("<extra_id_")), key=lambda t: tokens[t], reverse=True
    )
    return {
        settings: {
            "tokenizer_class": "T5Tokenizer",
            "model_max_length": max_tokens,
            **_SPECIAL_TOKENS,
            "extra_ids": len(extra),
            "additional_special_tokens": extra,
        },
        special: {**_SPECIAL_TOKENS, "additional_special_tokens": extra},
    }


def verify_export(
    out_dir: Path,
    params: nnx.State,
    config: ModelConfig,
    texts: Sequence[str],
    pooling: Pooling = "mean",
) -> float:
    """Reads an exported folder back and compares its embeddings with those of `params`.

    Args:
      out_dir: as written by `export_huggingface`.
      params: what was exported.
      config: their shape.
      texts: at least one.
      pooling: of the hidden states of a text.
    Returns: the largest absolute difference of an embedding's coordinate, at most 1e-6.
    Raises: RuntimeError when the folder gives another shape or other embeddings, or its ONNX graph
      ones that differ by more than 1e-5; UserError when it cannot be read.
    """
    if not texts:
        raise ValueError("verify_export needs at least one text to compare")
    read_config, tensors = read_encoder(out_dir)
    written, read = config_to_huggingface(config), config_to_huggingface(read_config)
    if written != read:
        raise RuntimeError(f"{out_dir}/{CONFIG_FILE} gives {read}, expected {written}")
    document = json.loads((out_dir / "sentence_bert_config.json").read_text(encoding="utf-8"))
    tokenizer = load_tokenizer(out_dir)
    tokenizer.enable_truncation(document["max_seq_length"])
    tokenizer.enable_padding(pad_id=0, pad_token="<pad>")  # noqa: S106  No secret.
    encodings = tokenizer.encode_batch(list(texts))
    ids_NL = np.array([e.ids for e in encodings])
    mask_NL = np.array([e.attention_mask for e in encodings])
    ours_ND, read_ND = (
        np.asarray(embed(config, pooling, p, ids_NL, mask_NL))
        for p in (params, from_huggingface(tensors, read_config))
    )
    difference = float(np.abs(ours_ND - read_ND).max())
    # Written so that NaN fails too.
    if not difference <= _LARGEST_DIFFERENCE:
        raise RuntimeError(
            f"embeddings of {out_dir} differ from the model's by {difference:.1e}, expected at "
            f"most {_LARGEST_DIFFERENCE:.0e}: the export is damaged; export again"
        )
    if (out_dir / ONNX_FOLDER).is_dir():
        verify_onnx(out_dir, params, config, pooling, tokenizer, texts)
    return difference
