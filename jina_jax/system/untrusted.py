"""Files that somebody else may have made: their names, links, sizes and content prove nothing.

A folder from elsewhere is read through here: a name in one of its files leads to a file of that
folder or to an error, and JSON is read within bounds, without keys that two readers would
understand differently.
"""

import functools
import json
import math
import stat
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

from jina_jax.errors import UserError

T = TypeVar("T")
MAX_JSON_BYTES = 16 << 20
"""The largest `tokenizer.json` that is in use with models read here has 10 MB."""
_MAX_NAME = 255
"""Bytes; file systems take no longer ones."""


def inner_path(folder: Path, name: str) -> Path:
    """The path of a file of a folder, by a name that stands in one of its files.

    A folder of the Hugging Face cache (`snapshots/REVISION`) consists of links to `blobs/`, beside
    `snapshots/`; these are followed.

    Args:
      folder: may itself be a link.
      name: relative, with '/'; what it names need not exist.
    Raises: UserError where the name or a link leads out of the folder.
    """
    parts = PurePosixPath(name)
    # What is printable can be encoded too.
    is_odd = not name or not name.isprintable() or "\\" in name or len(name.encode()) > _MAX_NAME
    if is_odd or parts.is_absolute() or ".." in parts.parts:
        raise UserError(
            f"{folder}: {name!r:.200} is no path within that folder; don't use it, or ask whoever "
            f"made it for one whose files lie inside"
        )
    path = folder / parts
    try:
        root, real = folder.resolve(), path.resolve()
    except (OSError, RuntimeError) as error:  # A circle of links; the kind depends on the version.
        raise UserError(f"{path} cannot be followed: {error}") from error
    if root.parent.name == "snapshots" and (root.parent.parent / "blobs").is_dir():
        root = root.parent.parent
    if not real.is_relative_to(root):
        raise UserError(
            f"{path} is a link that leads out of {folder}, to {real}; put the file itself there "
            f"if you trust it"
        )
    return path


def parse_json(text: str | bytes, *, finite: bool = True) -> Any:
    """A JSON value in which no object has a key twice.

    Args:
      text: of the whole value; bytes are UTF-8.
      finite: refuse NaN and infinite numbers, which JSON does not have but Python reads.
    Raises: ValueError.
    """
    if isinstance(text, bytes):
        text = text.decode("utf-8")
    constant, number = (_no_number, _finite) if finite else (None, None)
    try:
        return json.loads(
            text, object_pairs_hook=_unique, parse_constant=constant, parse_float=number
        )
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def read_json(
    path: Path,
    *,
    kind: type[dict] | type[list] = dict,
    max_bytes: int = MAX_JSON_BYTES,
    finite: bool = True,
) -> Any:
    """Reads a JSON file.

    Args:
      path: of a regular file.
      kind: what it must hold, `dict` or `list`.
      max_bytes: a larger file is refused unread.
      finite: as for `parse_json`.
    Raises: UserError when the file is missing, too large, damaged or holds something else.
    """
    try:
        value = parse_json(_read_bytes(path, max_bytes), finite=finite)
    except FileNotFoundError as error:
        raise UserError(f"{path.parent} holds no {path.name}") from error
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(value, kind):
        expected = "an object" if kind is dict else "an array"
        raise UserError(f"{path} holds {type(value).__name__}, expected {expected} of JSON")
    return value


def read_bounded(path: Path, max_bytes: int) -> bytes:
    """The content of a regular file.

    Raises: UserError when it is missing, no regular file, or larger than `max_bytes`.
    """
    try:
        return _read_bytes(path, max_bytes)
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {error}") from error


def _read_bytes(path: Path, max_bytes: int) -> bytes:
    # Before it is opened: opening a pipe waits for its other end.
    if not stat.S_ISREG(path.stat().st_mode):
        raise ValueError("it is no regular file")
    with path.open("rb") as file:
        content = file.read(max_bytes + 1)
    if len(content) > max_bytes:
        raise ValueError(f"it has more than {max_bytes:,} bytes")
    return content


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key {twice[:100]!r} is there twice")
    return value


def _no_number(constant: str) -> Any:
    raise ValueError(f"{constant} is no number of JSON")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text[:40]} is beyond the range of numbers")
    return value


def refuse_code(path: Path, values: dict[str, Any]) -> None:
    """Refuses a file of a model that asks for code of the model's own.

    None would be run here; but without it the model is another one than its author means.

    Args:
      path: named in the error.
      values: its content.
    Raises: UserError.
    """
    for inner in objects_within(values):
        for key in ("auto_map", "custom_pipelines", "trust_remote_code"):
            if found := inner.get(key):
                raise UserError(
                    f"{path} asks for Python code of the model's own ({key}: {found!r:.200}), "
                    f"which is never run here; use a model that transformers loads without "
                    f"trust_remote_code"
                )


def objects_within(value: Any) -> Iterator[dict[str, Any]]:
    """Every object of a JSON value, at any depth."""
    waiting = [value]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            yield value
            waiting += value.values()
        elif isinstance(value, list):
            waiting += value


def from_json(kind: type[T], value: Any, path: str = "") -> T:
    """A JSON value as the dataclass that it describes.

    Args:
      kind: whose fields, and those of dataclasses within it, must all be there and of their type.
      value: as `json.loads` gave it.
      path: of the value; begins the names of its fields.
    Raises: ValueError naming the first field that is wrong, or that the dataclass does not have.
    """
    result, problems = checked(kind, value, path)
    if problems:
        raise ValueError(problems[0])
    return result


def checked(kind: Any, value: Any, path: str = "") -> tuple[Any, list[str]]:
    """A JSON value as a dataclass, or one sentence for each field of a wrong type or out of bounds.

    Args:
      kind: the dataclass.
      value: a JSON value; tuples are arrays.
      path: of the value; begins the names of its fields.
    """
    from pydantic import ValidationError

    try:
        # JSON, in which a strict check takes an object for a dataclass and an array for a tuple.
        text = json.dumps(value, default=repr)
        return _adapter(kind).validate_json(text, strict=True, extra="forbid"), []
    except ValidationError as error:
        problems = []
        for found in error.errors(include_url=False):
            name = path + ".".join(_keys(found["loc"], value))
            if found["type"] in _OF_A_NAME:
                problems.append(f"{name} {_OF_A_NAME[found['type']]}")
                continue
            must = found["msg"].replace("Input should be", "must be").replace("Input", "it")
            problems.append(f"{name}={found['input']!r:.200} {must}".lstrip("= "))
        return None, problems


_OF_A_NAME = {
    "missing": "is missing",
    "unexpected_keyword_argument": "is a field that this version does not know",
}
"""What is wrong with a field, whatever its value, by pydantic's name of it."""


def _keys(location: tuple[str | int, ...], value: Any) -> Iterator[str]:
    """The keys of a place in a value, without the names of a union's members."""
    for number, part in enumerate(location, 1):
        try:
            value = value[part]
        except (KeyError, IndexError, TypeError):
            if number < len(location):
                continue
        yield str(part)


@functools.cache
def _adapter(kind: Any) -> Any:
    from pydantic import TypeAdapter

    return TypeAdapter(kind)
