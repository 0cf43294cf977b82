"""Sources of sentences, negations built from them, and what was written."""

import json

from jina_jax.config import DataConfig, NegationConfig, SourceConfig
from jina_jax.negation.build import build_negations
from tests.pairs import write


def sentences(folder, texts):
    path = write(folder / "sentences.jsonl", [{"text": text} for text in texts])
    return SourceConfig(
        "sentences", paths=(str(path),), query_field="text", positive_field="text", licence="CC0"
    )


def build(folder, source, config=None, out="out"):
    config = config or NegationConfig()
    data = DataConfig((source,))
    return build_negations(config, data, folder / out, progress=False).sources[0]


def lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def triple(row):
    return row["query"], row["positive"], row["negative"]
