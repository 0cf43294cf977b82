"""Runs the Python files of users; what fails in one is told with its file and line."""

import dataclasses
import difflib
import importlib.util
import re
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType, ModuleType
from typing import Any

from jina_jax.errors import UserError


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
