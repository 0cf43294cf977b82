"""The `ablate` verb on the command line."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated

import tyro

from jina_jax.cli.arguments import parse
from jina_jax.config import Ablation, InjectionConfig, RunConfig, SourceConfig
from jina_jax.config.files import load_ablation


@dataclass(frozen=True)
class _Arguments:
    seeds: int
    """Trainings of each arm, with the seeds train.seed, train.seed + 1, ..."""
    injection: tyro.conf.AvoidSubcommands[InjectionConfig | None]
    held_out: tyro.conf.AvoidSubcommands[SourceConfig | None]
    base: Annotated[RunConfig, tyro.conf.arg(name="")]


def _arguments(ablation: Ablation) -> _Arguments:
    return _Arguments(ablation.seeds, ablation.injection, ablation.held_out, ablation.base)


def ablate(args: Sequence[str]) -> None:
    """Train the same model several times over, with a few fields changed in each arm, and compare.

    CONFIG is a Python file whose get_config() returns a jina_jax.config.Ablation: a base run
    and arms, each of which changes some of its fields. Every arm is prepared and trained, with each
    seed once, and measured on the same held-out pairs; the fields below are those of the base run,
    and change it in all arms. Within a seed all arms start from the same weights.

    Prints a row an arm: what each filter removed, and the mean and standard deviation of each
    measure. Writes ablation.json, ablation.png and ablation.svg in the work folder, with an
    ordinary run in ARM/seed-N. The same command again goes on from what is done; more seeds may be
    asked for later.

    An injection plants mismatched pairs and texts in other languages in a clean source; the
    precision and recall of the filters on what was planted are printed too.

    Shipped: ablation_filters (no filter, language, consistency, both), ablation_losses (the terms
    of the loss).

    example: jina-jax ablate ablation_filters --seeds 5 --workdir runs/filters
    """
    empty = Ablation(RunConfig(name="NAME"), ())
    given = parse(
        "ablate", ablate.__doc__ or "", args, _Arguments, _arguments, load_ablation, empty,
        example="ablation_filters",
    )  # fmt: skip
    arms = load_ablation(args[0])
    ablation = replace(
        arms,
        base=given.base,
        seeds=given.seeds,
        injection=given.injection,
        held_out=given.held_out,
    )
    # Heavy imports happen after the arguments are known to be good.
    from jina_jax.ablate.report import ablation_text
    from jina_jax.ablate.run import ablate as run_ablation

    print(ablation_text(run_ablation(ablation)))
    print(f"figures and plots: {ablation.base.run_path}")
