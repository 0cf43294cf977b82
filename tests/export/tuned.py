"""Runs that start from the folder of a model."""

import json

from jina_jax.cli.main import main
from jina_jax.config.files import read_run
from tests.random_texts import texts

CONFIG = """
from jina_jax.config import *
def get_config():
    source = SourceConfig("pairs", "jsonl", paths=({pairs!r},), positive_prompt={prompt!r})
    return RunConfig(
        name="tuned", workdir={workdir!r}, model={model!r},
        data=DataConfig(sources=(source,), eval_pairs=20),
        feed=FeedConfig(
            global_batch_size=16, query_tokens={query}, positive_tokens={positive},
            row_tokens={positive}, rows_multiple=32,
        ),
        mesh=MeshConfig(data=1),
        optim=OptimConfig(learning_rate=4e-3, warmup_steps=2),
        train=TrainConfig(num_steps={steps}, log_every_steps=1),
    )
"""


def tune(base, folder, verbs, *, query, positive, steps, prompt=None, flags=()):
    """Trains a few steps on pairs of random texts.

    Args:
      base: folder to work in.
      folder: of the model.
      verbs: of the command line, in order.
      query: most tokens of one.
      positive: of the other texts.
      steps: of the training.
      prompt: before positives; None takes the model's.
      flags: of the command line, for every verb.
    """
    words = texts(240)
    pairs = [{"query": q, "positive": f"{p} {q}"} for q, p in zip(words, words[::-1])]
    (base / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    (base / "config.py").write_text(
        CONFIG.format(
            workdir=str(base / "run"), model=str(folder), pairs=str(base / "pairs.jsonl"),
            prompt=prompt, query=query, positive=positive, steps=steps,
        )
    )  # fmt: skip
    for verb in verbs:
        assert main([verb, str(base / "config.py"), *flags]) == 0
    return read_run(base / "run")
