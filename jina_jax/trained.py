"""The parameters of a run, for whoever goes on from them."""

import json
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax

from jina_jax.checkpoint import open_for_reading
from jina_jax.config import T5Config
from jina_jax.errors import UserError
from jina_jax.model.t5 import init_params

STARTS_FILE = "starts.jsonl"
"""Of the run folder: when, at which step and on what each start of its training was."""
BEST_FOLDER = "best"
"""Of the run folder: the parameters that evaluation during training found best."""


class Trained(NamedTuple):
    """What a run's checkpoint holds of the model."""

    params: Any
    config: T5Config
    max_tokens: int
    """Tokens of the longest text that training could see."""
    step: int


def is_run(folder: Path) -> bool:
    """Whether a folder is that of a run, and not of a model."""
    return (folder / "checkpoints").is_dir()


def load_checkpoint(run_path: Path) -> Trained:
    """Reads the parameters of a run, without the optimizer: of `best/` where evaluations during
    training chose one (evaluate.keep_best), else the newest.

    Raises: UserError when the folder is no run, or has no finished checkpoint.
    """
    config_path = run_path / "config.json"
    if not config_path.is_file():
        raise UserError(f"{run_path} holds no trained model: run `jina-jax train` first")
    run = json.loads(config_path.read_text(encoding="utf-8"))
    config = T5Config(**run["model"])
    max_tokens = max(run["feed"]["query_tokens"], run["feed"]["positive_tokens"])
    like = jax.eval_shape(partial(init_params, config), jax.random.key(0))
    place_at = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place_at), like)
    best = run_path / BEST_FOLDER
    with open_for_reading(best if best.is_dir() else run_path / "checkpoints") as checkpoints:
        step = checkpoints.latest
        assert step is not None
        return Trained(checkpoints.restore_params(step, like), config, max_tokens, step)
