"""Weights and shapes in the names of Hugging Face's BERT models: pure mappings, no files."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
from flax import nnx

from jina_jax.config import BertConfig
from jina_jax.errors import UserError
from jina_jax.model.bert import init_classifier_params, init_params
from jina_jax.model.layout import Tensor, fill_params, read_shape

_CLASSIFIER_PREFIX = "bert."
# What a sentence encoder does not use, and a count of positions that old files store as weights.
_UNUSED_PREFIXES = ("pooler.", "classifier.", "cls.", "dropout.")
_UNUSED_SUFFIX = "embeddings.position_ids"
# What has to be as implemented; transformers may leave the field out.
_REQUIRED = {
    "hidden_act": ("gelu", "gelu_python"),
    "position_embedding_type": ("absolute",),
    "is_decoder": (False,),
    "add_cross_attention": (False,),
}


def _linear(theirs: str, *ours: str | int) -> dict[str, Tensor]:
    return {
        f"{theirs}.weight": Tensor((*ours, "kernel"), True),
        f"{theirs}.bias": Tensor((*ours, "bias_O"), False),
    }


def _norm(theirs: str, *ours: str | int) -> dict[str, Tensor]:
    return {
        f"{theirs}.weight": Tensor((*ours, "scale_D"), False),
        f"{theirs}.bias": Tensor((*ours, "bias_D"), False),
    }


def _layout(config: BertConfig) -> dict[str, Tensor]:
    """Name in `BertModel`, without its pooler → place in the parameters."""
    layout = {
        "embeddings.word_embeddings.weight": Tensor(("word_VD",), False),
        "embeddings.position_embeddings.weight": Tensor(("position_PD",), False),
        "embeddings.token_type_embeddings.weight": Tensor(("type_TD",), False),
        **_norm("embeddings.LayerNorm", "embedding_norm"),
    }
    for i in range(config.num_hidden_layers):
        theirs = f"encoder.layer.{i}"
        ours: tuple[str | int, ...] = ("blocks", i)
        for short, name in (("q", "query"), ("k", "key"), ("v", "value")):
            layout |= _linear(f"{theirs}.attention.self.{name}", *ours, "attention", short)
        layout |= _linear(f"{theirs}.attention.output.dense", *ours, "attention", "o")
        layout |= _norm(f"{theirs}.attention.output.LayerNorm", *ours, "attention_norm")
        layout |= _linear(f"{theirs}.intermediate.dense", *ours, "wi")
        layout |= _linear(f"{theirs}.output.dense", *ours, "wo")
        layout |= _norm(f"{theirs}.output.LayerNorm", *ours, "feed_forward_norm")
    return layout


def _modern(name: str) -> str:
    """The first releases of BERT called a norm's scale gamma and its shift beta."""
    return name.replace("LayerNorm.gamma", "LayerNorm.weight").replace(
        "LayerNorm.beta", "LayerNorm.bias"
    )


def from_huggingface(tensors: Mapping[str, np.ndarray], config: BertConfig) -> nnx.State:
    """Parameters of the encoder from the tensors of a `BertModel` or of a model with a head.

    Args:
      tensors: name → array, as in `model.safetensors`, with or without the prefix `bert.`; pooler
        and heads are left out.
      config: the shape that the tensors must have.
    Returns: float32 parameters in host memory, in the structure of `bert.init_params`.
    Raises: UserError naming each missing, unexpected and mis-shaped tensor.
    """
    bare = {_modern(k).removeprefix(_CLASSIFIER_PREFIX): v for k, v in tensors.items()}
    used = {
        name: array
        for name, array in bare.items()
        if not name.startswith(_UNUSED_PREFIXES) and not name.endswith(_UNUSED_SUFFIX)
    }
    return fill_params(_layout(config), used, partial(init_params, config), "BERT encoder")


def classifier_from_huggingface(tensors: Mapping[str, np.ndarray], config: BertConfig) -> nnx.State:
    """Parameters of the cross-encoder from a `BertForSequenceClassification` with one label.

    Args:
      tensors: name → array, as in `model.safetensors`.
      config: the shape that the tensors must have.
    Returns: float32 parameters, in the structure of `bert.init_classifier_params`.
    Raises: UserError naming each missing, unexpected and mis-shaped tensor.
    """
    layout = {
        f"{_CLASSIFIER_PREFIX}{name}": Tensor(("encoder", *path), is_transposed)
        for name, (path, is_transposed) in _layout(config).items()
    }
    layout |= _linear(f"{_CLASSIFIER_PREFIX}pooler.dense", "pooler")
    layout |= _linear("classifier", "classifier")
    used = {_modern(k): v for k, v in tensors.items() if not k.endswith(_UNUSED_SUFFIX)}
    init = partial(init_classifier_params, config)
    return fill_params(layout, used, init, "BERT cross-encoder with one logit")


def config_from_huggingface(config_json: Mapping[str, Any]) -> BertConfig:
    """Shape of the encoder that a Hugging Face `config.json` describes.

    Fields that old files leave out take the defaults of `BertConfig`.

    Args:
      config_json: the parsed file.
    Raises: UserError when it is not a BERT, or one that computes otherwise than implemented.
    """
    if config_json.get("model_type") != "bert":
        raise UserError(
            f"model_type={config_json.get('model_type')!r} in config.json, expected 'bert': "
            "give a BERT sentence encoder or cross-encoder, such as all-MiniLM-L6-v2"
        )
    for name, supported in _REQUIRED.items():
        value = config_json.get(name, supported[0])
        if value not in supported:
            raise UserError(
                f"{name}={value!r} in config.json is not supported; expected {supported[0]!r}"
            )
    config = read_shape(BertConfig, config_json)
    if config.hidden_size % config.num_attention_heads:
        raise UserError(
            f"hidden_size={config.hidden_size} in config.json does not divide by "
            f"num_attention_heads={config.num_attention_heads}"
        )
    return config
