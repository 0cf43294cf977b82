"""A real run of two phases, a browser to look at its report with."""

import json
import os
import shutil

import pytest

from jina_jax.cli.main import main
from tests.prepared import write_jsonl

HOSTILE = "<script>document.title = 'executed'</script><img src=x onerror=alert(1)>"
CONFIG = """
from dataclasses import replace
from jina_jax.config import DataConfig, SourceConfig, TokenizerConfig
from jina_jax.config import ConsistencyConfig, LanguageConfig
from tests.minilm import minilm_folder
from tests.prepared import tiny_config

FOLDER = {folder!r}

def get_config():
    pairs = tiny_config(FOLDER)
    pairs = replace(
        pairs,
        name="pairs",
        data=replace(
            pairs.data, eval_pairs=10, tokenizer=TokenizerConfig("train", 300),
            sources=(
                SourceConfig("docs", "pydocs", ("asyncio",), weight=3.0),
                replace(pairs.data.sources[1], licence="CC0"),
            ),
            language=LanguageConfig(enabled=True),
            consistency=ConsistencyConfig(enabled=True, model=str(minilm_folder())),
        ),
        train=replace(pairs.train, num_steps=12),
        evaluate=replace(pairs.evaluate, every_steps=6, keep_best="retrieval/average/ndcg@10"),
    )
    triplets = replace(
        pairs, name="triplets", workdir=FOLDER + "/second", data_dir="",
        data=DataConfig(
            (
                SourceConfig(
                    "closer", paths=(FOLDER + "/triplets.jsonl",), negative_field="negative"
                ),
            ),
            TokenizerConfig(FOLDER + "/data/tokenizer"), eval_pairs=10,
        ),
    )
    return pairs, triplets
"""


def pytest_collection_modifyitems(items):
    """What looks at a run of two phases waits a minute for it."""
    for item in items:
        if "two_phases" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="session")
def two_phases(tmp_path_factory):
    """The folder of the second phase's run; the first phase's is beside it, `run`."""
    folder = tmp_path_factory.mktemp("report")
    path = write_jsonl(folder)
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    with path.open("a") as file:
        for query, positive in (("three", "three"), (HOSTILE, HOSTILE), ("", "nothing")):
            file.write(json.dumps({"query": query, "positive": positive}) + "\n")
    for row, other in zip(rows, rows[1:] + rows[:1]):
        row["negative"] = other["positive"]
    (folder / "triplets.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = folder / "config.py"
    config.write_text(CONFIG.format(folder=str(folder)))
    assert main(["run", str(config)]) == 0
    assert main(["evaluate", f"{config}:pairs"]) == 0
    return folder / "second"


@pytest.fixture(scope="session")
def browser():
    """Headless Chromium: that of the system, or that which playwright has installed."""
    from playwright.sync_api import Error, sync_playwright

    path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)
    with sync_playwright() as playwright:
        try:
            found = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        except Error as error:
            if os.environ.get("CI"):
                raise
            pytest.skip(f"no Chromium (`playwright install chromium` fetches one): {error}")
        yield found
        found.close()
