"""The BERT encoder (Devlin et al. 2019) for packed rows, with its kin RoBERTa and XLM-R, and its
one-logit classifier.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from jina_jax.config import BertConfig, MPNetConfig
from jina_jax.model.attention import (
    Kernel,
    Mask,
    WeightDropout,
    attend_with,
    segment_positions,
)
from jina_jax.model.dropout import DropoutKey, Site, dropout
from jina_jax.model.family import (
    AT_ONCE,
    BLOCK_SHARDINGS,
    NAMED_DIVIDED,
    TABLE_SHARDING,
    Execution,
    Family,
    products,
    run_layers,
)
from jina_jax.model.huggingface import (
    FOR_SERVERS,
    Layout,
    all_layers,
    fill_params,
    read_shape,
    require,
    require_divides,
    shape_fields,
)
from jina_jax.model.layers import INITIAL_STD, LayerNorm, Linear, gelu, graphdef, table
from jina_jax.model.pooling import first_token

_C = TypeVar("_C", BertConfig, MPNetConfig)


class BertAttention(nnx.Module):
    """Multi-head attention with scaled scores and biases."""

    def __init__(self, config: BertConfig | MPNetConfig, *, rngs: nnx.Rngs) -> None:
        d, dtype = config.hidden_size, config.compute_dtype
        self.num_heads = config.num_attention_heads
        self.dropout_rate = config.attention_probs_dropout_prob

        def linear() -> Linear:
            return Linear(d, d, std=INITIAL_STD, dtype=dtype, rngs=rngs, has_bias=True)

        self.q, self.k, self.v, self.o = linear(), linear(), linear(), linear()

    def __call__(
        self,
        x_ND: Float[Array, "N D"],
        mask: Mask,
        bias: Float[Array, "H ..."] | None = None,
        *,
        dropout_key: DropoutKey | None = None,
        kernel: Kernel = "at_once",
    ) -> Float[Array, "N D"]:
        """Attends within the texts of each row.

        Args:
          x_ND: hidden states; N = R * L tokens, row by row.
          mask: which keys each query may attend to.
          bias: float32, added to the scores.
          dropout_key: the layer's key, or None for no dropout.
          kernel: how; `cudnn` drops no weights.
        Returns: [N, D] in the compute dtype.
        """
        rows, length = mask.segments_RL.shape

        def heads(projected: Array) -> Array:
            return projected.reshape(rows, length, self.num_heads, -1)

        q_RLHK = heads(self.q(x_ND))
        mixed_RLHK = attend_with(
            kernel, q_RLHK * q_RLHK.shape[-1] ** -0.5, heads(self.k(x_ND)), heads(self.v(x_ND)),
            mask, bias, WeightDropout.of(dropout_key, self.dropout_rate),
        )  # fmt: skip
        return self.o(mixed_RLHK.reshape(rows * length, -1))


class BertBlock(nnx.Module):
    """One layer: attention, then feed-forward, each added and normalised after (post-norm)."""

    def __init__(self, config: BertConfig | MPNetConfig, *, rngs: nnx.Rngs) -> None:
        d, f, dtype = config.hidden_size, config.intermediate_size, config.compute_dtype
        self.dropout_rate = config.hidden_dropout_prob
        self.attention = BertAttention(config, rngs=rngs)
        self.attention_norm = LayerNorm(d, config.layer_norm_eps)
        self.wi = Linear(d, f, std=INITIAL_STD, dtype=dtype, rngs=rngs, has_bias=True)
        self.wo = Linear(f, d, std=INITIAL_STD, dtype=dtype, rngs=rngs, has_bias=True)
        self.feed_forward_norm = LayerNorm(d, config.layer_norm_eps)

    def __call__(
        self,
        x_ND: Float[Array, "N D"],
        mask: Mask,
        bias: Float[Array, "H ..."] | None = None,
        *,
        dropout_key: DropoutKey | None = None,
        kernel: Kernel = "at_once",
    ) -> Float[Array, "N D"]:
        """Maps float32 hidden states to float32 hidden states.

        Args as for `BertAttention`.
        """
        attended_ND = self.attention(x_ND, mask, bias, dropout_key=dropout_key, kernel=kernel)
        attended_ND = dropout(attended_ND, dropout_key, Site.ATTENTION_OUTPUT, self.dropout_rate)
        x_ND = self.attention_norm(x_ND + attended_ND).astype(x_ND.dtype)
        mapped_ND = self.wo(gelu(self.wi(x_ND)))
        mapped_ND = dropout(mapped_ND, dropout_key, Site.FEED_FORWARD_OUTPUT, self.dropout_rate)
        return self.feed_forward_norm(x_ND + mapped_ND)


class BertEncoder(nnx.Module):
    """Token ids to hidden states. Weights are drawn with deviation 0.02, as BERT's are."""

    def __init__(self, config: BertConfig, *, rngs: nnx.Rngs) -> None:
        d = config.hidden_size
        self.config, self.dropout_rate = config, config.hidden_dropout_prob
        self.first_position = config.first_position
        self.word_VD = table(config.vocab_size, d, rngs=rngs)
        self.position_PD = table(config.max_position_embeddings, d, rngs=rngs)
        self.type_TD = table(config.type_vocab_size, d, rngs=rngs)
        self.embedding_norm = LayerNorm(d, config.layer_norm_eps)
        self.blocks = nnx.List(
            [BertBlock(config, rngs=rngs) for _ in range(config.num_hidden_layers)]
        )

    def __call__(
        self,
        ids_RL: Int[Array, "R L"],
        segments_RL: Int[Array, "R L"],
        types_RL: Int[Array, "R L"] | None = None,
        *,
        dropout_key: DropoutKey | None = None,
        execution: Execution = AT_ONCE,
    ) -> Float[Array, "R L D"]:
        """Encodes packed rows; texts of a row do not see each other, and each starts at position 0.

        Args:
          ids_RL: int token ids in 0..vocab_size-1.
          segments_RL: int, 0 for padding, 1.. for the texts of a row.
          types_RL: int token types; None means type 0 everywhere.
          dropout_key: the same key and row numbers repeat the same dropout exactly. None turns
            dropout off.
          execution: how the layers are run.
        Returns: float32 [R, L, D]; positions of padding hold no meaning.
        """
        rows, length = ids_RL.shape
        # Only padding is further on than the longest text; its position is clipped to the last.
        position_RL = self.first_position + segment_positions(segments_RL)
        access = execution.access
        position_PD, type_TD = (access.whole(x[...], 1) for x in (self.position_PD, self.type_TD))
        x_RLD = access.look_up(self.word_VD[...], ids_RL)
        x_RLD = x_RLD + jnp.take(position_PD, position_RL, axis=0, mode="clip")
        if types_RL is None:
            x_RLD = x_RLD + type_TD[0][None, None]
        else:
            x_RLD = x_RLD + jnp.take(type_TD, types_RL, axis=0)
        # One axis of tokens between attentions: CPU products of two matrices are faster than
        # products with a batch axis.
        x_ND = self.embedding_norm(x_RLD.reshape(rows * length, -1))
        outside = None if dropout_key is None else dropout_key.fold_in(len(self.blocks))
        x_ND = dropout(x_ND, outside, Site.EMBEDDING, self.dropout_rate)
        mask = Mask(segments_RL)
        x_ND = run_layers(
            list(self.blocks), x_ND,
            lambda block, x_ND, key, _: block(
                x_ND, mask, dropout_key=key, kernel=execution.kernel
            ),
            dropout_key, execution, self.config,
        )  # fmt: skip
        return x_ND.reshape(rows, length, -1)


class BertClassifier(nnx.Module):
    """BERT with a pooler and a classifier of one logit: a cross-encoder."""

    def __init__(self, config: BertConfig, *, rngs: nnx.Rngs) -> None:
        d = config.hidden_size
        self.encoder = BertEncoder(config, rngs=rngs)
        # float32: two small products, and the logits are compared with a threshold.
        self.pooler = Linear(d, d, std=INITIAL_STD, dtype="float32", rngs=rngs, has_bias=True)
        self.classifier = Linear(d, 1, std=INITIAL_STD, dtype="float32", rngs=rngs, has_bias=True)

    def __call__(
        self,
        ids_RL: Int[Array, "R L"],
        segments_RL: Int[Array, "R L"],
        types_RL: Int[Array, "R L"],
        texts_per_row: int,
        execution: Execution = AT_ONCE,
    ) -> Float[Array, "R S"]:
        """One logit per packed text.

        Args:
          ids_RL: int token ids.
          segments_RL: int, 0 for padding, 1.. for the texts of a row.
          types_RL: int token types.
          texts_per_row: slots S of a row.
          execution: how the layers are run.
        Returns: float32 [R, S]; a slot without tokens holds no meaning.
        """
        hidden_RLD = self.encoder(ids_RL, segments_RL, types_RL, execution=execution)
        first_RSD = first_token(hidden_RLD, segments_RL, texts_per_row)
        first_ND = first_RSD.reshape(-1, first_RSD.shape[-1])
        return self.classifier(jnp.tanh(self.pooler(first_ND))).reshape(-1, texts_per_row)


def init_classifier_params(config: BertConfig, key: jax.Array) -> nnx.State:
    """Random float32 weights of a `BertClassifier`, drawn with deviation 0.02 from `key`."""
    return nnx.state(BertClassifier(config, rngs=nnx.Rngs(key)), nnx.Param)


def classify(
    config: BertConfig,
    params: nnx.State,
    ids_RL: Int[Array, "R L"],
    segments_RL: Int[Array, "R L"],
    types_RL: Int[Array, "R L"],
    texts_per_row: int,
    execution: Execution = AT_ONCE,
) -> Float[Array, "R S"]:
    """One logit per packed text: `BertClassifier.__call__` as a pure function.

    Args beside its own: the config that `params` were made for; `params` from
    `init_classifier_params` or `classifier_from_huggingface`.
    """
    model = nnx.merge(graphdef(BertClassifier, config), params)
    with products(config, execution):
        logits_RS: Array = model(ids_RL, segments_RL, types_RL, texts_per_row, execution)
    return logits_RS


_CLASSIFIER_PREFIX = "bert."
_PREFIXES = (_CLASSIFIER_PREFIX, "roberta.")
# What a sentence encoder does not use, and a count of positions that old files store as weights.
_UNUSED_PREFIXES = ("pooler.", "classifier.", "cls.", "lm_head.", "dropout.")
_UNUSED_SUFFIXES = ("embeddings.position_ids", "embeddings.token_type_ids")
# What has to be as implemented; transformers may leave the field out.
_REQUIRED = {
    "hidden_act": ("gelu", "gelu_python"),
    "position_embedding_type": "absolute",
    "is_decoder": False,
    "add_cross_attention": False,
}
_ARCHITECTURES = {"bert": "BertModel", "roberta": "RobertaModel", "xlm-roberta": "XLMRobertaModel"}


_LAYER = {
    "attention.self.query": "attention/q",
    "attention.self.key": "attention/k",
    "attention.self.value": "attention/v",
    "attention.output.dense": "attention/o",
    "attention.output.LayerNorm": "attention_norm",
    "intermediate.dense": "wi",
    "output.dense": "wo",
    "output.LayerNorm": "feed_forward_norm",
}


def with_bias(theirs: str, ours: str) -> dict[str, str]:
    """Weight and bias of a linear map or of a norm."""
    weight, bias = ("scale_D", "bias_D") if "LayerNorm" in theirs else ("kernel", "bias_O")
    return {f"{theirs}.weight": f"{ours}/{weight}", f"{theirs}.bias": f"{ours}/{bias}"}


def _layout(config: BertConfig) -> Layout:
    """Of `BertModel` without its pooler."""
    layer: dict[str, str] = {}
    for theirs, ours in _LAYER.items():
        layer |= with_bias(f"encoder.layer.{{}}.{theirs}", f"blocks/{{}}/{ours}")
    return {
        "embeddings.word_embeddings.weight": "word_VD",
        "embeddings.position_embeddings.weight": "position_PD",
        "embeddings.token_type_embeddings.weight": "type_TD",
        **with_bias("embeddings.LayerNorm", "embedding_norm"),
        **all_layers(layer, config.num_hidden_layers),
    }


def modern_name(name: str) -> str:
    """The first releases of BERT called a norm's scale gamma and its shift beta."""
    return name.replace("LayerNorm.gamma", "LayerNorm.weight").replace(
        "LayerNorm.beta", "LayerNorm.bias"
    )


def _used(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Those of the encoder, whatever model it is a part of: without pooler and heads."""
    used = {}
    for name, array in tensors.items():
        bare = modern_name(name)
        for prefix in _PREFIXES:
            bare = bare.removeprefix(prefix)
        if not bare.startswith(_UNUSED_PREFIXES) and not bare.endswith(_UNUSED_SUFFIXES):
            used[bare] = array
    return used


def classifier_from_huggingface(tensors: Mapping[str, np.ndarray], config: BertConfig) -> nnx.State:
    """Parameters of the cross-encoder from a `BertForSequenceClassification` with one label.

    Args:
      tensors: name → array, as in `model.safetensors`.
      config: the shape that the tensors must have.
    Returns: float32 parameters, in the structure of `init_classifier_params`.
    Raises: UserError naming each missing, unexpected and mis-shaped tensor.
    """
    layout = {
        f"{_CLASSIFIER_PREFIX}{name}": f"encoder/{path}" for name, path in _layout(config).items()
    }
    layout |= with_bias(f"{_CLASSIFIER_PREFIX}pooler.dense", "pooler")
    layout |= with_bias("classifier", "classifier")
    used = {modern_name(k): v for k, v in tensors.items() if not k.endswith(_UNUSED_SUFFIXES)}
    init = partial(init_classifier_params, config)
    return fill_params(layout, used, init, "BERT cross-encoder with one logit")


def read_bert_shape(cls: type[_C], config_json: Mapping[str, Any]) -> _C:
    """Shape of the encoder that a Hugging Face `config.json` describes.

    Fields that old files leave out take the defaults of `cls`.

    Args:
      cls: dataclass of the shape.
      config_json: the parsed file.
    Raises: UserError when it computes otherwise than implemented.
    """
    require(config_json, _REQUIRED)
    config = read_shape(cls, config_json)
    require_divides(config, "hidden_size", "num_attention_heads")
    return config


def _write_config(config: BertConfig) -> dict[str, Any]:
    """`config.json` of a `BertModel` or of its kin."""
    return {
        "architectures": [_ARCHITECTURES[config.model_type]],
        **shape_fields(config),
        "hidden_act": "gelu",
        "position_embedding_type": "absolute",
        **FOR_SERVERS,
        "use_cache": False,
    }


FAMILY = Family(
    name="BERT",
    config=BertConfig,
    model_types=tuple(_ARCHITECTURES),
    encoder=BertEncoder,
    layout=_layout,
    used=_used,
    ignored=(),
    read_config=lambda config_json: read_bert_shape(BertConfig, config_json),
    write_config=_write_config,
    shardings={
        "*_[VPT]D": TABLE_SHARDING,
        **BLOCK_SHARDINGS,
    },
    divided=NAMED_DIVIDED,
)
