"""An ablation: one run, the arms that differ from it, and the noise that is planted in its source.

An ablation is a Python file with a `get_config()` that returns an `Ablation`; `jina-jax ablate`
takes it. Every arm is the base run with a few fields changed.
"""

import dataclasses
import difflib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from jina_jax.config.run import RunConfig, SourceConfig
from jina_jax.errors import UserError

_SET_BY_THE_ABLATION = ("name", "workdir", "data_dir", "train.seed")
"""What no arm may change: it tells the runs apart."""


@dataclass(frozen=True)
class Arm:
    """A variant of the base run."""

    name: str
    """Names its folder and its row of the table."""
    changes: Mapping[str, Any] = field(default_factory=dict)
    """Path of a field of RunConfig → its value in this arm: {"loss.margin_weight": 0.0}."""


@dataclass(frozen=True)
class InjectionConfig:
    """Noise planted in a clean source, so that what a filter finds of it can be counted.

    Clean pairs are those whose texts occur once in the source. The first of them, in a seeded
    order, are held out; the others become training pairs, of which a share has its passages
    exchanged with one another; texts in other languages are added.
    """

    clean: SourceConfig
    """A source of pairs."""
    foreign_paths: tuple[str, ...]
    """JSONL files or globs of texts in other languages; each is cut in two at its first full stop:
    the query and the passage."""
    foreign_field: str = "text"
    """Field that holds the text."""
    language_field: str = "lang"
    """Field that holds its language."""
    kept_languages: tuple[str, ...] = ("en",)
    """Texts of these languages are not planted."""
    mismatched_share: float = 0.30
    """Of all training pairs: those whose passage is another pair's."""
    foreign_share: float = 0.15
    """Of all training pairs: those in another language."""
    held_out: int = 1000
    """Clean pairs held out, on which every arm is evaluated."""
    pairs: int | None = None
    """Training pairs, planted ones included; None for as many as the sources have."""
    seed: int = 0
    """Of what is held out, exchanged and planted."""


@dataclass(frozen=True)
class Ablation:
    """Arms that are trained with several seeds, and evaluated on the same held-out pairs."""

    base: RunConfig
    """What the arms have in common; its name and workdir are the ablation's."""
    arms: tuple[Arm, ...]
    """The first is what the others are compared with."""
    seeds: int = 3
    """Trainings of each arm, with the seeds train.seed, train.seed + 1, ... In each, all arms start
    from the same weights."""
    held_out: SourceConfig | None = None
    """Pairs that all arms are evaluated on, where preparation holds out others in each arm: a
    source that no arm trains on. None takes what is injected's, or what preparation holds out."""
    injection: InjectionConfig | None = None
    """Makes the source of the base run and the held-out pairs; None leaves the source as it is."""


def arm_config(base: RunConfig, arm: Arm) -> RunConfig:
    """The base run with the changes of an arm.

    Raises: UserError naming a path that is no field, or a value of another type.
    """
    config = base
    for path, value in arm.changes.items():
        if path in _SET_BY_THE_ABLATION:
            raise UserError(f"arm {arm.name!r} changes {path}, which is set for each run")
        config = _changed(config, path, value, f"arm {arm.name!r}: {path}")
    return config


def _changed(config: Any, path: str, value: Any, where: str) -> Any:
    name, _, rest = path.partition(".")
    names = [f.name for f in dataclasses.fields(config)] if dataclasses.is_dataclass(config) else []
    if name not in names:
        close = difflib.get_close_matches(name, names, 1)
        hint = f"did you mean {close[0]!r}?" if close else f"there are {', '.join(names)}"
        raise UserError(f"{where} is no field: {hint}")
    before = getattr(config, name)
    if rest:
        value = _changed(before, rest, value, where)
    elif isinstance(before, float) and type(value) is int:
        value = float(value)
    elif before is not None and type(value) is not type(before):
        raise UserError(
            f"{where} is {type(value).__name__} {value!r}; {type(before).__name__} is wanted, "
            f"such as {before!r}"
        )
    return dataclasses.replace(config, **{name: value})


def ablation_problems(ablation: Ablation) -> Iterator[str]:
    """What is wrong with an ablation beside its runs, a sentence each."""
    names = [arm.name for arm in ablation.arms]
    if len(names) < 2:
        yield f"an ablation compares two arms or more; this has {len(names)}"
    for name in sorted({n for n in names if names.count(n) > 1}):
        yield f"two arms are named {name!r}: names must differ"
    for name in names:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", name):
            yield f"arm {name!r} may hold only ASCII letters, digits, '_', '-' and '.'"
    if ablation.seeds < 1:
        yield f"seeds={ablation.seeds} must be 1 or more"
    if ablation.base.run_url:
        yield f"workdir={ablation.base.workdir!r} is a URL: give a folder of this machine"
    if ablation.base.data_dir:
        yield "data_dir: an ablation prepares the data of its arms below its own workdir"
    if ablation.base.distributed.coordinator:
        yield "distributed.coordinator: the runs of an ablation are trained by one process"
    elsewhere = ablation.injection is not None or ablation.held_out is not None
    if elsewhere and ablation.base.data.eval_pairs:
        yield (
            f"data.eval_pairs={ablation.base.data.eval_pairs} must be 0: what the arms are "
            f"evaluated on is held out before preparation"
        )
    if ablation.injection is not None:
        yield from _injection_problems(ablation.injection)
        if ablation.held_out is not None:
            yield "held_out: an injection holds out pairs of its own; leave one of them out"
        if ablation.base.data.sources:
            yield "data.sources: an injection makes the source; leave them empty"


def _injection_problems(injection: InjectionConfig) -> Iterator[str]:
    if injection.clean.negative_field:
        yield f"injection.clean ({injection.clean.name}) is of triplets; pairs are wanted"
    if not injection.foreign_paths and injection.foreign_share:
        yield "injection.foreign_paths is empty: name files, or set injection.foreign_share to 0"
    shares = (injection.mismatched_share, injection.foreign_share)
    if min(shares) < 0 or sum(shares) >= 1:
        yield (
            f"injection.mismatched_share={shares[0]} and foreign_share={shares[1]} must not be "
            f"negative and leave clean pairs"
        )
    if injection.held_out < 2:
        yield f"injection.held_out={injection.held_out} must be 2 or more"
    if injection.pairs is not None and injection.pairs < 10:
        yield f"injection.pairs={injection.pairs} must be 10 or more"
