"""Sources for a guide, apart from its tests: a process that is killed imports no torch."""

import dataclasses

from jina_jax.config import GuideConfig, TokenizerConfig
from tests.pairs import config, number_name, write
from tests.random_texts import texts

PROMPTS = ("search: ", "found: ")


def rows():
    """Triplets, some without a negative, whose texts recur as other texts of other records."""
    words = [f"{text} {number_name(i)}" for i, text in enumerate(texts(70, seed=5, longest=12))]
    found = []
    for i in range(60):
        row = {"query": words[i], "positive": words[i + 5].upper(), "negative": words[i + 9]}
        if i % 4 == 0:
            row["negative"] = ""
        if i % 3 == 0:
            row["positive"] = f"the answer {i // 6}"
        found.append(row)
    return found


def guided(folder, model, **more):
    """Two sources; the second has pairs of which one text is a text of the first."""
    triplets = write(folder / "triplets.jsonl", rows())
    pairs = write(
        folder / "pairs.jsonl",
        [{"query": f"which {i}", "positive": f"the answer {i % 7}"} for i in range(60)],
    )
    guide = GuideConfig(str(model), *PROMPTS, **more)
    tokenizer = TokenizerConfig("train", 100)
    return dataclasses.replace(
        config(triplets, pairs, eval_pairs=0, records_per_shard=20),
        tokenizer=tokenizer,
        guide=guide,
    )
