"""Verbs of the command line that look ahead and inside: `jina-jax plan`, `inspect`, `report` ..."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from jina_jax.cli.arguments import parse
from jina_jax.config import RunConfig
from jina_jax.config.files import each_phase, local_folder, to_json
from jina_jax.config.validation import validate
from jina_jax.errors import UserError
from jina_jax.system.mirror import mirrored, url_of

# Heavy imports happen inside the verbs, so that --help and errors are quick.


def plan(args: Sequence[str]) -> None:
    """Tell whether a run fits a machine that isn't at hand, and how fast it can be at best.

    Compiles the real train step with the real TPU compiler for a slice such as v5e:16x16, on any
    machine with `pip install "jina-jax[tpu]"`: memory, FLOPs, collectives, and from published
    peaks the shortest step, pairs/s, time and cost. Where it doesn't fit, compiles settings that
    might, and names the first that does. Results are kept in ~/.cache/jina_jax.

    example: jina-jax plan my_config.py --topology v5e:16x16 --pairs 385e6 --price-per-chip-hour 1.2
    """
    from jina_jax.plan.run import PlanOptions, report
    from jina_jax.plan.run import plan as compile_plans

    @dataclass(frozen=True)
    class Arguments:
        options: Annotated[PlanOptions, tyro.conf.arg(name="")]
        config: Annotated[RunConfig, tyro.conf.arg(name="")]

    for one in each_phase(args):
        given = parse(
            "plan", plan.__doc__ or "", one, Arguments, lambda c: Arguments(PlanOptions(), c)
        )
        validate(given.config)
        plans = compile_plans(given.config, given.options)
        print(report(plans, given.options))
        if not plans[-1].compiled.fits:
            raise UserError(f"{given.config.name} does not fit {plans[-1].topology}")


def inspect(
    folder: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="DIR")],
    samples: int = 3,
    why: str = "",
    plot: Path | None = None,
) -> None:
    """Show what a prepared folder or a run holds.

    example: jina-jax inspect runs/demo --why "read a file line by line"

    Args:
      folder: a prepared folder (manifest.json), or a run folder or its URL.
      samples: dropped records shown per reason.
      why: a query, positive or negative; tell instead what became of each record that has it.
      plot: a .png, .svg or .pdf; draw instead the scores of the filters of the prepared folder.
    """
    from jina_jax.cli.tables import fates, prepared_folder
    from jina_jax.cli.tables import inspect as shown

    path = local_folder(folder)
    if plot is not None:
        from jina_jax.prepare.explain import plot_histograms, score_histograms
        from jina_jax.shards.manifest import load_manifest

        plot_histograms(score_histograms(load_manifest(prepared_folder(path))), plot)
        print(f"scores of the filters: {plot}")
        return
    print(fates(prepared_folder(path), why) if why else shown(path, samples))


def report(
    runs: Annotated[list[str], tyro.conf.Positional, tyro.conf.arg(metavar="RUN ...")],
    ablations: list[Path] | None = None,
    output: Path | None = None,
) -> None:
    """Show a run on one page, from raw data to scores; or several runs side by side.

    The page has what was read and dropped and why, lengths, mixture, curves, speed and memory,
    evaluation, environment, configuration and manifest, of the phases before too. It needs nothing
    but a browser, in light or dark, wide or narrow. Its plots are also PNG and SVG files.

    example: jina-jax report runs/demo

    Args:
      runs: folders of runs, or their URLs; of one, the runs that it started from are shown before
        it.
      ablations: work folders of ablations to show too.
      output: folder to write into; report/ in the first run's folder by default.
    """
    from jina_jax.report.write import write_report

    if not runs and not ablations:
        raise UserError("give the folder of a run, such as runs/demo")
    folders = [local_folder(run) for run in runs]
    first = (folders or ablations or [Path()])[0]
    url = url_of(first) if output is None else ""
    with mirrored(url, first):
        page = write_report(folders, ablations or [], output or first / "report")
    print(f"report: {page}" + (f", and in {url}/report" if url else ""))


def show_config(config: RunConfig) -> None:
    """Print every field of a config with its value, as JSON.

    example: jina-jax show-config base@v5e:16x16
    """
    print(to_json(config))
