"""What the command line does, from Python: each takes a configuration and returns what it made.

import jina_jax

config = jina_jax.load_config("mine.py")
jina_jax.api.prepare(config)
jina_jax.api.train(config, on_step=lambda step, metrics: print(step, metrics["loss"]))
print(jina_jax.api.evaluate(config).retrieval["average"]["trained"]["ndcg@10"])
model = jina_jax.load(jina_jax.api.export(config))
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from jina_jax.config import RunConfig
from jina_jax.config.files import load_config
from jina_jax.config.validation import validate
from jina_jax.system.lazy import lazily
from jina_jax.system.mirror import mirrored
from jina_jax.system.terminal import say

# What one function needs is imported in it: a training has no use for plots and sources.

if TYPE_CHECKING:
    from jina_jax.checkpoint.state import TrainState
    from jina_jax.evaluate.run import Evaluation
    from jina_jax.export.merge import merge
    from jina_jax.inference.model import Model, load
    from jina_jax.mine.run import MineReport
    from jina_jax.plan.run import Plan, PlanOptions
    from jina_jax.shards.manifest import Manifest
    from jina_jax.train.evaluation import OnEvaluation
    from jina_jax.train.step_log import OnStep

_PLACES = {
    "Evaluation": "jina_jax.evaluate.run",
    "Manifest": "jina_jax.shards.manifest",
    "MineReport": "jina_jax.mine.run",
    "Model": "jina_jax.inference.model",
    "Plan": "jina_jax.plan.run",
    "PlanOptions": "jina_jax.plan.run",
    "TrainState": "jina_jax.checkpoint.state",
    "load": "jina_jax.inference.model",
    "merge": "jina_jax.export.merge",
}
"""As `lazily` takes them."""

__all__ = [
    "Evaluation", "Manifest", "MineReport", "Model", "Plan", "PlanOptions", "TrainState", "clean",
    "evaluate", "export", "load", "load_config", "merge", "mine", "plan", "prepare", "report",
    "train",
]  # fmt: skip

__getattr__ = lazily(__name__, _PLACES)


def prepare(config: RunConfig) -> "Manifest":
    """Reads the sources, drops what must not be trained on, and writes shuffled shards.

    What is there already with this configuration is kept; what was killed goes on, and what an
    earlier preparation did with the same settings is not done again.

    Returns: the manifest of what lies in `config.data_path`, or, where that is a URL, at
      `config.data_url`.
    Raises: UserError.
    """
    from jina_jax.prepare import run
    from jina_jax.prepare.first_look import records_needed

    config = _ready(config)
    needed = records_needed(config)
    for name in (name for name, records in needed.items() if not records):
        say(f"source {name!r} has weight 0 throughout: it is prepared, and never trained on")
    return run.prepare(config.data, config.data_path, url=config.data_url, needed=needed)


def clean(config: RunConfig) -> None:
    """Removes what preparations keep for the next (`data.engine.work_dir`); prepared data stay.

    Raises: UserError.
    """
    from jina_jax.prepare import run

    run.clean(config.data, config.data_path)


def train(
    config: RunConfig,
    *,
    on_step: "OnStep | None" = None,
    on_evaluation: "OnEvaluation | None" = None,
) -> "TrainState":
    """Trains on prepared shards, from the newest checkpoint if there is one.

    Args:
      config: of the run.
      on_step: called in the first process with each line of metrics.jsonl: the steps done, and
        `loss`, `gradient_norm`, `learning_rate` and the others by their names. What it raises ends
        the run, as Ctrl-C would not: the newest checkpoint stays.
      on_evaluation: called there with the scores of each evaluation during training
        (`evaluate.every_steps`), as KIND/TASK/MEASURE → value.
    Returns: the state after the last step, on the devices.
    Raises: UserError, RunFailed, Interrupted.
    """
    from jina_jax.devices.distributed import start
    from jina_jax.shards.remote import fetch_prepared
    from jina_jax.train import loop

    config = _ready(config)
    # Before the fetch, which takes one host longer than another.
    start(config.distributed, config.faults.heartbeat_s)
    fetch_prepared(config)
    return loop.train(config, on_step=on_step, on_evaluation=on_evaluation)


def evaluate(config: RunConfig) -> "Evaluation":
    """Measures retrieval, negation, semantic similarity and reranking of the trained model.

    Of several processes (`config.distributed`) all call it; they share the texts, and the first
    writes.

    Returns: kind → task → system (trained, untrained, bm25) → measure; also written into the run
      folder, where that may be.
    Raises: UserError.
    """
    from jina_jax.devices.distributed import is_first, wait_for_all
    from jina_jax.evaluate import run

    config = _ready(config)
    with _shared_run(config):
        found = run.evaluate(config)
        if is_first():
            run.keep_results(config.run_path, found)
        wait_for_all()
    return found


def export(config: RunConfig) -> Path:
    """Writes the trained model as a Hugging Face folder.

    Returns: the folder, which sentence-transformers and `load` open; of a run at a URL, this
      machine's copy of `export/` there.
    Raises: UserError.
    """
    from jina_jax.export import run
    from jina_jax.shards.remote import fetch_prepared

    config = _ready(config)
    if config.data.sources:  # which an imported model has not
        fetch_prepared(config)
    with mirrored(config.run_url, config.run_path):
        return run.export(config)


def mine(config: RunConfig) -> "MineReport":
    """Finds hard negatives for the training pairs, with the newest checkpoint.

    Of several processes (`config.distributed`) all call it, and see one folder for what is mined;
    they share the texts and the search.

    Returns: what was found and dropped of each source; the triplets lie in `config.mine_path`.
    Raises: UserError.
    """
    from jina_jax.devices.distributed import is_first
    from jina_jax.mine import run

    config = _ready(config)
    with _shared_run(config):
        return run.mine(config, progress=is_first())


def plan(config: RunConfig, options: "PlanOptions | None" = None) -> "list[Plan]":
    """Compiles the step for a TPU slice that isn't at hand: does it fit, how fast is it at best?

    Returns: the run as it is, and where it doesn't fit the changes that were tried; the last is the
      answer.
    Raises: UserError.
    """
    from jina_jax.plan import run

    return run.plan(_ready(config), options or run.PlanOptions())


def report(config: RunConfig) -> Path:
    """Writes a page on the run: data, curves, scores, settings.

    Returns: its path, in `report/` of the run folder, or of this machine's copy of it.
    Raises: UserError.
    """
    from jina_jax.report.write import write_report

    with mirrored(config.run_url, config.run_path):
        return write_report([config.run_path], [], config.run_path / "report")


@contextmanager
def _shared_run(config: RunConfig) -> Iterator[None]:
    """The data and the folder of a run, for all of its processes; the first writes."""
    from jina_jax.devices.distributed import is_first, joined, shared_problems
    from jina_jax.shards.remote import fetch_prepared

    with joined(config.distributed, config.faults.heartbeat_s):
        with shared_problems():
            fetch_prepared(config)
        with mirrored(config.run_url, config.run_path, writes=is_first()):
            yield


def _ready(config: RunConfig) -> RunConfig:
    from jina_jax.inference.initial import with_named_model

    config = with_named_model(config)
    validate(config)
    return config
