"""The rooms of the package: data flows one way, and imports follow it."""

import ast
import functools
import subprocess
import sys
from pathlib import Path

import jina_jax

ROOT = Path(jina_jax.__file__).parent
TESTS = Path(__file__).parent

ROOMS = (
    "system", "config", "text", "model", "train.loss", "devices", "sources", "shards", "feed",
    "checkpoint", "inference", "prepare.engine", "prepare.filters", "prepare", "negation", "mine",
    "evaluate", "train.metrics", "train.watch", "train", "export", "mteb", "ablate", "plan",
    "launch", "doctor", "report", "api", "cli",
)  # fmt: skip
"""Folders with code, and the public API, each below those that may import it."""

MAX_FOLDERS = 30
MAX_CHAIN = 13
MAX_FILES = 20
MAX_LINES = 500


def imports(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def folder_of(module):
    """The folder that holds a module or is the package itself; None where it is not ours."""
    if module == "jina_jax.api":
        return ROOT / "api.py"
    path = ROOT.parent / module.replace(".", "/")
    if path.is_dir():
        return path if path.is_relative_to(ROOT) else None
    return path.parent if path.with_suffix(".py").is_file() else None


def room_of(folder):
    if folder == ROOT / "api.py":
        return "api"
    return ".".join(folder.relative_to(ROOT).parts)


@functools.cache
def graph():
    """Room → the rooms that its files import."""
    found = {}
    for path in ROOT.rglob("*.py"):
        is_api = path in (ROOT / "api.py", ROOT / "__init__.py")
        own = "api" if is_api else room_of(path.parent)
        others = {room_of(f) for m in imports(path) if (f := folder_of(m)) is not None}
        found.setdefault(own, set()).update(others - {own})
    # A folder without code of its own holds others alone.
    return {room: {r for r in others if r in found} for room, others in found.items()}


def test_imports_follow_the_data():
    floor = {room: number for number, room in enumerate(("", *ROOMS))}
    assert graph().keys() == floor.keys()
    wrong = [
        f"{room} imports {other}"
        for room, others in graph().items()
        for other in others
        if floor[other] > floor[room]
    ]
    assert not wrong


def test_the_house_stays_small():
    @functools.cache
    def chain(room):
        return (*max((chain(other) for other in graph()[room]), key=len, default=()), room)

    assert len(graph()) <= MAX_FOLDERS
    longest = max(map(chain, graph()), key=len)
    assert len(longest) <= MAX_CHAIN, longest
    at_root = {path.name for path in ROOT.glob("*.py")}
    assert at_root == {"__init__.py", "api.py", "errors.py", "types.py"}
    for folder in {path.parent for path in ROOT.rglob("*.py")}:
        assert len(list(folder.glob("*.py"))) <= MAX_FILES, folder


def test_losses_and_models_know_neither_files_nor_data():
    assert graph()["train.loss"] == {"config"}
    assert graph()["model"] <= {"", "config"}


def test_torch_is_imported_where_others_ask_for_it_alone():
    others = ("torch", "tensorflow", "sentence_transformers")
    found = {
        (str(path.relative_to(ROOT)), module.split(".")[0])
        for path in ROOT.rglob("*.py")
        for module in imports(path)
        if module.split(".")[0] in others
    }
    assert found == {("export/onnx.py", "torch"), ("mteb/model.py", "torch")}


def test_importing_the_trainer_starts_no_device():
    """Several processes must find each other first."""
    code = (
        "import jina_jax.train.loop; from jax._src import xla_bridge; "
        "assert not xla_bridge.backends_are_initialized()"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_training_starts_without_what_takes_seconds_to_import(tmp_path):
    """All are installed here; TensorBoard's writer would import torch and boto3."""
    code = (
        "import sys; from jina_jax import api, cli; from jina_jax.config import RunConfig; "
        "from jina_jax.errors import UserError; from contextlib import suppress\n"
        f"config = RunConfig(name='b', workdir={str(tmp_path)!r}); "
        "from jina_jax.train.metrics.writer import TensorBoard\n"
        "with suppress(UserError): api.train(config)\n"  # It has no data.
        "assert 'jina_jax.train.loop' in sys.modules; board = TensorBoard(config, 0); "
        "board.draw({'loss': 1.0}, 1); board.close()\n"
        "slow = {'torch', 'scipy.stats', 'scipy.integrate', 'matplotlib', 'boto3', 'pandas'}; "
        "assert not slow & set(sys.modules), slow & set(sys.modules); import torch, boto3"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    assert list((tmp_path / "tensorboard").glob("events*"))


def test_files_have_one_subject_and_stay_short():
    long = {
        path.name: lines
        for path in (*ROOT.rglob("*.py"), *TESTS.rglob("*.py"))
        if (lines := len(path.read_text(encoding="utf-8").splitlines())) > MAX_LINES
    }
    assert not long
