"""Writes a folder that sentence-transformers and transformers load, without needing either."""

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from flax import nnx
from safetensors.numpy import save_file

from jina_jax.config import ModelConfig, PoolingConfig, PromptConfig
from jina_jax.errors import UserError
from jina_jax.export.adapter import ADAPTER_CONFIG_FILE, ADAPTER_FILE, ADAPTER_FOLDER
from jina_jax.export.onnx import (
    ACTIVATIONS,
    ONNX_DATA,
    ONNX_FILE,
    ONNX_FOLDER,
    embed_padded,
    verify_onnx,
    write_onnx,
)
from jina_jax.inference.model_folder import (
    CONFIG_FILE,
    LIMITS_FILE,
    MODULES_FILE,
    PROMPTS_FILE,
    WEIGHTS_FILE,
    read_params,
    read_sentence_config,
)
from jina_jax.model.encoder import DENSE, config_to_huggingface, to_huggingface
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
_DENSE_FOLDER = "2_Dense"
_SENTENCE_TRANSFORMERS = {
    # The oldest versions that the folder is made for: a newer number makes those warn.
    "__version__": {"sentence_transformers": "2.7.0", "transformers": "4.44.2", "pytorch": "2.3.0"},
    "model_type": "SentenceTransformer",
    "similarity_fn_name": "cosine",
}
_SMALL_FILES = (
    SPIECE_FILE, TOKENIZER_FILE, *TOKENIZER_EXTRAS, MODULES_FILE,
    "1_Pooling", "1_Pooling/config.json",
    _DENSE_FOLDER, f"{_DENSE_FOLDER}/{CONFIG_FILE}", f"{_DENSE_FOLDER}/{WEIGHTS_FILE}",
    LIMITS_FILE, PROMPTS_FILE,
)  # fmt: skip
_WRITTEN = frozenset(
    (
        CONFIG_FILE, WEIGHTS_FILE, *_SMALL_FILES, "README.md",
        ONNX_FOLDER, f"{ONNX_FOLDER}/{ONNX_FILE}", f"{ONNX_FOLDER}/{ONNX_DATA}",
        ADAPTER_FOLDER,
        *(f"{ADAPTER_FOLDER}/{n}" for n in (*_SMALL_FILES, ADAPTER_CONFIG_FILE, ADAPTER_FILE)),
    )
)  # fmt: skip
_SPECIAL_FIELDS = {"bos": ("cls",), "cls": ("bos",), "eos": ("sep",), "sep": ("eos",)}
"""Tokens of `config.json`, and what a tokenizer may call each that names none so."""
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
    pooling: PoolingConfig = PoolingConfig(),
    prompts: PromptConfig = PromptConfig(),
    max_tokens: int,
    card: str,
    onnx: bool = False,
    adapter: Callable[[Path], None] | None = None,
) -> None:
    """Writes the model as a folder for sentence-transformers 2.7 and later, which read a Dense
    layer's safetensors only in versions after 2.7.

    The folder appears whole or not at all; an earlier export at the same place is replaced.

    Args:
      params: parameters of the encoder and its Dense layer.
      config: their shape.
      tokenizer_dir: holds `tokenizer.json` and what belongs to it.
      out_dir: folder to write.
      pooling: from hidden states to an embedding.
      prompts: that sentence-transformers knows by their names.
      max_tokens: texts are cut to this many tokens, end-of-sequence included.
      card: content of `README.md`, from `model_card.render_card`.
      onnx: also write the graph that `write_onnx` describes.
      adapter: writes that of the run into the folder it is given, as `write_adapter` does.
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
        _write_folder(partial, params, config, tokenizer_dir, pooling, prompts, max_tokens, card)
        if onnx:
            write_onnx(partial, params, config, pooling)
        if adapter is not None:
            adapter(partial)
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
    pooling: PoolingConfig,
    prompts: PromptConfig,
    max_tokens: int,
    card: str,
) -> None:
    (folder / "1_Pooling").mkdir(parents=True)
    for name in (SPIECE_FILE, TOKENIZER_FILE, *TOKENIZER_EXTRAS):
        if (tokenizer_dir / name).is_file():
            shutil.copyfile(tokenizer_dir / name, folder / name)
    check_ids(load_tokenizer(folder), config.vocab_size, tokenizer_dir)
    modes = {f"pooling_mode_{mode}": name == pooling.mode for name, mode in _POOLING_MODES.items()}
    documents: dict[str, Any] = {
        CONFIG_FILE: config_to_huggingface(config) | _special_ids(folder),
        **_tokenizer_documents(folder, max_tokens),
        MODULES_FILE: _modules(pooling),
        "1_Pooling/config.json": {
            "word_embedding_dimension": config.dimensions,
            **modes,
            "include_prompt": pooling.include_prompt,
        },
        LIMITS_FILE: {"max_seq_length": max_tokens, "do_lower_case": False},
        PROMPTS_FILE: {
            **_SENTENCE_TRANSFORMERS,
            "prompts": dict(prompts.named),
            "default_prompt_name": prompts.default or None,
        },
    }
    tensors = to_huggingface(params, config, pooling)
    weights = {folder: tensors}
    if pooling.dense_dimensions:
        (folder / _DENSE_FOLDER).mkdir()
        documents[f"{_DENSE_FOLDER}/{CONFIG_FILE}"] = {
            "in_features": config.dimensions,
            "out_features": pooling.dense_dimensions,
            "bias": pooling.dense_bias,
            "activation_function": ACTIVATIONS[pooling.dense_activation],
        }
        behind = {n: tensors.pop(n) for n in list(tensors) if n.startswith(f"{DENSE}.")}
        linear = {name.replace(DENSE, "linear", 1): x for name, x in behind.items()}
        weights[folder / _DENSE_FOLDER] = linear
    for name, document in documents.items():
        (folder / name).write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    (folder / "README.md").write_text(card, encoding="utf-8")
    for where, held in weights.items():
        _save(held, where)


def _save(tensors: dict[str, np.ndarray], folder: Path) -> None:
    path = folder / WEIGHTS_FILE
    # transformers 4 refuses a file without this metadata.
    save_file(tensors, path, metadata={"format": "pt"})
    # The library makes it readable by its owner alone; who may read the others may read it too.
    path.chmod((folder / CONFIG_FILE).stat().st_mode)
    sync(path)


def _modules(pooling: PoolingConfig) -> list[dict[str, Any]]:
    """Names of classes as sentence-transformers 2 wrote them: 5 and 6 read them too."""
    kinds = ["Transformer", "Pooling"]
    kinds += ["Dense"] * (pooling.dense_dimensions > 0) + ["Normalize"] * pooling.normalize
    return [
        {
            "idx": i, "name": str(i), "path": f"{i}_{kind}" if i else "",
            "type": f"sentence_transformers.models.{kind}",
        }
        for i, kind in enumerate(kinds)
    ]  # fmt: skip


def _tokenizer_documents(folder: Path, max_tokens: int) -> dict[str, Any]:
    """What transformers reads beside `tokenizer.json`: as it came, or as a T5's is."""
    settings, special = TOKENIZER_EXTRAS
    if not (folder / SPIECE_FILE).is_file():
        given = read_json(folder / settings) if (folder / settings).is_file() else {}
        # transformers 5 writes a class that 4 doesn't have. Both have the older name of the same,
        # which in 4 would give token types too, that not every model takes.
        if given.get("tokenizer_class") in (None, "TokenizersBackend"):
            given["tokenizer_class"] = "PreTrainedTokenizerFast"
            given.setdefault("model_input_names", ["input_ids", "attention_mask"])
        return {settings: given | {"model_max_length": max_tokens}}
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


def _special_ids(folder: Path) -> dict[str, int]:
    """Of `config.json`: ids of the tokens that a `tokenizer.json` begins and ends texts with."""
    if (folder / SPIECE_FILE).is_file():
        return {}  # Those of a T5 are always the same.
    names: dict[str, Any] = {}
    for name in reversed(TOKENIZER_EXTRAS):
        names |= read_json(folder / name) if (folder / name).is_file() else {}
    ids = load_tokenizer(folder).get_vocab(with_added_tokens=True)
    found: dict[str, int] = {}
    for field, others in _SPECIAL_FIELDS.items():
        given = (names.get(f"{name}_token") for name in (field, *others))
        tokens = (token.get("content") if isinstance(token, dict) else token for token in given)
        known = [ids[token] for token in tokens if isinstance(token, str) and token in ids]
        found |= {f"{field}_token_id": number for number in known[:1]}
    return found


def verify_export(
    out_dir: Path,
    params: nnx.State,
    config: ModelConfig,
    texts: Sequence[str],
    pooling: PoolingConfig = PoolingConfig(),
) -> float:
    """Reads an exported folder back and compares its embeddings with those of `params`.

    Args:
      out_dir: as written by `export_huggingface`.
      params: what was exported.
      config: their shape.
      texts: at least one.
      pooling: from hidden states to an embedding.
    Returns: the largest absolute difference of an embedding's coordinate, at most 1e-6.
    Raises: RuntimeError when the folder gives another shape or other embeddings, or its ONNX graph
      ones that differ by more than 1e-5; UserError when it cannot be read.
    """
    if not texts:
        raise ValueError("verify_export needs at least one text to compare")
    model = read_sentence_config(out_dir)
    written, read = config_to_huggingface(config), config_to_huggingface(model.config)
    if written != read:
        raise RuntimeError(f"{out_dir}/{CONFIG_FILE} gives {read}, expected {written}")
    tokenizer = load_tokenizer(out_dir)
    tokenizer.enable_truncation(model.max_tokens)
    tokenizer.enable_padding(pad_id=0, pad_token="<pad>")  # noqa: S106  No secret.
    encodings = tokenizer.encode_batch(list(texts))
    ids_NL = np.array([e.ids for e in encodings])
    mask_NL = np.array([e.attention_mask for e in encodings])
    ours_ND, read_ND = (
        np.asarray(embed_padded(config, pooling, p, ids_NL, mask_NL))
        for p in (params, read_params(out_dir, model))
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
