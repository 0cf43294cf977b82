"""Config files: finding, running, reading and writing them, and telling two apart."""

import dataclasses
import difflib
import functools
import importlib.util
import inspect
import json
import re
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from types import FrameType, ModuleType
from typing import Any, TypeVar

from jina_jax.config.ablate import Ablation
from jina_jax.config.evaluate import Suite
from jina_jax.config.fields import field_problems, leaves
from jina_jax.config.model import T5Config
from jina_jax.config.run import RUNS_CACHE, DataConfig, DistributedConfig, RunConfig, cached_at
from jina_jax.config.source import kind_of_ending
from jina_jax.errors import UserError
from jina_jax.system.files import is_url
from jina_jax.system.mirror import open_mirror, url_of
from jina_jax.system.untrusted import from_json, read_json


def run_file(path: Path) -> ModuleType:
    """The module that a Python file holds.

    Raises: UserError naming file and line where it fails to load.
    """
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with _told(str(path)):
        spec.loader.exec_module(module)
    return module


def call(function: Callable[..., Any], *args: Any, file: str) -> Any:
    """What a function of a user's file returns.

    Args:
      function: such as its `get_config`.
      args: for it.
      file: that it lies in.
    Raises: UserError naming file and line where it fails; a UserError of ours passes as it is.
    """
    with _told(file):
        return function(*args)


@contextmanager
def _told(file: str) -> Iterator[None]:
    try:
        yield
    except UserError:
        raise
    except SyntaxError as error:
        text = f": {error.text.strip()}" if error.text else ""
        raise UserError(
            f"{error.filename or file}:{error.lineno}: failed to load: {type(error).__name__}: "
            f"{error.msg}{text}"
        ) from error
    except Exception as error:
        here = [
            (frame, line)
            for frame, line in traceback.walk_tb(error.__traceback__)
            if Path(frame.f_code.co_filename).absolute() == Path(file).absolute()
        ]
        frame, line = here[-1] if here else (None, 0)
        words = _unknown_field(error, frame) or f"failed to load: {type(error).__name__}: {error}"
        raise UserError(f"{file}{f':{line}' if line else ''}: {words}") from error


def _unknown_field(error: Exception, frame: FrameType | None) -> str:
    """Of a dataclass given a field that it hasn't: which, and the nearest; else empty."""
    pattern = r"(?:\w+\.)*(\w+)\.__init__\(\) got an unexpected keyword argument '(\w+)'"
    found = re.match(pattern, str(error)) if isinstance(error, TypeError) else None
    if found is None:
        return ""
    name, field = found.groups()
    ours = [vars(m) for n, m in list(sys.modules.items()) if n.startswith("jina_jax.")]
    kinds = (space.get(name) for space in [frame.f_globals if frame else {}, *ours])
    kind = next((k for k in kinds if dataclasses.is_dataclass(k)), None)
    if kind is None:
        return ""
    fields = [f.name for f in dataclasses.fields(kind)]
    close = difflib.get_close_matches(field, fields, 1)
    hint = f"did you mean {close[0]!r}?" if close else f"its fields are {', '.join(fields)}"
    return f"{name} has no field {field!r}; {hint}"


_T = TypeVar("_T")
RUN_FILE = "config.json"
"""Of a run folder: its configuration."""


def config_names() -> list[str]:
    """Names of the configs that ship with the package."""
    return _shipped("jina_jax.configs")


def _shipped(package: str) -> list[str]:
    spec = importlib.util.find_spec(package)
    folders = spec.submodule_search_locations if spec else None
    return sorted(p.stem for d in folders or () for p in Path(d).glob("[a-z]*.py"))


def _module(name_or_path: str, package: str, what: str, instead: str) -> ModuleType:
    """A module that ships in a package, or a user's Python file.

    Raises: UserError naming `instead`, what else could be given, where it is neither.
    """
    shipped, path = _shipped(package), Path(name_or_path)
    if name_or_path in shipped:
        return importlib.import_module(f"{package}.{name_or_path}")
    if path.suffix != ".py" or not path.is_file():
        raise UserError(
            f"no {what} {name_or_path!r}: give {instead}, or one of: {', '.join(shipped)}"
        )
    return run_file(path)


def load_config(name: str) -> RunConfig:
    """Loads the config of one run.

    Args:
      name: CONFIG[:PHASE][@MACHINE]. CONFIG is a Python file, or the name of a shipped config such
        as `demo`; PHASE is one of several; MACHINE is given to its `get_config(machine)`, as in
        `base@v5e:16x16`.
    Raises: UserError when there is no such file or phase, or the name leaves the phase open.
    """
    file, phase = _split(name)
    phases = load_phases(file)
    names = [config.name for config in phases]
    if phase in names:
        return phases[names.index(phase)]
    if phase is None and len(phases) == 1:
        return phases[0]
    of = f"no phase {phase!r}" if phase else "several phases"
    raise UserError(f"{file} has {of}; choose {' or '.join(_of_phase(file, n) for n in names)}")


def each_phase(args: Sequence[str]) -> list[list[str]]:
    """The arguments of a verb, once for each phase of the config that they begin with.

    Raises: UserError where it has several and other arguments follow: they are one phase's.
    """
    if not args or args[0].startswith("-"):
        return [list(args)]
    file, phase = _split(args[0])
    phases = load_phases(file)
    if phase is not None or len(phases) == 1:
        return [list(args)]
    names = [_of_phase(file, config.name) for config in phases]
    if {"-h", "--help"}.intersection(args):
        names = names[:1]
    elif len(args) > 1:
        raise UserError(
            f"{file} has several phases; say which one the other arguments are for: "
            f"{' or '.join(names)}"
        )
    return [[name, *args[1:]] for name in names]


def _split(name: str) -> tuple[str, str | None]:
    if is_url(name):
        return name, None
    before, at, machine = name.partition("@")
    file, colon, phase = before.rpartition(":")
    return (f"{file}{at}{machine}", phase) if colon else (name, None)


def _of_phase(file: str, phase: str) -> str:
    before, at, machine = file.partition("@")
    return f"{before}:{phase}{at}{machine}"


def load_phases(name_or_path: str) -> tuple[RunConfig, ...]:
    """Runs `get_config()` of a config file.

    It gives a RunConfig or several, which are trained one after another: a phase that names no
    initial weights starts from the parameters that the one before it ends with.

    Args:
      name_or_path: a Python file or the name of a shipped config, with or without @MACHINE; or
        the folder of a run, or its URL.
    Raises: UserError when there is no such file, it gives something else, or knows no such
      machine.
    """
    given = _given(name_or_path)
    if isinstance(given, Ablation):
        raise UserError(
            f"{name_or_path} holds an ablation, not a run: jina-jax ablate {name_or_path}"
        )
    phases = given if isinstance(given, tuple) else (given,)
    if not phases or not all(isinstance(config, RunConfig) for config in phases):
        raise UserError(
            f"{name_or_path}: get_config() must return a jina_jax.config.RunConfig, or a tuple of "
            f"them for phases"
        )
    for config in phases:
        # A model that is named is read later, where folders are known.
        is_named = isinstance(config.model, str)
        shaped = dataclasses.replace(config, model=T5Config()) if is_named else config
        if problems := field_problems(shaped):
            raise UserError(f"{name_or_path} cannot be used:\n  " + "\n  ".join(problems))
    return _chained(name_or_path, phases)


def load_ablation(name_or_path: str) -> Ablation:
    """Runs `get_config()` of a config file that gives an Ablation.

    Args:
      name_or_path: as for `load_phases`.
    Raises: UserError when there is no such file, or it gives something else.
    """
    given = _given(name_or_path)
    if isinstance(given, Ablation):
        return given
    runs = given if isinstance(given, tuple) else (given,)
    if runs and all(isinstance(config, RunConfig) for config in runs):
        raise UserError(
            f"{name_or_path} holds a run, not an ablation: jina-jax prepare {name_or_path}, then "
            f"train. An ablation's get_config() returns a jina_jax.config.Ablation"
        )
    raise UserError(f"{name_or_path}: get_config() must return a jina_jax.config.Ablation")


_NO_MORE = ("data.consistency.keep_embeddings",)
"""Fields of earlier versions, on which no result depended."""


def _take_out(values: Any, field: str) -> None:
    """Takes a field such as `a.b` out of JSON values, where it is."""
    *parts, last = field.split(".")
    for part in parts:
        values = values.get(part) if isinstance(values, dict) else None
    if isinstance(values, dict):
        values.pop(last, None)


def read_run(run_path: Path) -> RunConfig:
    """The configuration that lies in a run folder, with that folder, or the URL that it is a mirror
    of, as its workdir, and for one process, however many trained it: several are given anew.

    Raises: UserError naming the field that is wrong, or that this version doesn't know.
    """
    path = run_path / RUN_FILE
    values = read_json(path, finite=False)
    for field in _NO_MORE:
        _take_out(values, field)
    config = _typed(RunConfig, values, path, "")
    config = dataclasses.replace(config, distributed=DistributedConfig())
    if not (url := url_of(run_path)):
        return dataclasses.replace(config, workdir=str(run_path.absolute()))
    config = dataclasses.replace(config, workdir=url, cache_dir="")
    if config.run_path == run_path.absolute():
        return config
    return dataclasses.replace(config, cache_dir=str(run_path.absolute().parent))


@functools.cache
def local_folder(place: str) -> Path:
    """A folder of a run or a model, as one of this machine.

    Args:
      place: its path; or its URL, whose small files are brought once by a process (checkpoints
        come when they are read).
    Raises: UserError where it is at no object store; else as `files.again`.
    """
    if not is_url(place):
        return Path(place).expanduser()
    if place.startswith(("http://", "https://")):
        raise UserError(
            "a run or a model is read from a folder, from s3:// or from gs://, not from an address "
            "of the web: download it, and give its folder"
        )
    folder = cached_at(place.rstrip("/"), RUNS_CACHE)
    open_mirror(place, folder)
    return folder


def read_section(run_path: Path, name: str, kind: Any, default: Any = None) -> Any:
    """A section of the configuration that lies in a run folder, whatever the others hold.

    Args:
      run_path: the folder.
      name: of the section; `a.b` is one within another.
      kind: its dataclass, or a union of several.
      default: of a section that earlier versions did not write.
    Raises: UserError naming the field that is wrong, or that this version doesn't know.
    """
    path = run_path / RUN_FILE
    values: Any = read_json(path, finite=False)
    for part in name.split("."):
        if not isinstance(values, dict) or part not in values:
            if default is not None:
                return default
            raise UserError(f"{path} has no section {name!r}: it is no configuration of a run")
        values = values[part]
    return _typed(kind, values, path, f"{name}.")


def _typed(kind: type[_T], values: Any, path: Path, prefix: str) -> _T:
    try:
        return from_json(kind, values, prefix)
    except ValueError as error:
        raise UserError(
            f"{path}: {error}; mend it, or use the version of jina-jax that wrote it"
        ) from error


def load_suite(name_or_path: str) -> Suite:
    """Runs `get_suite()` of a shipped suite or a Python file.

    Raises: UserError when there is no such suite, or it gives something else.
    """
    instead = "a Python file with get_suite()"
    module = _module(name_or_path, "jina_jax.configs.suites", "suite", instead)
    suite = call(getattr(module, "get_suite", lambda: None), file=module.__file__ or name_or_path)
    if not isinstance(suite, Suite):
        raise UserError(f"{name_or_path}: get_suite() must return a jina_jax.config.Suite")
    return suite


def _given(name_or_path: str) -> Any:
    """What `get_config()` of a config returns, or what lies in a run folder."""
    folder = local_folder(name_or_path)
    if (folder / RUN_FILE).is_file():
        return read_run(folder)
    if is_url(name_or_path):
        raise UserError(f"{name_or_path} is no run folder: it has no {RUN_FILE}")
    name_or_path, at, machine = name_or_path.partition("@")
    instead = f"a Python file with get_config(), a run folder (with {RUN_FILE})"
    module = _module(name_or_path, "jina_jax.configs", "config", instead)
    get_config = getattr(module, "get_config", lambda *_: None)
    if at and not inspect.signature(get_config).parameters:
        raise UserError(f"{name_or_path}: its get_config() takes no machine; leave out @{machine}")
    return call(get_config, *([machine] if at else []), file=module.__file__ or name_or_path)


def _chained(file: str, phases: tuple[RunConfig, ...]) -> tuple[RunConfig, ...]:
    for what in ("name", "run_path"):
        values = [getattr(config, what) for config in phases]
        if len(set(values)) < len(values):
            raise UserError(f"{file}: each phase needs a {what.removesuffix('_path')} of its own")
    chained = [phases[0]]
    for before, config in pairwise(phases):
        start = config.train.initial_weights or before.workdir or f"runs/{before.name}"
        train = dataclasses.replace(config.train, initial_weights=start)
        chained.append(dataclasses.replace(config, train=train))
    return tuple(chained)


def reads_from(data: DataConfig, folder: Path) -> bool:
    """Whether a source of these has a path below a folder."""
    paths = (Path(path).absolute() for source in data.sources for path in source.paths)
    return any(path.is_relative_to(folder) for path in paths)


def to_json(config: Any) -> str:
    """The dataclass as JSON text with sorted keys."""
    return json.dumps(dataclasses.asdict(config), indent=2, sort_keys=True, ensure_ascii=False)


def unchangeable_fields(config: Any) -> dict[str, Any]:
    """The fields of a dataclass that decide a result, as `section.field` → JSON value.

    A format that is left to the endings of files stands as they name it.
    """
    # Through JSON, so that tuples compare equal to what a file gives back.
    return {
        path: json.loads(json.dumps(value, default=_as_read))
        for path, field, value in leaves(config)
        if not field.metadata.get("changeable")
    }


def _as_read(part: Any) -> dict[str, Any]:
    values = dataclasses.asdict(part)
    if values.get("kind") == "auto":
        kinds = {kind_of_ending(path) for path in values.get("paths", ())}
        values["kind"] = (len(kinds) == 1 and kinds.pop()) or "auto"
    return values


def changed_since(
    saved: dict[str, Any], now: dict[str, Any], defaults: dict[str, Any]
) -> list[str]:
    """What was saved → what is configured, a line for each field that differs.

    Args:
      saved: fields as an earlier version may have saved them, as JSON values.
      now: the same of a configuration of today.
      defaults: the same where nothing is set: of a field that `now` has and `saved` has not, the
        default is what that version did.
    """
    before, today, usual = (_flat(values) for values in (saved, now, defaults))
    # Decided before any is taken out: one field's answer looks at others.
    both = before.keys() & today.keys()
    left_open = [n for n in both if any(_is_left_open(n, flat) for flat in (before, today))]
    # Left open today alone: where it was before, as many were taken as there were.
    left_open += [n for n in both if n.endswith("negatives_per_record") and today[n] is None]
    for name in left_open:
        del before[name], today[name]
    return difference({k: v for k, v in usual.items() if k in today} | before, today)


def _is_left_open(name: str, flat: dict[str, Any]) -> bool:
    """Whether a field has no value of its own because the data have it: what was prepared holds."""
    stem, _, field = name.rpartition(".")
    named = [flat.get(f"{stem}.{text}_field") for text in ("query", "positive")]
    if field in ("query_field", "positive_field"):
        return flat[name] == ""
    return field in ("negative_field", "extractor") and flat[name] == "" and named == ["", ""]


def _flat(values: Any, prefix: str = "") -> dict[str, Any]:
    """`{"a": [{"b": 1}]}` as `{"a.0.b": 1}`."""
    has_parts = isinstance(values, dict | list) and values
    if not has_parts or (isinstance(values, list) and not isinstance(values[0], dict)):
        return {prefix: values}
    items = values.items() if isinstance(values, dict) else enumerate(values)
    return {
        path: leaf
        for key, value in items
        for path, leaf in _flat(value, f"{prefix}.{key}" if prefix else str(key)).items()
    }


def difference(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """One line per field that differs: `optim.learning_rate: 0.001 → 0.01`."""
    missing = "(absent)"
    return [
        f"{key}: {before.get(key, missing)} → {now.get(key, missing)}"
        for key in sorted(before.keys() | now.keys())
        if before.get(key, missing) != now.get(key, missing)
    ]
