"""The recipe of EmbeddingGemma (arXiv 2509.20354), as far as another family's encoder can have it.

What the report gives: InfoNCE from queries with hard negatives that weigh exp(5 · their cosine)
more; a spread of queries and of passages over the sphere, by the second moment of their cosines;
the embeddings of a larger teacher, matched for queries, positives and hard negatives; Matryoshka at
512, 256 and 128 of 768 dimensions; several mixtures, whose ends are averaged (`jina-jax merge`).
What it does not give: weights of the terms, temperature, batch size, learning rate. Those here are
ours. What differs: its spread has no threshold of 1/dimensions; it learns the teacher's embeddings
in its own dimensions; its encoder is Gemma 3's, here it is BERT base.

    jina-jax run embeddinggemma --data.guide.model MY_TEACHER --data.guide.dims 768
"""

from dataclasses import replace

from jina_jax.config import GuideConfig, LossConfig, OptimConfig, RunConfig
from jina_jax.configs._sizes import bert_base


def get_config(machine: str = "") -> RunConfig:
    """From BERT base, with BGE base as the teacher."""
    run = bert_base("embeddinggemma", machine)
    return replace(
        run,
        data=replace(run.data, guide=GuideConfig("BAAI/bge-base-en-v1.5", dims=768)),
        loss=LossConfig(
            positive_weight=0.0, margin_weight=0.0, hard_negative_hardness=5.0, spread_weight=1.0,
            distill_embeddings_weight=1.0, matryoshka_dims=(512, 256, 128),
            gather=run.loss.gather,
        ),
        optim=OptimConfig(learning_rate=1e-4),
    )  # fmt: skip
