"""Runs the cells of a notebook, as Jupyter does, and keeps what they show.

    python -m tests.docs.notebook docs/python.ipynb

runs it in an empty folder and writes what its cells show into it.
"""

import ast
import contextlib
import io
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any


def run(notebook: dict[str, Any], folder: Path) -> list[dict[str, Any]]:
    """The cells of code, with their outputs; each runs in `folder` after the ones before."""
    space: dict[str, Any] = {"__name__": "__main__"}
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    before = Path.cwd()
    os.chdir(folder)
    try:
        return [_run(cell, number, space) for number, cell in enumerate(cells, 1)]
    finally:
        os.chdir(before)


def _run(cell: dict[str, Any], number: int, space: dict[str, Any]) -> dict[str, Any]:
    body = ast.parse("".join(cell["source"])).body
    last = body.pop() if isinstance(body[-1], ast.Expr) else None
    printed, outputs = io.StringIO(), []
    with contextlib.redirect_stdout(printed):
        exec(compile(ast.Module(body, []), f"cell {number}", "exec"), space)
        value = last and eval(  # noqa: S307
            compile(ast.Expression(last.value), f"cell {number}", "eval"), space
        )
    if printed.getvalue():
        outputs.append({"name": "stdout", "output_type": "stream", "text": printed.getvalue()})
    if value is not None:
        outputs.append({
            "data": {"text/plain": repr(value)}, "execution_count": number, "metadata": {},
            "output_type": "execute_result",
        })  # fmt: skip
    return cell | {"execution_count": number, "outputs": outputs}


def main(path: Path) -> None:
    """Runs a notebook and writes it with what its cells show."""
    notebook = json.loads(path.read_text(encoding="utf-8"))
    with tempfile.TemporaryDirectory() as folder:
        done = iter(run(notebook, Path(folder)))
    cells = [next(done) if cell["cell_type"] == "code" else cell for cell in notebook["cells"]]
    text = json.dumps(notebook | {"cells": cells}, indent=1, ensure_ascii=False)
    path.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
