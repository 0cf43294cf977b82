"""The parameters of a run, for whoever goes on from them."""

import dataclasses
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax

from jina_jax.checkpoint.checkpoints import open_for_reading
from jina_jax.config import FeedConfig, T5Config
from jina_jax.config.files import RUN_FILE, read_section
from jina_jax.errors import UserError
from jina_jax.model.layout import check_shape
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

    A damaged step is passed over with a word on standard error.

    Raises: UserError when the folder is no run, or has no undamaged checkpoint.
    """
    config_path = run_path / RUN_FILE
    if not config_path.is_file():
        raise UserError(f"{run_path} holds no trained model: run `jina-jax train` first")
    # Only these parts, so that a run of another version is read as long as they are the same.
    model = read_section(run_path, "model", T5Config)
    feed = read_section(run_path, "feed", FeedConfig)
    check_shape(dataclasses.asdict(model), config_path)
    config, max_tokens = model, max(feed.query_tokens, feed.positive_tokens)
    like = jax.eval_shape(partial(init_params, config), jax.random.key(0))
    place_at = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place_at), like)
    checkpoints, step = open_for_reading(run_path / BEST_FOLDER, run_path / "checkpoints")
    return Trained(checkpoints.restore_params(step, like), config, max_tokens, step)
