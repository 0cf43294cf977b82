"""The `merge` verb: several models of one shape in one, as a run."""

import dataclasses
import itertools
import json
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import jax
import numpy as np

from jina_jax.checkpoint.checkpoints import (
    Checkpoints,
    RunModel,
    is_run,
    load_checkpoint,
    read_run_model,
)
from jina_jax.checkpoint.merged import Merged, MergedPart
from jina_jax.config import LoraConfig, RunConfig
from jina_jax.config.files import difference, read_run
from jina_jax.errors import UserError
from jina_jax.export.from_folder import (
    check_is_new,
    copy_tokenizer,
    imported_config,
    run_name,
    write_run,
)
from jina_jax.inference.initial import parameter_shape
from jina_jax.inference.model_folder import (
    SentenceModel,
    find_folder,
    read_params,
    read_sentence_config,
)
from jina_jax.model.encoder import family_of, param_name
from jina_jax.model.interpolation import How, blend
from jina_jax.system.terminal import say
from jina_jax.text.tokenizer import load_tokenizer


class Source(NamedTuple):
    """A model to merge: the checkpoint of a run, or a folder."""

    name: str
    """As it was given."""
    folder: Path
    step: int | None
    """Of a run; None takes the one that the run is used with."""

    @property
    def is_run(self) -> bool:
        """Whether it is a run, and not the folder of a model."""
        return is_run(self.folder)

    def settings(self) -> RunModel | SentenceModel:
        """Shape, pooling and prompts."""
        if self.is_run:
            return read_run_model(self.folder)
        return read_sentence_config(self.folder)

    def write_tokenizer(self, out_dir: Path) -> None:
        """Puts the tokenizer into an existing folder."""
        folder = self.folder / "tokenizer" if self.is_run else self.folder
        copy_tokenizer(folder, out_dir, self.settings().config)

    def read(self) -> tuple[Any, int | None]:
        """The parameters in host memory, and the step that they are of."""
        if self.is_run:
            trained = load_checkpoint(self.folder, self.step)
            return trained.params, trained.step
        return read_params(self.folder, read_sentence_config(self.folder)), None

    def config(self, run_path: Path) -> RunConfig:
        """Of a run in which the merged model stands in this one's place."""
        if not self.is_run:
            return imported_config(self.name, run_path, read_sentence_config(self.folder))
        config, replace = read_run(self.folder), dataclasses.replace
        return replace(
            config,
            name=run_name(run_path),
            workdir=str(run_path.absolute()),
            data_dir=config.data_url or str(config.data_path),
            train=replace(config.train, ema_decay=0.0),
            lora=LoraConfig(),
            export=replace(config.export, output_dir="", push_to="", adapter=False),
            mine=replace(config.mine, output_dir=""),
            negation=replace(config.negation, output_dir=""),
        )


def merge(
    models: Sequence[str],
    run_path: Path,
    *,
    how: How = "mean",
    weights: Sequence[float] = (),
    last_steps: int | None = None,
) -> RunConfig:
    """Writes a run folder with a model that several of one shape are merged into.

    What is not a parameter (the longest text, prompts, data) is the first one's. Two models are
    held in memory at a time.

    Args:
      models: folders of runs (the checkpoint that each is used with), RUN@STEP for one of its
        steps, folders of models, or ids of the hub.
      run_path: folder to make; it appears whole or not at all.
      how: `mean` or `slerp`, as `model.interpolation.interpolate` has them.
      weights: of each model, above 0; equal ones by default. Only their proportions count.
      last_steps: merge so many of the newest steps of one run.
    Returns: the configuration of the run.
    Raises: UserError when the models differ in shape, pooling or tokenizer, naming the first
      difference; or one cannot be read, or `run_path` is there already.
    """
    check_is_new(run_path)
    sources = _newest(models, last_steps) if last_steps else [_source(name) for name in models]
    shares = _shares(sources, weights)
    _check_alike(sources)
    reader = _Reader()
    tensors = blend([reader.of(source) for source in sources], shares, how)
    merged = Merged(
        how,
        tuple(
            MergedPart(_named(source), step, share)
            for source, step, share in zip(sources, reader.steps, shares, strict=True)
        ),
    )
    config = sources[0].config(run_path)
    write_run(
        run_path, config, reader.as_params(tensors), sources[0].write_tokenizer,
        {"merged": dataclasses.asdict(merged)},
    )  # fmt: skip
    say(str(merged))
    return config


def _source(name: str) -> Source:
    before, at, step = name.rpartition("@")
    if at and is_run(Path(before).expanduser()) and not Path(name).exists():
        if not step.isdecimal():
            steps = Checkpoints(Path(before).expanduser() / "checkpoints").steps
            raise UserError(
                f"{name}: behind the @ stands the number of a step; {before} has "
                f"{', '.join(map(str, steps)) or 'none'}"
            )
        return Source(name, Path(before).expanduser(), int(step))
    path = Path(name).expanduser()
    return Source(name, path if is_run(path) else find_folder(name), None)


def _newest(models: Sequence[str], last_steps: int) -> list[Source]:
    """The newest steps of one run, the newest last."""
    path = Path(models[0]).expanduser() if len(models) == 1 else None
    if path is None or not is_run(path):
        raise UserError(
            f"--last-steps {last_steps} takes them of one run, not of {', '.join(models)}: name "
            f"single steps as RUN@STEP"
        )
    steps = Checkpoints(path / "checkpoints").steps
    if not 2 <= last_steps <= len(steps):
        raise UserError(
            f"--last-steps {last_steps} must lie in 2..{len(steps)}: {path} has the steps "
            f"{', '.join(map(str, steps)) or '(none)'}; train.keep_checkpoints keeps more of them"
        )
    return [Source(f"{models[0]}@{step}", path, step) for step in steps[-last_steps:]]


def _shares(sources: Sequence[Source], weights: Sequence[float]) -> list[float]:
    if len(sources) < 2:
        raise UserError(
            "merging takes two models or more, and a folder to make: "
            "jina-jax merge RUN RUN ... OUT; or --last-steps of one run"
        )
    given = list(weights) or [1.0] * len(sources)
    if len(given) != len(sources):
        raise UserError(
            f"--weights has {len(given)} numbers for {len(sources)} models; give one for each"
        )
    if not all(weight > 0 and math.isfinite(weight) for weight in given):
        raise UserError(
            f"--weights {' '.join(f'{w:g}' for w in given)}: each must be above 0 and finite; "
            f"leave a model out instead"
        )
    return [weight / math.fsum(given) for weight in given]


def _check_alike(sources: Sequence[Source]) -> None:
    """Raises: UserError naming the first thing that a model has otherwise than the first one."""
    first = sources[0]
    expected, prompts = _shape(first), first.settings().prompts
    tokenizer = _tokenizer(first)
    for other in sources[1:]:
        problems = difference(expected, _shape(other))
        if not problems and (differing := _tokenizer(other)) != tokenizer:
            problems = [f"tokenizer.{line}" for line in _differences(tokenizer, differing)]
        if problems:
            raise UserError(
                f"{other.name} cannot be merged with {first.name} ({first.name} → {other.name}):\n"
                f"  {problems[0]}"
                + (f"\n  and {len(problems) - 1} more" if len(problems) > 1 else "")
            )
        if other.settings().prompts != prompts:
            say(f"{other.name} has other prompts than {first.name}, whose are taken")


def _shape(source: Source) -> dict[str, Any]:
    settings = source.settings()
    of_pooling = {f"pooling.{name}": value for name, value in vars(settings.pooling).items()}
    family = {"family": family_of(settings.config).name}
    return family | parameter_shape(settings.config, settings.pooling) | of_pooling


def _tokenizer(source: Source) -> Any:
    """What a tokenizer is, as JSON, in the form that a run has it in."""
    with TemporaryDirectory() as folder:
        source.write_tokenizer(Path(folder))
        return json.loads(load_tokenizer(Path(folder)).to_str())


def _differences(one: Any, other: Any, path: str = "") -> Iterator[str]:
    """A line for each place in which two JSON values differ."""
    if isinstance(one, dict) and isinstance(other, dict):
        keys: Iterator[tuple[Any, Any, Any]] = (
            (key, one.get(key), other.get(key)) for key in dict.fromkeys([*one, *other])
        )
    elif isinstance(one, list) and isinstance(other, list):
        keys = ((i, *pair) for i, pair in enumerate(itertools.zip_longest(one, other)))
    else:
        if one != other:
            yield f"{path}: {one!r:.100} → {other!r:.100}"
        return
    for key, mine, theirs in keys:
        yield from _differences(mine, theirs, f"{path}.{key}" if path else str(key))


def _named(source: Source) -> str:
    """For the records of the run: an absolute path, or an id."""
    path = Path(source.name if source.step is None else source.name.rpartition("@")[0])
    return str(path.expanduser().absolute()) if path.expanduser().exists() else str(path)


class _Reader:
    """Reads parameters as tensors by name, and remembers the steps that they are of."""

    def __init__(self) -> None:
        self.steps: list[int | None] = []
        self._like: Any = None

    def of(self, source: Source) -> Callable[[], dict[str, np.ndarray]]:
        """Reads a source when it is called."""

        def read() -> dict[str, np.ndarray]:
            params, step = source.read()
            self.steps.append(step)
            self._like = jax.tree.structure(params) if self._like is None else self._like
            leaves = jax.tree_util.tree_leaves_with_path(params)
            return {param_name(path): np.asarray(leaf) for path, leaf in leaves}

        return read

    def as_params(self, tensors: dict[str, np.ndarray]) -> Any:
        """Parameters in the form that the first source has."""
        return jax.tree.unflatten(self._like, list(tensors.values()))
