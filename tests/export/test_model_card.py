import dataclasses

import yaml
from huggingface_hub import ModelCard as HubCard

from jina_jax.config import LossConfig
from jina_jax.export.model_card import CardScore, CardSource, ModelCard, render_card

CARD = ModelCard(
    name="tiny",
    licence="apache-2.0",
    language="en",
    parameters=35330816,
    dimensions=512,
    max_tokens=128,
    initial_weights="",
    num_steps=1000,
    global_batch_size=64,
    loss=LossConfig(),
    has_triplets=False,
    sources=(
        CardSource("a|b", "CC0: public", 1200, hub_id="owner/name"),
        CardSource("docs", "various", 34),
    ),
    scores=(CardScore("retrieval", "docs (held out)", "ndcg@10", 0.51234),),
    limits=("English only.",),
)


def front_matter(text):
    return yaml.safe_load(text.split("---\n")[1])


def test_front_matter():
    assert front_matter(render_card(CARD)) == {
        "license": "apache-2.0",
        "language": "en",
        "library_name": "sentence-transformers",
        "pipeline_tag": "sentence-similarity",
        "tags": ["sentence-transformers", "feature-extraction", "t5", "jax"],
        "datasets": ["owner/name"],
        "model-index": [
            {
                "name": "tiny",
                "results": [
                    {
                        "task": {"type": "retrieval"},
                        "dataset": {"name": "docs (held out)", "type": "docs-held-out"},
                        "metrics": [{"type": "ndcg@10", "value": 0.51234}],
                    }
                ],
            }
        ],
    }


def test_the_hub_reads_the_scores():
    (score,) = HubCard(render_card(CARD)).data.eval_results
    assert (score.task_type, score.metric_value) == ("retrieval", 0.51234)


def test_facts_are_printed():
    text = render_card(CARD)
    for fact in (
        "35,330,816 parameters", "up to 128 tokens", "512 dimensions", "1,000 steps",
        "random weights", "64 pairs", "temperature 0.05", "| a\\|b | 1,200 | CC0: public |",
        "| total | 1,234 |", "| retrieval | docs (held out) | ndcg@10 | 0.5123 |",
        "- English only.",
    ):  # fmt: skip
        assert fact in text, fact


def test_the_terms_of_the_loss_are_named_as_they_are_weighted():
    pairs = dataclasses.replace(CARD, loss=LossConfig(query_weight=0.0, temperature=0.1))
    assert (
        "64 pairs a batch: InfoNCE from positives to queries, at temperature 0.1."
    ) in render_card(pairs)
    triplets = dataclasses.replace(CARD, has_triplets=True, loss=LossConfig(margin_weight=2.0))
    assert (
        "64 pairs or triplets a batch: InfoNCE from queries to positives with in-batch and hard "
        "negatives; InfoNCE from positives to queries, at temperature 0.05; a margin of 0.05 in "
        "cosine over hard negatives (times 2)."
    ) in render_card(triplets)
    only = LossConfig(query_weight=0.0, positive_weight=0.0, margin=0.1)
    text = render_card(dataclasses.replace(CARD, has_triplets=True, loss=only))
    assert "InfoNCE" not in text and "batch: a margin of 0.1 in cosine" in text


def test_matryoshka_sizes_are_named():
    cut = dataclasses.replace(CARD, loss=LossConfig(matryoshka_dims=(128, 64)))
    assert "first 64 or 128 dimensions" in render_card(cut)
    assert "truncate_dim" not in render_card(CARD)


def test_what_is_not_known_is_left_out_or_said():
    bare = dataclasses.replace(CARD, licence="", language="", sources=(), scores=(), limits=())
    text = render_card(bare)
    assert not {"license", "language", "datasets", "model-index"} & front_matter(text).keys()
    assert "None were measured" in text
    assert "Limits" not in text


def test_a_licence_cannot_break_the_front_matter():
    odd = dataclasses.replace(CARD, licence='x"\nlicense: y')
    assert front_matter(render_card(odd))["license"] == 'x"\nlicense: y'
