import json
from dataclasses import replace

import pyarrow.parquet as pq

from jina_jax.config import (
    DecontaminationConfig,
    EvaluationSet,
    LanguageConfig,
    SourceConfig,
    TokenizerConfig,
)
from jina_jax.prepare.run import prepare
from jina_jax.shards.manifest import LEDGER
from tests.prepared import tiny_config

GERMAN = "Ein Hund läuft über die grüne Wiese hinter dem alten Haus am See."
LEAK = "A man is playing the guitar on a stage."


def test_text_filters_run_where_they_are_configured(tmp_path):
    rows = [{"set": [f"question number {i} about dogs and cats", f"the answer is {i}"]}
            for i in range(40)]  # fmt: skip
    rows += [{"set": ["how does a dog run over a meadow?", GERMAN]}]
    rows += [{"set": ["what is seen there?", f"One sees this: {LEAK}"]}]
    file = tmp_path / "sets.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    (tmp_path / "dev.txt").write_text(LEAK + "\n")
    dev = EvaluationSet("dev", (str(tmp_path / "dev.txt"),), "text", ())
    base = tiny_config(str(tmp_path)).data
    config = replace(
        base,
        sources=(SourceConfig("sets", paths=(str(file),), extractor="embedding_texts"),),
        eval_pairs=2,
        tokenizer=TokenizerConfig("train", vocab_size=64),
        language=LanguageConfig(enabled=True),
        decontamination=DecontaminationConfig((dev,)),
    )
    prepare(config, tmp_path / "data", progress=False)
    ledger = pq.read_table(tmp_path / "data" / LEDGER).to_pylist()
    assert [(row["stage"], row["reason"], row["detail"]) for row in ledger] == [
        ("decontamination", "evaluation_ngram", "positive shares 9 words with dev"),
        ("language", "language", "positive is de"),
    ]
