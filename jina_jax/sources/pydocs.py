"""Docstrings of the Python packages on this machine as (summary, explanation) pairs.

Real English text that needs no download. Files are parsed, never imported or executed.
"""

import ast
import contextlib
import re
import sysconfig
import warnings
from collections.abc import Iterator
from pathlib import Path

import xxhash

from jina_jax.errors import UserError
from jina_jax.sources.fields import is_unicode
from jina_jax.types import BadRecord, Origin, Pair

_MAX_FILE_BYTES = 1 << 20
"""Larger Python files are generated tables."""
_MIN_SUMMARY_WORDS = 3
_MIN_REST_WORDS = 8
_SKIPPED_FOLDERS = {"test", "tests", "_tests", "idle_test", "node_modules", "site-packages"}
_SKIPPED_FILE = re.compile(r"test_.*|.*_test|conftest")
_UNDERLINE = re.compile(r"\s*([-=~^#*])\1{2,}\s*")

_Documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def read_pydocs(packages: tuple[str, ...]) -> Iterator[Pair | BadRecord]:
    """Reads the docstrings of modules, classes, functions and methods.

    Args:
      packages: top-level packages to read, such as `numpy`; empty reads the standard library and
        all of site-packages.
    Returns: in sorted order of packages and files, a pair per docstring that has a summary of 3
      words or more and an explanation of 8 or more: the query is the summary, the positive the
      qualified name and the explanation. Origin.file is the module's name. A file that does not
      parse is a BadRecord. Tests are left out.
    Raises: UserError naming a package that is not installed.
    """
    for package, root in _wanted(packages):
        for module, path in _modules(package, root):
            yield from _read_module(module, path)


def _wanted(packages: tuple[str, ...]) -> list[tuple[str, Path]]:
    installed = _installed()
    for package in packages:
        if package not in installed:
            raise UserError(
                f"pydocs: no package {package!r} with Python files in "
                f"{' or '.join(str(f) for f in _folders())}; "
                f"give top-level names such as 'numpy', or none to read all"
            )
    return [(package, installed[package]) for package in sorted(packages or installed)]


def package_stamps(packages: tuple[str, ...]) -> list[tuple[str, int, str]]:
    """The packages that `read_pydocs` reads, in its order; takes its argument, raises its errors.

    Returns: name, bytes of its files, and a text that changes when a file does.
    """
    stamps = []
    for package, root in _wanted(packages):
        digest, size_bytes = xxhash.xxh3_128(), 0
        for module, path in _modules(package, root):
            with contextlib.suppress(OSError):  # A broken link is reported when it is read.
                stat = path.stat()
                size_bytes += stat.st_size
                digest.update(f"{module} {stat.st_size} {stat.st_mtime_ns}\n".encode())
        stamps.append((package, size_bytes, digest.hexdigest()))
    return stamps


def _folders() -> list[Path]:
    paths = sysconfig.get_paths()
    return [Path(p) for p in dict.fromkeys(paths[k] for k in ("stdlib", "purelib", "platlib"))]


def _installed() -> dict[str, Path]:
    """Top-level name → its file or folder; as on sys.path, the standard library comes first."""
    found: dict[str, Path] = {}
    for folder in _folders():
        for path in sorted(folder.iterdir()) if folder.is_dir() else ():
            is_module = path.suffix == ".py" or path.is_dir()
            name = path.stem if path.suffix == ".py" else path.name
            if is_module and name.isidentifier() and not _is_skipped(path):
                found.setdefault(name, path)
    return found


def _is_skipped(path: Path) -> bool:
    if path.suffix == ".py":
        return _SKIPPED_FILE.fullmatch(path.stem) is not None
    return path.name in _SKIPPED_FOLDERS


def _modules(package: str, root: Path) -> Iterator[tuple[str, Path]]:
    if root.is_file():
        yield package, root
        return
    for path in sorted(root.rglob("*.py")):
        inside = path.relative_to(root)
        if any(part in _SKIPPED_FOLDERS for part in inside.parts) or _is_skipped(path):
            continue
        parts = [package, *inside.parent.parts, *([] if path.stem == "__init__" else [path.stem])]
        yield ".".join(parts), path


def _read_module(module: str, path: Path) -> Iterator[Pair | BadRecord]:
    origin = Origin(module, 1)
    try:
        size_bytes = path.stat().st_size
        if size_bytes > _MAX_FILE_BYTES:
            yield BadRecord("too_large", f"{size_bytes:,} bytes in one file", origin)
            return
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Other people's invalid escapes are not our news.
            tree = ast.parse(path.read_bytes())
    except (OSError, SyntaxError, ValueError, RecursionError, MemoryError) as error:
        yield BadRecord("malformed_python", f"{type(error).__name__}: {error}", origin)
        return
    # `numpy.linalg._linalg.norm` is documented as `numpy.linalg.norm`.
    public = ".".join(part for part in module.split(".") if not part.startswith("_"))
    for name, node in _documented(tree, public or module):
        row = getattr(node, "lineno", 1)
        pair = docstring_pair(name, ast.get_docstring(node), Origin(module, row))
        if pair is not None:
            yield pair


def _documented(node: _Documented, name: str) -> Iterator[tuple[str, _Documented]]:
    """The node and what it defines, in the order of the file, but nothing local to a function."""
    yield name, node
    is_function = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    pending: list[ast.AST] = [] if is_function else list(reversed(node.body))
    while pending:
        child = pending.pop()
        if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield from _documented(child, f"{name}.{child.name}")
        elif isinstance(child, ast.If | ast.Try):
            pending.extend(reversed(child.body))


def docstring_pair(name: str, docstring: str | None, origin: Origin) -> Pair | None:
    """Splits a docstring into its summary and its explanation.

    Args:
      name: qualified name of what is documented.
      docstring: without common indentation, or None.
      origin: where it stands.
    Returns: the pair, or None when the docstring has too little of either.
    """
    summary, _, rest = (docstring or "").partition("\n\n")
    summary, rest = " ".join(summary.split()), _prose(rest)
    if len(summary.split()) < _MIN_SUMMARY_WORDS or len(rest.split()) < _MIN_REST_WORDS:
        return None
    if not (is_unicode(summary) and is_unicode(rest)):
        return None
    return Pair(summary, f"{name}: {rest}", origin)


def _prose(text: str) -> str:
    """Leaves out doctests, fenced code, directives and underlines, which are not language."""
    kept, in_doctest, in_fence = [], False, False
    for line in text.splitlines():
        stripped = line.strip()
        if stripped.startswith("```"):
            in_fence = not in_fence
            continue
        in_doctest = bool(stripped) and (in_doctest or stripped.startswith(">>>"))
        is_markup = stripped.startswith(".. ") or _UNDERLINE.fullmatch(line)
        if stripped and not (in_doctest or in_fence or is_markup):
            kept.append(stripped)
    return "\n".join(kept)
