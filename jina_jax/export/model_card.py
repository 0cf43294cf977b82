"""The model card: `README.md` of an exported model, from facts of the run and nothing else."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass

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
    sections = (
        _front_matter(card),
        _introduction(card),
        _usage(card),
        _training(card),
        _scores(card),
        _limits(card),
    )
    return "\n\n".join(section for section in sections if section) + "\n"


def _front_matter(card: ModelCard) -> str:
    """What the hub reads, the scores as its `model-index`."""
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
    return f"---\n{data.to_yaml()}\n---"


def _introduction(card: ModelCard) -> str:
    return (
        f"# {card.name}\n\n"
        f"A T5 encoder with {card.parameters:,} parameters that maps a text of up to "
        f"{card.max_tokens} tokens to a unit vector of {card.dimensions} dimensions: the mean "
        "over its tokens, normalised. Compare vectors by cosine similarity. Trained with "
        "jina_jax after the method of Jina Embeddings "
        "([arXiv 2307.11224](https://arxiv.org/abs/2307.11224))." + _cut(card.loss.matryoshka_dims)
    )


def _cut(dims: Sequence[int]) -> str:
    if not dims:
        return ""
    *first, last = map(str, sorted(dims))
    sizes = f"{', '.join(first)} or {last}" if first else last
    return (
        f"\n\nThe loss was computed of the first {sizes} dimensions too (Matryoshka, "
        "[arXiv 2205.13147](https://arxiv.org/abs/2205.13147)): so many of them are an embedding, "
        f"`SentenceTransformer(..., truncate_dim={last})`; normalise again what is cut."
    )


def _usage(card: ModelCard) -> str:
    return f"""## Use

```python
from sentence_transformers import SentenceTransformer

model = SentenceTransformer({json.dumps(card.name)})  # or the path of this folder
embeddings = model.encode(["a query", "a passage"])
print(model.similarity(embeddings, embeddings))
```

With transformers alone, load it with `T5EncoderModel` (`AutoModel` would add a decoder with random
weights), take the mean over the tokens and normalise."""


def _training(card: ModelCard) -> str:
    start = f"`{card.initial_weights}`" if card.initial_weights else "random weights"
    records = "pairs or triplets" if card.has_triplets else "pairs"
    if not card.num_steps:
        return f"## Training\n\nImported from {start}, and not trained any further."
    text = (
        f"## Training\n\n{card.num_steps:,} steps from {start}, {card.global_batch_size:,} "
        f"{records} a batch: {_loss(card.loss, card.has_triplets)}."
    )
    if not card.sources:
        return text
    rows = [(_cell(s.name), f"{s.pairs:,}", _cell(s.licence)) for s in card.sources]
    rows.append(("total", f"{sum(s.pairs for s in card.sources):,}", ""))
    return f"{text}\n\n{_table(('source', 'pairs', 'licence'), rows)}"


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


def _scores(card: ModelCard) -> str:
    if not card.scores:
        return "## Scores\n\nNone were measured for this export."
    rows = [
        (_cell(s.task), _cell(s.dataset), _cell(s.metric), f"{s.value:.4f}") for s in card.scores
    ]
    return f"## Scores\n\n{_table(('task', 'data', 'metric', 'value'), rows)}"


def _limits(card: ModelCard) -> str:
    if not card.limits:
        return ""
    return "## Limits\n\n" + "\n".join(f"- {limit}" for limit in card.limits)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _table(header: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    lines = [header, tuple("---" for _ in header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
