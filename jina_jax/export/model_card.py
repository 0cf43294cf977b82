"""The model card: `README.md` of an exported model, from facts of the run and nothing else."""

import json
import re
from dataclasses import dataclass
from importlib import resources

import jinja2
from huggingface_hub import EvalResult, ModelCardData

from jina_jax.config import LossConfig


@dataclass(frozen=True)
class CardSource:
    """One source of training pairs or triplets."""

    name: str
    licence: str
    pairs: int
    """Pairs or triplets that training could draw from, after all filters."""
    hub_id: str = ""
    """Id of the data set on the Hugging Face hub, if it is there."""


@dataclass(frozen=True)
class CardScore:
    """One measured value."""

    task: str
    """Kind of task, as the hub names it, such as `retrieval`."""
    dataset: str
    metric: str
    """Such as `ndcg@10`."""
    value: float


@dataclass(frozen=True)
class ModelCard:
    """What the card says."""

    name: str
    licence: str
    """Identifier of the hub, such as `apache-2.0`; empty leaves it out."""
    language: str
    """ISO 639-1 code; empty leaves it out."""
    parameters: int
    dimensions: int
    max_tokens: int
    initial_weights: str
    """Folder or id that training started from; empty means random weights."""
    num_steps: int
    global_batch_size: int
    loss: LossConfig
    has_triplets: bool
    """Whether one of the sources is of triplets."""
    sources: tuple[CardSource, ...]
    scores: tuple[CardScore, ...]
    limits: tuple[str, ...]
    """One sentence each."""


def render_card(card: ModelCard) -> str:
    """The card as Markdown with YAML front matter.

    Args:
      card: every fact that is printed.
    Returns: text of `README.md`, ending in a newline.
    """
    template = resources.files("jina_jax.export").joinpath("model_card.md").read_text("utf-8")
    environment = jinja2.Environment(trim_blocks=True, lstrip_blocks=True, autoescape=False)  # noqa: S701  Markdown
    environment.filters["cell"] = lambda text: text.replace("|", "\\|").replace("\n", " ")
    return environment.from_string(template).render(
        card=card, front_matter=_front_matter(card), name=json.dumps(card.name),
        dims=sorted(card.loss.matryoshka_dims), loss=_loss(card.loss, card.has_triplets),
    ).strip() + "\n"  # fmt: skip


def _front_matter(card: ModelCard) -> str:
    """YAML that the hub reads, the scores as its `model-index`."""
    data = ModelCardData(
        model_name=card.name,
        license=card.licence or None,
        language=card.language or None,
        library_name="sentence-transformers",
        pipeline_tag="sentence-similarity",
        tags=["sentence-transformers", "feature-extraction", "t5", "jax"],
        datasets=sorted({source.hub_id for source in card.sources if source.hub_id}) or None,
        eval_results=[
            EvalResult(
                task_type=score.task,
                dataset_type=re.sub(r"[^a-z0-9]+", "-", score.dataset.lower()).strip("-"),
                dataset_name=score.dataset,
                metric_type=score.metric,
                metric_value=score.value,
            )
            for score in card.scores
        ]
        or None,
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
