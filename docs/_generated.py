"""Pages that are made of the code: every field of a config, every verb. A hook of MkDocs."""

import ast
import contextlib
import dataclasses
import inspect
import io
import json
import os
import re
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

import jina_jax.config
from jina_jax.cli import main as cli
from jina_jax.config import Ablation, RunConfig, Suite

_SECTION = re.compile(r"\n (?!options|positional)\S.*\n -{20,}\n")
"""Where the help of a verb goes on with the fields of a section of a config."""


def on_files(files: Files, config: Any) -> Files:
    """Adds the generated pages to those that are written."""
    notebook = notebook_page(Path(config["docs_dir"]) / "python.ipynb")
    pages = {"config.md": config_page(), "verbs.md": verbs_page(), "python.md": notebook}
    for name, page in pages.items():
        files.append(File.generated(config, name, content=page))
    return files


def notebook_page(path: Path) -> str:
    """A notebook with what its cells show."""
    parts = []
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(source)
            continue
        parts.append(f"```python\n{source}\n```")
        for output in cell["outputs"]:
            text = output.get("text") or output["data"]["text/plain"]
            parts.append(f"```\n{''.join(text).rstrip()}\n```")
    parts.append(f"This page is the notebook [{path.name}]({path.name}).")
    return "\n\n".join(parts) + "\n"


def config_page() -> str:
    """Every field of every dataclass that a config file may use, with its type and default."""
    seen: list[type] = []
    for root in (RunConfig, Ablation, Suite):
        _collect(root, seen)
    parts = [
        "# Every field of a config",
        "A run is a `RunConfig`; the others are parts of it, or what an ablation or a suite of "
        "MTEB is made of. On the command line a field is named by its path: "
        "`--optim.learning-rate 3e-4`. Fields marked *changeable* may differ between a run and its "
        "resumption.",
        *map(_of_class, seen),
    ]
    return "\n\n".join(parts) + "\n"


def _collect(kind: type, seen: list[type]) -> None:
    if kind in seen:
        return
    seen.append(kind)
    module = sys.modules[kind.__module__]
    for field in dataclasses.fields(kind):  # type: ignore[arg-type]
        for name in re.findall(r"\w+", _type(field)):
            inner = getattr(module, name, getattr(jina_jax.config, name, None))
            # The bounds of fields are dataclasses too, of a library.
            is_ours = inspect.isclass(inner) and inner.__module__.startswith("jina_jax.")
            if is_ours and dataclasses.is_dataclass(inner):
                _collect(inner, seen)


def _type(field: dataclasses.Field[Any]) -> str:
    if isinstance(field.type, str):
        return field.type
    text = re.sub(r"<class '([\w.]+)'>", r"\1", str(field.type))
    if inspect.isclass(field.type) and not hasattr(field.type, "__args__"):
        text = field.type.__name__
    text = re.sub(r"\b(?:jina_jax|typing)\.(?:\w+\.)*", "", text)
    # Of a union of several classes, what tells them apart is of no use to a reader.
    return " | ".join(re.findall(r"\w+Config", text)) if "Discriminator" in text else text


def _of_class(kind: type) -> str:
    docs = _field_docs(kind)
    name = kind.__name__
    rows = ["| field | type | default | |", "|---|---|---|---|"]
    for field in dataclasses.fields(kind):  # type: ignore[arg-type]
        doc = docs.get(field.name, "")
        if field.metadata.get("changeable"):
            doc += " *Changeable.*"
        kind_text = _type(field).replace("|", "\\|")
        rows.append(f"| `{field.name}` | `{kind_text}` | {_default(field)} | {doc.strip()} |")
    return f"## {name}\n\n{inspect.getdoc(kind)}\n\n" + "\n".join(rows)


def _default(field: dataclasses.Field[Any]) -> str:
    if field.default is dataclasses.MISSING:
        return "required" if field.default_factory is dataclasses.MISSING else "(made)"
    if dataclasses.is_dataclass(field.default):
        name = type(field.default).__name__
        return f"[{name}](#{name.lower()})"
    return f"`{field.default!r}`"


def _field_docs(kind: type) -> dict[str, str]:
    """Field → the docstring that follows it in the source, of the class or one that it extends."""
    docs = {}
    for part in reversed(kind.__mro__[:-1]):
        body = ast.parse(inspect.getsource(part)).body[0].body  # type: ignore[attr-defined]
        for before, after in pairwise(body):
            if (
                isinstance(before, ast.AnnAssign)
                and isinstance(before.target, ast.Name)
                and isinstance(after, ast.Expr)
                and isinstance(after.value, ast.Constant)
            ):
                text = inspect.cleandoc(str(after.value.value))
                docs[before.target.id] = re.sub(r"\s+", " ", text).replace("|", "\\|")
    return docs


def verbs_page() -> str:
    """The help of the command line and of every verb."""
    parts = ["# Every verb", f"```\n{_help([])}\n```"]
    for verb in [*cli._CONFIG_VERBS, *cli._PLAIN_VERBS]:
        text = _help([verb, "--help"])
        # The fields of a config have a page of their own.
        shown, *sections = _SECTION.split(text, maxsplit=1)
        more = "\n\nAnd all [fields of a config](config.md)." if sections else ""
        parts.append(f"## {verb}\n\n```\n{shown.rstrip()}\n```{more}")
    return "\n\n".join(parts) + "\n"


def _help(args: list[str]) -> str:
    out = io.StringIO()
    os.environ["COLUMNS"] = "100"
    with contextlib.redirect_stdout(out), contextlib.suppress(SystemExit):
        cli.main(args)
    return re.sub(r" +$", "", out.getvalue(), flags=re.MULTILINE).strip()
