"""Writes a configuration as the Python file that gives it."""

import dataclasses
import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from jina_jax.config.run import RunConfig


def to_python(config: RunConfig, title: str, reasons: Mapping[str, str] = {}) -> str:
    """The text of a config file whose `get_config()` gives this configuration.

    Args:
      config: fields that have their defaults are left out.
      title: docstring of the file: a sentence.
      reasons: field, such as `optim.learning_rate` → a comment that stands before it.
    Returns: a line for each field.
    """
    names: set[str] = set()
    body = "\n".join(_lines(config, "", reasons, names, "    "))
    # A path in it may hold quotes and backslashes.
    docstring = json.dumps(title, ensure_ascii=False)[1:-1]
    imports = ",\n".join(f"    {name}" for name in sorted(names))
    return (
        f'"""{docstring}"""\n\nfrom jina_jax.config import (\n{imports},\n)\n\n\n'
        f"def get_config():\n    return {body.lstrip()}\n"
    )


def _lines(
    value: Any, path: str, reasons: Mapping[str, str], names: set[str], indent: str
) -> Iterator[str]:
    """A value as lines that begin with this indentation; its comments stand before its fields."""
    inner = indent + "    "
    if isinstance(value, tuple) and any(map(dataclasses.is_dataclass, value)):
        yield f"{indent}("
        for number, item in enumerate(value):
            yield from _closed(_lines(item, f"{path}.{number}", reasons, names, inner))
        yield f"{indent})"
    elif not dataclasses.is_dataclass(value):
        yield f"{indent}{_written(value)}"
    else:
        names.add(type(value).__name__)
        yield f"{indent}{type(value).__name__}("
        for field in dataclasses.fields(value):
            held = getattr(value, field.name)
            if held == field.default:
                continue
            name = f"{path}.{field.name}".lstrip(".")
            if name in reasons:
                yield f"{inner}# {reasons[name]}"
            first, *rest = _lines(held, name, reasons, names, inner)
            yield from _closed([f"{inner}{field.name}={first.lstrip()}", *rest])
        yield f"{indent})"


def _written(value: Any) -> str:
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, tuple):
        inner = ", ".join(map(_written, value))
        return f"({inner}{',' if len(value) == 1 else ''})"
    return repr(value)


def _closed(lines: Iterable[str]) -> Iterator[str]:
    *before, last = lines
    yield from before
    yield f"{last},"
