from dataclasses import replace

import yaml
from huggingface_hub import EvalResult
from huggingface_hub import ModelCard as HubCard

from jina_jax.checkpoint.checkpoints import Trained
from jina_jax.config import (
    DataConfig,
    ExportConfig,
    FeedConfig,
    LoraConfig,
    LossConfig,
    PoolingConfig,
    PromptConfig,
    RunConfig,
    SourceConfig,
    T5Config,
)
from jina_jax.export.model_card import render_card
from jina_jax.shards.manifest import SourceSummary

CONFIG = RunConfig(
    name="tiny",
    data=DataConfig(
        (SourceConfig("a|b", "hf", dataset="owner/name"), SourceConfig("docs", "pydocs"))
    ),
    feed=FeedConfig(global_batch_size=64),
    export=ExportConfig("apache-2.0", "en", ("English only.",)),
)
TRAINED = Trained(None, T5Config(), PoolingConfig(), PromptConfig(), 128, 1000)
SCORE = EvalResult("retrieval", "docs-held-out", "docs (held out)", "ndcg@10", 0.51234)


def source(name, licence, train, record="pair"):
    rest = (None, None, None, (), None, False)
    return SourceSummary(name, licence, record, (), train, {}, {}, (), train, 0, *rest)


PAIRS = (source("a|b", "CC0: public", 1200), source("docs", "various", 34))
TRIPLETS = (source("docs", "various", 34, "triplet"),)


def card(config=CONFIG, sources=PAIRS, scores=(SCORE,), **changes):
    return render_card(replace(config, **changes), TRAINED, sources, scores)


def front_matter(text):
    return yaml.safe_load(text.split("---\n")[1])


def test_front_matter():
    assert front_matter(card()) == {
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
    (score,) = HubCard(card()).data.eval_results
    assert (score.task_type, score.metric_value) == ("retrieval", 0.51234)


def test_facts_are_printed():
    text = card()
    for fact in (
        "35,330,816 parameters", "up to 128 tokens", "512 dimensions", "1,000 steps",
        "random weights", "64 pairs", "temperature 0.05", "| a\\|b | 1,200 | CC0: public |",
        "| total | 1,234 |", "| retrieval | docs (held out) | ndcg@10 | 0.5123 |",
        "- English only.",
    ):  # fmt: skip
        assert fact in text, fact


def test_the_terms_of_the_loss_are_named_as_they_are_weighted():
    pairs = card(loss=LossConfig(query_weight=0.0, temperature=0.1))
    assert ("64 pairs a batch: InfoNCE from positives to queries, at temperature 0.1.") in pairs
    triplets = card(sources=TRIPLETS, loss=LossConfig(margin_weight=2.0))
    assert (
        "64 pairs or triplets a batch: InfoNCE from queries to positives with in-batch and hard "
        "negatives; InfoNCE from positives to queries, at temperature 0.05; a margin of 0.05 in "
        "cosine over hard negatives (times 2)."
    ) in triplets
    only = LossConfig(query_weight=0.0, positive_weight=0.0, margin=0.1)
    text = card(sources=TRIPLETS, loss=only)
    assert "InfoNCE" not in text and "batch: a margin of 0.1 in cosine" in text


def test_matryoshka_sizes_are_named():
    assert "first 64 or 128 dimensions" in card(loss=LossConfig(matryoshka_dims=(128, 64)))
    assert "truncate_dim" not in card()


def test_adapters_are_named_with_their_rank_and_place():
    assert "LoRA" not in card()
    trained = TRAINED._replace(lora=LoraConfig(8))
    text = render_card(CONFIG, trained, PAIRS, ())
    assert "steps from random weights with adapters of rank 8 (LoRA, merged here), 64 pairs" in text
    beside = render_card(replace(CONFIG, export=ExportConfig(adapter=True)), trained, PAIRS, ())
    assert "merged here; `adapter/` has them for PEFT)" in beside


def test_what_is_not_known_is_left_out_or_said():
    text = card(RunConfig(name="bare"), sources=(), scores=())
    assert not {"license", "language", "datasets", "model-index"} & front_matter(text).keys()
    assert "None were measured" in text
    assert "Limits" not in text


def test_a_licence_cannot_break_the_front_matter():
    odd = card(export=ExportConfig(licence='x"\nlicense: y'))
    assert front_matter(odd)["license"] == 'x"\nlicense: y'
