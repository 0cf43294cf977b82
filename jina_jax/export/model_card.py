"""The model card: `README.md` of an exported model, from facts of the run and nothing else."""

import json
import re
from collections.abc import Sequence
from pathlib import Path

import jinja2
from huggingface_hub import EvalResult, ModelCardData

from jina_jax.checkpoint.checkpoints import Trained
from jina_jax.config import LossConfig, PoolingConfig, RunConfig
from jina_jax.model.encoder import family_of, parameter_count
from jina_jax.shards.manifest import SourceSummary

_POOLED = {
    "mean": "the mean over its tokens",
    "cls": "the hidden state of its first token",
    "lasttoken": "the hidden state of its last token",
}


def render_card(
    config: RunConfig,
    trained: Trained,
    sources: Sequence[SourceSummary],
    scores: Sequence[EvalResult],
) -> str:
    """The card as Markdown with YAML front matter.

    Args:
      config: of the run.
      trained: what is exported.
      sources: what it was trained on.
      scores: what was measured of it.
    Returns: text of `README.md`, ending in a newline.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("jina_jax.export", ""), trim_blocks=True, lstrip_blocks=True,
        autoescape=False,  # noqa: S701  Markdown
    )  # fmt: skip
    environment.filters["cell"] = lambda text: text.replace("|", "\\|").replace("\n", " ")
    environment.filters["public"] = _public
    family = family_of(trained.config).name
    has_triplets = any(source.record == "triplet" for source in sources)
    return environment.get_template("model_card.md").render(
        config=config, trained=trained, sources=sources, scores=scores, has_triplets=has_triplets,
        front_matter=_front_matter(config, trained, family, scores), name=json.dumps(config.name),
        parameters=parameter_count(trained.config, trained.pooling),
        loss=_loss(config.loss, has_triplets), adapters=_adapters(config, trained),
        dims=sorted(config.loss.matryoshka_dims), family=family, pooled=_pooled(trained.pooling),
        dimensions=trained.pooling.dimensions(trained.config), prompts=trained.prompts,
        initial_weights=_public(config.train.initial_weights),
    ).strip() + "\n"  # fmt: skip


def _public(model: str) -> str:
    """The name of a model; the path of a local folder stays private."""
    path = Path(model).expanduser()
    return path.name if path.is_absolute() or path.exists() else model


def _adapters(config: RunConfig, trained: Trained) -> str:
    """That adapters were trained, in words; empty where the whole model was."""
    if not trained.lora.rank:
        return ""
    beside = "; `adapter/` has them for PEFT" if config.export.adapter else ""
    return f" with adapters of rank {trained.lora.rank} (LoRA, merged here{beside})"


def _pooled(pooling: PoolingConfig) -> str:
    """In words."""
    words = _POOLED[pooling.mode]
    if pooling.skips_prompt:
        words += " but those of a prompt"
    if pooling.dense_dimensions:
        words += f", a Dense layer ({pooling.dense_activation})"
    return words + (", normalised" if pooling.normalize else "")


def _front_matter(
    config: RunConfig, trained: Trained, family: str, scores: Sequence[EvalResult]
) -> str:
    """YAML that the hub reads, the scores as its `model-index`."""
    start = config.train.initial_weights
    is_of_hub = re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", start) and not Path(start).exists()
    data = ModelCardData(
        base_model=start if is_of_hub else None,
        model_name=config.name,
        license=config.export.licence or None,
        language=config.export.language or None,
        library_name="sentence-transformers",
        pipeline_tag="sentence-similarity",
        tags=["sentence-transformers", "feature-extraction", family.lower(), "jax"]
        + (["merge"] if trained.merged else []),
        datasets=sorted({s.dataset for s in config.data.sources if s.kind == "hf"}) or None,
        eval_results=list(scores) or None,
    )
    return data.to_yaml()


def _loss(loss: LossConfig, has_triplets: bool) -> str:
    """The terms of the loss that count, in words."""
    hard = " and hard" if has_triplets else ""
    ways = {
        f"from queries to positives with in-batch{hard} negatives": loss.query_weight,
        "from positives to queries": loss.positive_weight,
        "among queries": loss.query_query_weight,
        "among positives": loss.positive_positive_weight,
    }
    terms = [f"InfoNCE {way}{_times(weight)}" for way, weight in ways.items() if weight]
    if terms:
        terms[-1] += f", at temperature {loss.temperature:g}"
        if loss.partition == "joint":
            terms[-1] += ", in one partition"
        if loss.mask_by != "none":
            by = "itself" if loss.mask_by == "model" else "a guide"
            terms[-1] += f", without negatives that {by} finds nearer than allowed"
        if loss.in_batch_hardness or loss.hard_negative_hardness:
            terms[-1] += ", harder negatives weighing more"
    if has_triplets and loss.margin_weight:
        terms.append(
            f"a margin of {loss.margin:g} in cosine over hard negatives{_times(loss.margin_weight)}"
        )
    others = {
        "a teacher's scores": loss.distill_weight,
        "a teacher's embeddings": loss.distill_embeddings_weight,
        "spread of the embeddings": loss.spread_weight + loss.spread_mean_weight,
    }
    terms += [f"{term}{_times(weight)}" for term, weight in others.items() if weight]
    terms += [f"the same of {precision} embeddings" for precision in loss.quantized]
    return "; ".join(terms)


def _times(weight: float) -> str:
    return "" if weight == 1 else f" (times {weight:g})"
