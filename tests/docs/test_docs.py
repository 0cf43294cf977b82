"""The documentation builds without a broken link, and its code does what it says."""

import ast
import csv
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from jina_jax.cli import main as cli
from jina_jax.cli.arguments import config_verb
from jina_jax.sources.read import read_source
from tests.docs.notebook import run

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
PYTHON, SHELL = "python", "sh"
RUN_ORDER = (
    "data",
    "tutorial",
    "start",
    "evaluate",
    "resume",
    "gpus",
    "paper",
    "tpu-pod",
    "recipes",
)
"""Pages with shell blocks: the first makes the run that the others look at."""
NOT_RUN = {
    "plan": "needs the TPU compiler",
    "mteb": "reads data sets from the hub",
    "prepare base": "reads the paper's data from the hub",
    "prepare jina_v1_pairs": "reads the paper's data from the hub",
    "prepare my_config.py": "a Ray cluster and a bucket",
    "inspect /mnt": "a mounted bucket",
    "encode runs/mine/export passages.txt passages.npy --distributed": "several hosts",
    "mine mine.py --distributed": "several hosts",
    "negation negation_triplets": "reads SNLI from the hub",
    # tests/config runs these on a little text.
    "run negation_minilm": "its triplets",
    "run mixture": "its files",
    "run demo_hard_negatives": "takes half an hour",
    "merge runs/mixture_triplets": "its runs",
}
THEIRS = ("mine.py", "pairs.py")
"""Files that pages tell the reader to write."""
EXIT_CODES = {"train mine.py --optim.learning-rate 1e-3": 2}
"""What a page says is refused; all other commands end with 0."""


def blocks(path, language):
    text = path.read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def commands(path):
    """Arguments of each `jina-jax` line of a page."""
    for block in blocks(path, SHELL):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            if words[:1] == ["jina-jax"]:
                yield words[1:]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Data for the config of data.md, and that config."""
    folder = tmp_path_factory.mktemp("docs")
    names = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
    words = [" ".join(names[int(d)] for d in str(n)) for n in range(300)]
    rows = [{"question": f"What is the number {w}?", "answer": f"It is {n}."}
            for n, w in enumerate(words)]  # fmt: skip
    (folder / "faq-1.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    with (folder / "docs.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["title", "body"])
        table.writerows([f"number {w}", f"{n} is spelt {w}."] for n, w in enumerate(words))
    (folder / "pairs.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows[:100]))
    for name, field in (("passages", "answer"), ("questions", "question")):
        (folder / f"{name}.txt").write_text("".join(f"{row[field]}\n" for row in rows))
    (config,) = [b for b in blocks(ROOT / "docs" / "data.md", PYTHON) if b.startswith("# mine.py")]
    (folder / "mine.py").write_text(config)
    return folder


@pytest.fixture(scope="module")
def outcomes(folder):
    """Every command of the pages → its exit code, run in their order; None for one not run."""
    found = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for page in RUN_ORDER:
            if page == "start":
                (folder / "runs" / "demo").symlink_to(folder / "runs" / "mine")
            for words in commands(ROOT / "docs" / f"{page}.md"):
                text = shlex.join(words)
                is_run = not any(text.startswith(start) for start in NOT_RUN)
                found[text] = cli.main(words) if is_run else None
    return found


@pytest.mark.slow
def test_it_builds_without_a_broken_link(tmp_path):
    done = subprocess.run(
        [Path(sys.executable).parent / "mkdocs", "build", "--strict", "--site-dir", tmp_path],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    config = (tmp_path / "config" / "index.html").read_text(encoding="utf-8")
    assert "clip_norm" in config and "Gradients are scaled down to this global norm." in config
    verbs = (tmp_path / "verbs" / "index.html").read_text(encoding="utf-8")
    for verb in [*cli._CONFIG_VERBS, *cli._PLAIN_VERBS]:
        assert f'id="{verb}"' in verbs


def test_every_page_with_commands_is_run():
    with_commands = {path.stem for path in PAGES[1:] if list(commands(path))}
    assert with_commands == set(RUN_ORDER)


def test_the_config_of_the_readme_reads_the_line_beside_it(tmp_path, monkeypatch):
    (line,), (config, _) = blocks(PAGES[0], "json"), blocks(PAGES[0], PYTHON)
    monkeypatch.chdir(tmp_path)
    Path("pairs.jsonl").write_text(line, encoding="utf-8")
    Path("mine.py").write_text(config, encoding="utf-8")
    (pair,) = read_source(config_verb("prepare", "", ["mine.py"]).data.sources[0])
    assert (pair.query, pair.positive) == tuple(json.loads(line).values())
    verbs = {words[0] for words in commands(PAGES[0]) if not words[0].startswith("-")}
    assert {"run", "search", "plan"} <= verbs <= {*cli._CONFIG_VERBS, *cli._PLAIN_VERBS}


@pytest.mark.slow
def test_commands_end_as_the_pages_say(outcomes):
    run = {text: code for text, code in outcomes.items() if code is not None}
    assert run == {text: EXIT_CODES.get(text, 0) for text in run}
    assert len(run) > 15
    assert all(any(t.startswith(start) for t in outcomes) for start in NOT_RUN)


@pytest.mark.slow
def test_commands_that_are_not_run_have_arguments_that_exist(outcomes, capsys):
    for text in (text for text, code in outcomes.items() if code is None):
        verb, *args = shlex.split(re.sub(r"\bm\w+\.py\b", "base", text))
        if verb == "prepare" and "--plan" not in args:
            config_verb(verb, "", args)
            continue
        with pytest.raises(SystemExit):
            cli.main([verb, *args[:1], "--help"])
        out = capsys.readouterr().out
        assert all(flag in out for flag in args if flag.startswith("--")), text


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_shell_blocks_are_shell(path):
    for block in blocks(path, SHELL):
        subprocess.run(["bash", "-n"], input=block, text=True, check=True)


@pytest.mark.slow
@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_python_blocks_run(path, outcomes, folder, monkeypatch):
    monkeypatch.chdir(folder)
    monkeypatch.setitem(sys.modules, "docs_page", type(sys)("docs_page"))
    space = {"__name__": "docs_page"}
    for block in blocks(path, PYTHON):
        exec(compile(block, str(path), "exec"), space)


@pytest.mark.slow
def test_the_notebook_runs_and_shows_what_it_did(tmp_path):
    notebook = json.loads((ROOT / "docs" / "python.ipynb").read_text(encoding="utf-8"))
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    done = run(notebook, tmp_path)
    # What it measures differs from machine to machine, and what it shows does not.
    kinds = [[output["output_type"] for output in cell["outputs"]] for cell in done]
    assert kinds == [[output["output_type"] for output in cell["outputs"]] for cell in cells]
    assert sum(map(len, kinds)) >= 6
    (shown,) = [cell["outputs"][0]["data"]["text/plain"] for cell in done if "bm25" in str(cell)]
    scores = ast.literal_eval(shown)
    assert scores["trained"] > scores["untrained"] > scores["bm25"] / 2


def test_files_that_pages_name_exist():
    package = ROOT / "jina_jax"
    missing = [
        f"{path.name}: {name}"
        for path in PAGES
        for name in re.findall(r"`([\w/]+\.py)`", path.read_text(encoding="utf-8"))
        if not ((package / name).exists() or (ROOT / name).exists() or name in THEIRS)
    ]
    assert not missing
