"""The recipe of Qwen3-Embedding (arXiv 2506.05176): its supervised stage, from Qwen3 0.6B.

What the report gives: InfoNCE whose one partition holds hard negatives, other queries among
queries and other documents among documents, each left out where its cosine is more than 0.1 above
the positive's; the last token's vector; LoRA or all parameters are not told apart; checkpoints
merged by slerp (`jina-jax merge RUN@STEP RUN@STEP OUT --how slerp`). What it does not give:
temperature, batch size, learning rate, steps. Those here are ours.

    jina-jax run qwen3_embedding --data.sources.0.paths MY_TRIPLETS.jsonl
"""

from dataclasses import replace

from jina_jax.config import LossConfig, OptimConfig, Qwen3Config, RunConfig
from jina_jax.configs._sizes import Setting, sized

MACHINES = {
    "v5e:4x4": Setting(fsdp=4, grad_cache_rows=512, remat="full"),
    "h100:8": Setting(grad_cache_rows=1024),
}


def get_config(machine: str = "") -> RunConfig:
    """From the pretrained Qwen3 0.6B, which no contrastive training has seen."""
    start = "Qwen/Qwen3-0.6B-Base"
    run = sized(
        "qwen3_embedding", Qwen3Config(), MACHINES, machine,
        initial_weights=start, tokenizer=start, pooling="lasttoken",
    )  # fmt: skip
    return replace(
        run,
        loss=LossConfig(
            temperature=0.02, positive_weight=0.0, margin_weight=0.0, query_query_weight=1.0,
            positive_positive_weight=1.0, partition="joint", mask_by="model", mask_margin=0.1,
            gather=run.loss.gather,
        ),
        optim=OptimConfig(learning_rate=1e-5),
    )  # fmt: skip
