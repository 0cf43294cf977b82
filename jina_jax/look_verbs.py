"""Verbs of the command line that look ahead and inside: `jina-jax plan`, `inspect`."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from jina_jax.arguments import parse
from jina_jax.config import RunConfig
from jina_jax.errors import UserError
from jina_jax.validation import validate

# Heavy imports happen inside the verbs, so that --help and errors are quick.


def plan(args: Sequence[str]) -> None:
    """Tell whether a run fits a machine that isn't at hand, and how fast it can be at best.

    Compiles the real train step with the real TPU compiler for a slice such as v5e:16x16, on any
    machine with `pip install "jina-jax[tpu]"`: memory, FLOPs, collectives, and from published
    peaks the shortest step, pairs/s, time and cost. Where it doesn't fit, compiles settings that
    might, and names the first that does. Results are kept in ~/.cache/jina_jax.

    example: jina-jax plan my_config.py --topology v5e:16x16 --pairs 385e6 --price-per-chip-hour 1.2
    """
    from jina_jax.plan.report import report
    from jina_jax.plan.run import PlanOptions
    from jina_jax.plan.run import plan as compile_plans

    @dataclass(frozen=True)
    class Arguments:
        options: Annotated[PlanOptions, tyro.conf.arg(name="")]
        config: Annotated[RunConfig, tyro.conf.arg(name="")]

    given = parse(
        "plan", plan.__doc__ or "", args, Arguments, lambda c: Arguments(PlanOptions(), c)
    )
    validate(given.config)
    plans = compile_plans(given.config, given.options)
    print(report(plans, given.options))
    if not plans[-1].compiled.fits:
        raise UserError(f"{given.config.name} does not fit {plans[-1].topology}")


def inspect(
    folder: tyro.conf.Positional[Path],
    samples: int = 3,
    why: str = "",
    plot: Path | None = None,
) -> None:
    """Show what a prepared folder or a run holds.

    Args:
      folder: a prepared folder (manifest.json) or a run folder.
      samples: dropped records shown per reason.
      why: a query, positive or negative; tell instead what became of each record that has it.
      plot: a .png, .svg or .pdf; draw instead the scores of the filters of a prepared folder.
    """
    from jina_jax.terminal import fates
    from jina_jax.terminal import inspect as shown

    if plot is not None:
        from jina_jax.data.explain import score_histograms
        from jina_jax.data.manifest import load_manifest
        from jina_jax.histograms import plot_histograms

        plot_histograms(score_histograms(load_manifest(folder)), plot)
        print(f"scores of the filters: {plot}")
        return
    print(fates(folder, why) if why else shown(folder, samples))
