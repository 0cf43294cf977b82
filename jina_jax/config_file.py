"""Config files: finding and loading them, writing them down, telling two apart."""

import dataclasses
import importlib.util
import inspect
import json
from pathlib import Path
from typing import Any

from jina_jax.config import RunConfig
from jina_jax.errors import UserError


def config_names() -> list[str]:
    """Names of the configs that ship with the package."""
    spec = importlib.util.find_spec("jina_jax.configs")
    folders = spec.submodule_search_locations if spec else None
    return sorted(p.stem for d in folders or () for p in Path(d).glob("[a-z]*.py"))


def load_config(name_or_path: str) -> RunConfig:
    """Runs `get_config()` of a config file.

    Args:
      name_or_path: a Python file, or the name of a shipped config such as `demo`. What follows an
        `@` is given to `get_config(machine)`: `base@v5e:16x16`.
    Raises: UserError when there is no such file, it gives no RunConfig, or knows no such machine.
    """
    name_or_path, at, machine = name_or_path.partition("@")
    if name_or_path in config_names():
        module = importlib.import_module(f"jina_jax.configs.{name_or_path}")
    else:
        path = Path(name_or_path)
        if path.suffix != ".py" or not path.is_file():
            raise UserError(
                f"no config {name_or_path!r}: give a Python file with get_config(), "
                f"or one of: {', '.join(config_names())}"
            )
        spec = importlib.util.spec_from_file_location(path.stem, path)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        try:
            spec.loader.exec_module(module)
        except Exception as error:
            raise UserError(f"{path} failed to load: {type(error).__name__}: {error}") from error
    get_config = getattr(module, "get_config", lambda *_: None)
    if at and not inspect.signature(get_config).parameters:
        raise UserError(f"{name_or_path}: its get_config() takes no machine; leave out @{machine}")
    config = get_config(machine) if at else get_config()
    if not isinstance(config, RunConfig):
        raise UserError(f"{name_or_path}: get_config() must return a jina_jax.config.RunConfig")
    return config


def to_json(config: Any) -> str:
    """The dataclass as JSON text with sorted keys."""
    return json.dumps(dataclasses.asdict(config), indent=2, sort_keys=True, ensure_ascii=False)


def unchangeable_fields(config: Any, prefix: str = "") -> dict[str, Any]:
    """The fields of a dataclass that decide a result, as `section.field` → JSON value.

    Args:
      config: a dataclass that may hold others.
      prefix: of every path.
    """
    flat: dict[str, Any] = {}
    for f in dataclasses.fields(config):
        value = getattr(config, f.name)
        if dataclasses.is_dataclass(value):
            flat |= unchangeable_fields(value, f"{prefix}{f.name}.")
        elif not f.metadata.get("changeable"):
            # Through JSON, so that tuples compare equal to what a file gives back.
            flat[prefix + f.name] = json.loads(json.dumps(value, default=dataclasses.asdict))
    return flat


def difference(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """One line per field that differs: `optim.learning_rate: 0.001 → 0.01`."""
    missing = "(absent)"
    return [
        f"{key}: {before.get(key, missing)} → {now.get(key, missing)}"
        for key in sorted(before.keys() | now.keys())
        if before.get(key, missing) != now.get(key, missing)
    ]
