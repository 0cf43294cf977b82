"""What the sizes of all families share: the paper's pairs, one batch, settings for a machine."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

from jina_jax.config import (
    BertConfig,
    FeedConfig,
    LossConfig,
    MeshConfig,
    ModelConfig,
    OptimConfig,
    Pooling,
    PoolingConfig,
    RunConfig,
    TokenizerConfig,
    TrainConfig,
)
from jina_jax.configs.jina_v1_pairs import get_config as jina_v1_pairs
from jina_jax.errors import UserError


@dataclass(frozen=True)
class Setting:
    """How a size is laid out on a machine. It changes memory and speed, not what is learnt."""

    fsdp: int = 1
    remat: Literal["none", "dots", "full"] = "none"
    grad_cache_rows: int = 0
    gather: Literal["all_gather", "ring"] = "all_gather"


def sized(
    name: str,
    model: ModelConfig,
    settings: Mapping[str, Setting],
    machine: str,
    *,
    initial_weights: str = "",
    tokenizer: str = TokenizerConfig().source,
    pooling: Pooling = "mean",
) -> RunConfig:
    """A run of the pair phase at a global batch of 16,384 pairs of up to 128 + 128 tokens.

    Args:
      name: of the run.
      model: its shape.
      settings: machine → how the run lies on it; a slice as `jina-jax plan` names it, or h100:8.
      machine: one of them; empty takes the first.
      initial_weights: where training starts.
      tokenizer: where the model's vocabulary is; T5's sizes have one, and share prepared data.
      pooling: from hidden states to an embedding.
    Raises: UserError naming the machines that there are settings for.
    """
    machine = machine or next(iter(settings))
    if machine not in settings:
        raise UserError(
            f"{name} has no settings for {machine!r}, only for {', '.join(settings)}; take one of "
            f"these and change --mesh.fsdp and --train.remat"
        )
    setting = settings[machine]
    return RunConfig(
        name=name,
        machine=machine,
        data=replace(jina_v1_pairs().data, tokenizer=TokenizerConfig(tokenizer)),
        feed=FeedConfig(
            global_batch_size=16_384,
            query_tokens=128,
            positive_tokens=128,
            row_tokens=128,
            texts_per_row=8,
            rows_multiple=1024,
        ),
        model=replace(model, compute_dtype="bfloat16"),
        pooling=PoolingConfig(pooling),
        mesh=MeshConfig(fsdp=setting.fsdp),
        loss=LossConfig(gather=setting.gather),
        optim=OptimConfig(warmup_steps=1000),
        train=TrainConfig(
            num_steps=23_500,  # 385 million pairs
            initial_weights=initial_weights,
            grad_cache_rows=setting.grad_cache_rows,
            # Layers one by one take more traffic, which a layer that is kept whole can do without.
            scan_layers=setting.fsdp > 1 or setting.remat != "none",
            remat=setting.remat,
        ),
    )


BERT_BASE = "google-bert/bert-base-uncased"
BERT_BASE_MACHINES = {
    "v5e:4x4": Setting(grad_cache_rows=1024),
    "h100:8": Setting(grad_cache_rows=1024),
}


def bert_base(name: str, machine: str, *, pooling: Pooling = "mean") -> RunConfig:
    """`sized`, of the pretrained BERT base: 110 million parameters, 768 dimensions."""
    model = BertConfig(
        hidden_size=768, num_hidden_layers=12, num_attention_heads=12, intermediate_size=3072
    )
    return sized(
        name, model, BERT_BASE_MACHINES, machine,
        initial_weights=BERT_BASE, tokenizer=BERT_BASE, pooling=pooling,
    )  # fmt: skip
