"""The `export` verb: a run's newest checkpoint as a Hugging Face folder with its model card."""

import json
from pathlib import Path

import pyarrow.parquet as pq

from jina_jax.config import RunConfig
from jina_jax.data.manifest import Manifest, load_manifest
from jina_jax.export.huggingface import export_huggingface, verify_export
from jina_jax.export.model_card import CardScore, CardSource, ModelCard, render_card
from jina_jax.model.weights import parameter_count
from jina_jax.trained import Trained, load_checkpoint

_TEXTS_COMPARED = 64


def export(config: RunConfig) -> Path:
    """Writes the run's `export/` folder and compares it with the checkpoint.

    Returns: the folder.
    Raises: UserError when there is no checkpoint, or the folder holds something else.
    """
    manifest = load_manifest(config.data_path)
    trained = load_checkpoint(config.run_path)
    export_huggingface(
        trained.params, trained.config, config.run_path / "tokenizer", config.export_path,
        max_tokens=trained.max_tokens, card=render_card(_card(config, manifest, trained)),
    )  # fmt: skip
    texts = _some_texts(config, manifest)
    verify_export(config.export_path, trained.params, trained.config, texts)
    return config.export_path


def _card(config: RunConfig, manifest: Manifest, trained: Trained) -> ModelCard:
    path = config.run_path / "evaluation.json"
    results = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return ModelCard(
        name=config.name,
        licence="",
        language="",
        parameters=parameter_count(trained.config),
        dimensions=trained.config.d_model,
        max_tokens=trained.max_tokens,
        initial_weights=config.train.initial_weights,
        num_steps=trained.step,
        global_batch_size=config.feed.global_batch_size,
        loss=config.loss,
        has_triplets=any(s.record == "triplet" for s in manifest.sources),
        sources=tuple(CardSource(s.name, s.licence, s.train) for s in manifest.sources),
        scores=tuple(
            CardScore(f"{task} (held out)", measure, value)
            for task, systems in results.items()
            if task != "average"
            for measure, value in systems["trained"].items()
        ),
        limits=(),
    )


def _some_texts(config: RunConfig, manifest: Manifest) -> list[str]:
    """Held-out texts of every source, and what a tokenizer might treat in its own way."""
    texts = ["", "a  double space, ünïcode ﬁne\nand a new line"]
    for source in manifest.sources:
        if source.eval_path:
            rows = pq.read_table(config.data_path / source.eval_path).slice(0, _TEXTS_COMPARED)
            texts += rows["query"].to_pylist() + rows["positive"].to_pylist()
    return texts
