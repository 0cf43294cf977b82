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
    start = Path(config.train.initial_weights).expanduser()
    family = family_of(trained.config).name
    has_triplets = any(source.record == "triplet" for source in sources)
    return environment.get_template("model_card.md").render(
        config=config, trained=trained, sources=sources, scores=scores, has_triplets=has_triplets,
        front_matter=_front_matter(config, family, scores), name=json.dumps(config.name),
        parameters=parameter_count(trained.config, trained.pooling),
        loss=_loss(config.loss, has_triplets),
        dims=sorted(config.loss.matryoshka_dims), family=family, pooled=_pooled(trained.pooling),
        dimensions=trained.pooling.dimensions(trained.config), prompts=trained.prompts,
        # The path of a local folder stays private.
        initial_weights=start.name if start.exists() else config.train.initial_weights,
    ).strip() + "\n"  # fmt: skip


def _pooled(pooling: PoolingConfig) -> str:
    """In words."""
    words = _POOLED[pooling.mode]
    if pooling.skips_prompt:
        words += " but those of a prompt"
    if pooling.dense_dimensions:
        words += f", a Dense layer ({pooling.dense_activation})"
    return words + (", normalised" if pooling.normalize else "")


def _front_matter(config: RunConfig, family: str, scores: Sequence[EvalResult]) -> str:
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
        tags=["sentence-transformers", "feature-extraction", family.lower(), "jax"],
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
    }
    terms = [f"InfoNCE {way}{_times(weight)}" for way, weight in ways.items() if weight]
    if terms:
        terms[-1] += f", at temperature {loss.temperature:g}"
    if has_triplets and loss.margin_weight:
        terms.append(
            f"a margin of {loss.margin:g} in cosine over hard negatives{_times(loss.margin_weight)}"
        )
    return "; ".join(terms)


def _times(weight: float) -> str:
    return "" if weight == 1 else f" (times {weight:g})"
