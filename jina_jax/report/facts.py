"""What the folders of runs and ablations tell."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from jina_jax.ablate.report import ABLATION_FILE, AblationReport
from jina_jax.checkpoint.checkpoints import STARTS_FILE, is_run
from jina_jax.config import RunConfig
from jina_jax.config.files import RUN_FILE, local_folder, read_run
from jina_jax.errors import UserError
from jina_jax.evaluate.results import Results
from jina_jax.evaluate.run import RESULT_FILES
from jina_jax.mteb.published import COMPARISON_FILE, Comparison
from jina_jax.shards.manifest import MANIFEST_FILE, Manifest, load_manifest
from jina_jax.train.evaluation import EVALUATIONS_FILE
from jina_jax.train.metrics.writer import METRICS_FILE, read_metrics

T = TypeVar("T")


@dataclass(frozen=True)
class RunFacts:
    """One run; what it has not come to yet is empty or None."""

    config: RunConfig
    manifest: Manifest | None
    metrics: Sequence[dict[str, Any]]
    """Logged steps, as in `metrics.jsonl`."""
    evaluations: Sequence[dict[str, Any]]
    """During training: `step`, and KIND/TASK/MEASURE → value."""
    results: dict[str, Results]
    """Kind, as in `evaluate.run.RESULT_FILES` → what `evaluate` found."""
    starts: Sequence[dict[str, Any]]
    """When, at which step and on what training was started."""
    published: Comparison | None
    """Scores on MTEB beside published ones; None where `jina-jax mteb` has not measured it."""

    @property
    def name(self) -> str:
        """Of the run."""
        return self.config.name


def read_facts(run_path: Path) -> RunFacts:
    """Reads the folder of a run.

    Raises: UserError naming what is missing or damaged.
    """
    if not (run_path / RUN_FILE).is_file():
        raise UserError(
            f"{run_path} is no run folder ({RUN_FILE} is missing): give one that `jina-jax train` "
            f"has written, such as runs/NAME"
        )
    config = read_run(run_path)
    has_data = (config.data_path / MANIFEST_FILE).is_file()
    return RunFacts(
        config,
        load_manifest(config.data_path) if has_data else None,
        _lines(run_path / METRICS_FILE),
        _lines(run_path / EVALUATIONS_FILE),
        {
            kind: _typed(Results, run_path / name)
            for kind, name in RESULT_FILES.items()
            if (run_path / name).is_file()
        },
        _lines(run_path / STARTS_FILE),
        _typed(Comparison, path)
        if (path := run_path / "mteb" / COMPARISON_FILE).is_file()
        else None,
    )


def with_earlier_phases(run: RunFacts) -> list[RunFacts]:
    """The run and those whose parameters it started from, the first phase first."""
    phases, seen = [run], {run.config.run_path}
    while True:
        start = local_folder(phases[0].config.train.initial_weights).absolute()
        if not phases[0].config.train.initial_weights or start in seen or not is_run(start):
            return phases
        seen.add(start)
        phases.insert(0, read_facts(start))


def read_ablation(folder: Path) -> AblationReport:
    """Reads the figures of an ablation.

    Raises: UserError when the folder has none.
    """
    path = folder / ABLATION_FILE
    if not path.is_file():
        raise UserError(
            f"{folder} holds no ablation ({ABLATION_FILE}): run `jina-jax ablate` first"
        )
    return _typed(AblationReport, path)


def _lines(path: Path) -> list[dict[str, Any]]:
    try:
        return read_metrics(path)
    except (ValueError, OSError) as error:
        raise UserError(f"{path} is damaged: {error}") from error


def _typed(kind: type[T], path: Path) -> T:
    try:
        return TypeAdapter(kind).validate_json(path.read_bytes())
    except (ValidationError, OSError) as error:
        raise UserError(f"{path} is damaged: {error}; run the verb that writes it again") from error
