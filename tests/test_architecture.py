"""Data flows one way, and the package imports along it."""

import ast
import subprocess
import sys
from pathlib import Path

import jina_jax

ROOT = Path(jina_jax.__file__).parent
TESTS = Path(__file__).parent

# What each part may import of the others, besides itself.
CONFIGS = {
    "alarm_config", "evaluate_config", "export_config", "fault_config", "filter_config",
    "loss_config", "mine_config", "mixture_config", "model_config", "negation_config",
    "source_config",
}  # fmt: skip
BASE = CONFIGS | {"config", "errors", "types"}
MODEL = BASE | {"model"}
ALLOWED = {
    "errors": set(),
    "untrusted": {"errors"},
    "user_code": {"errors"},
    "credentials": set(),
    "types": set(),
    "processes": {"errors", "progress"},
    "host_watch": {"errors", "processes", "progress"},
    "remedies": {"config"},
    "seal": {"data"},
    "progress": set(),
    "accelerators": set(),
    "environment": {"__init__"},
    "changeable": set(),
    "evaluate_config": {"changeable"},
    "export_config": {"changeable"},
    "fault_config": {"changeable"},
    "filter_config": {"changeable", "errors"},
    "loss_config": set(),
    "mine_config": {"changeable"},
    "mixture_config": set(),
    "model_config": set(),
    "alarm_config": {"changeable"},
    "negation_config": {"changeable"},
    "source_config": set(),
    "config": CONFIGS | {"changeable"},
    "ablate_config": {"config", "errors"},
    "suite_config": {"evaluate_config"},
    "config_file": {"ablate_config", "config", "errors", "suite_config", "untrusted", "user_code"},
    "mteb": MODEL
    | {"data", "evaluate", "hf_folder", "progress", "score", "suite_config", "trained"},
    "validation": CONFIGS | {"config", "credentials", "errors"},
    "distributed": {"config", "errors", "progress"},
    "data": BASE | {"config_file", "processes", "progress", "untrusted"},
    "feed": BASE | {"data", "processes"},
    "model": {"errors", "model_config"},
    "mesh": BASE,
    "hf_folder": MODEL | {"untrusted"},
    "sentence_folder": BASE | {"hf_folder", "untrusted"},
    "trained": MODEL | {"checkpoint", "config_file"},
    "initial": MODEL | {"mesh", "config_file", "hf_folder", "trained"},
    "packed_encoder": MODEL | {"feed", "mesh"},
    "score": MODEL
    | {"data", "feed", "mesh", "hf_folder", "packed_encoder", "sentence_folder", "untrusted"},
    "train": MODEL
    | {"data", "feed", "mesh", "initial", "checkpoint", "progress", "config_file", "validation"}
    | {"accelerators", "distributed", "environment", "evaluate", "host_watch", "processes"}
    | {"remedies", "trained"},
    "checkpoint": BASE | {"data", "progress", "seal", "train"},
    "evaluate": MODEL
    | {"data", "feed", "mesh", "hf_folder", "initial", "packed_encoder", "progress", "trained"}
    | {"sentence_folder"},
    "doctor": MODEL
    | {"config_file", "data", "hf_folder", "seal", "sentence_folder", "trained"}
    | {"credentials", "untrusted", "validation"},
    "mine": MODEL | {"data", "evaluate", "progress", "trained"},
    "plan": MODEL
    | {"accelerators", "data", "environment", "feed", "mesh", "processes", "progress", "remedies"}
    | {"train", "validation"},
    "report": MODEL | {"ablate", "config_file", "data", "evaluate", "mteb", "train", "trained"},
    "export": MODEL
    | {"checkpoint", "config_file", "data", "hf_folder", "evaluate", "trained"}
    | {"sentence_folder", "untrusted"},
}
SHELL = {
    "ablate", "arguments", "cli", "demo", "histograms", "launch", "look_verbs", "model_verbs",
    "run_verbs", "terminal", "__init__",
}  # fmt: skip
"""What a person starts; these may import all."""


def part_of(module):
    return module.split(".")[1] if "." in module else "__init__"


def imports(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def test_imports_follow_the_data():
    wrong = []
    for path in ROOT.rglob("*.py"):
        part = path.relative_to(ROOT).parts[0].removesuffix(".py")
        for module in imports(path):
            if module.split(".")[0] == "jina_jax" and part not in SHELL:
                other = part_of(module)
                if other != part and other not in ALLOWED[part]:
                    wrong.append(f"{path.relative_to(ROOT)} imports {module}")
    assert not wrong


def test_losses_know_neither_files_nor_configuration():
    files = {f"jina_jax.train.{name}" for name in ("losses", "log_sums", "tiles", "visits")}
    for name in files:
        path = (ROOT / "train" / name.rsplit(".")[-1]).with_suffix(".py")
        assert {m for m in imports(path) if m.startswith("jina_jax")} < files


def test_torch_is_imported_where_others_ask_for_it_alone():
    others = ("torch", "tensorflow", "sentence_transformers")
    found = {
        (str(path.relative_to(ROOT)), module)
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


def test_files_have_one_subject_and_stay_short():
    long = {
        path.name: lines
        for path in (*ROOT.rglob("*.py"), *TESTS.rglob("*.py"))
        if (lines := len(path.read_text(encoding="utf-8").splitlines())) > 300
    }
    assert not long
