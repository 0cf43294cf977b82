"""The MPNet encoder (Song et al. 2020, arXiv 2004.09297): BERT's blocks with T5's position bias."""

from functools import partial
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Int

from jina_jax.config import MPNetConfig
from jina_jax.model.attention import Mask, RelativePositionBias, segment_positions
from jina_jax.model.bert import BertBlock, read_bert_shape, with_bias
from jina_jax.model.dropout import DropoutKey, Site, dropout
from jina_jax.model.family import (
    AT_ONCE,
    BLOCK_SHARDINGS,
    NAMED_DIVIDED,
    TABLE_SHARDING,
    Execution,
    Family,
    run_layers,
)
from jina_jax.model.huggingface import FOR_SERVERS, Layout, all_layers, of_encoder, shape_fields
from jina_jax.model.layers import INITIAL_STD, LayerNorm, table

_MAX_DISTANCE = 128
"""Of the buckets; transformers has no field for it."""


class MPNetEncoder(nnx.Module):
    """Token ids to hidden states. Weights are drawn with deviation 0.02."""

    def __init__(self, config: MPNetConfig, *, rngs: nnx.Rngs) -> None:
        d = config.hidden_size
        self.config, self.dropout_rate = config, config.hidden_dropout_prob
        self.first_position = config.first_position
        self.word_VD = table(config.vocab_size, d, rngs=rngs)
        self.position_PD = table(config.max_position_embeddings, d, rngs=rngs)
        self.embedding_norm = LayerNorm(d, config.layer_norm_eps)
        self.position_bias = RelativePositionBias(
            config.relative_attention_num_buckets, _MAX_DISTANCE, config.num_attention_heads,
            std=INITIAL_STD, rngs=rngs,
        )  # fmt: skip
        self.blocks = nnx.List(
            [BertBlock(config, rngs=rngs) for _ in range(config.num_hidden_layers)]
        )

    def __call__(
        self,
        ids_RL: Int[Array, "R L"],
        segments_RL: Int[Array, "R L"],
        *,
        dropout_key: DropoutKey | None = None,
        execution: Execution = AT_ONCE,
    ) -> Float[Array, "R L D"]:
        """As `encoder.apply`."""
        rows, length = ids_RL.shape
        # Only padding is further on than the longest text; its position is clipped to the last.
        position_RL = self.first_position + segment_positions(segments_RL)
        position_PD = execution.access.whole(self.position_PD[...], 1)
        x_RLD = execution.access.look_up(self.word_VD[...], ids_RL)
        x_RLD = x_RLD + jnp.take(position_PD, position_RL, axis=0, mode="clip")
        x_ND = self.embedding_norm(x_RLD.reshape(rows * length, -1))
        outside = None if dropout_key is None else dropout_key.fold_in(len(self.blocks))
        x_ND = dropout(x_ND, outside, Site.EMBEDDING, self.dropout_rate)
        bias = self.position_bias(length, execution.kernel)
        mask = Mask(segments_RL)
        x_ND = run_layers(
            list(self.blocks), x_ND,
            lambda block, x_ND, key, _: block(
                x_ND, mask, bias, dropout_key=key, kernel=execution.kernel
            ),
            dropout_key, execution, self.config,
        )  # fmt: skip
        return x_ND.reshape(rows, length, -1)


_UNUSED = ("pooler.", "classifier.", "lm_head.", "embeddings.position_ids")
_LAYER = {
    "attention.attn.q": "attention/q",
    "attention.attn.k": "attention/k",
    "attention.attn.v": "attention/v",
    "attention.attn.o": "attention/o",
    "attention.LayerNorm": "attention_norm",
    "intermediate.dense": "wi",
    "output.dense": "wo",
    "output.LayerNorm": "feed_forward_norm",
}


def _layout(config: MPNetConfig) -> Layout:
    layer: dict[str, str] = {}
    for theirs, ours in _LAYER.items():
        layer |= with_bias(f"encoder.layer.{{}}.{theirs}", f"blocks/{{}}/{ours}")
    return {
        "embeddings.word_embeddings.weight": "word_VD",
        "embeddings.position_embeddings.weight": "position_PD",
        "encoder.relative_attention_bias.weight": "position_bias/table",
        **with_bias("embeddings.LayerNorm", "embedding_norm"),
        **all_layers(layer, config.num_hidden_layers),
    }


def _write_config(config: MPNetConfig) -> dict[str, Any]:
    return {
        "architectures": ["MPNetModel"], **shape_fields(config), "hidden_act": "gelu",
        **FOR_SERVERS,
    }  # fmt: skip


FAMILY = Family(
    name="MPNet",
    config=MPNetConfig,
    model_types=("mpnet",),
    encoder=MPNetEncoder,
    layout=_layout,
    used=partial(of_encoder, prefix="mpnet.", unused=_UNUSED),
    ignored=(),
    read_config=lambda config_json: read_bert_shape(MPNetConfig, config_json),
    write_config=_write_config,
    shardings={
        "*_[VP]D": TABLE_SHARDING,
        "position_bias/table": PartitionSpec(None, "tensor"),
        **BLOCK_SHARDINGS,
    },
    divided=NAMED_DIVIDED,
)
