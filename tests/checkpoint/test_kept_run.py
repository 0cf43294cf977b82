"""What an earlier version wrote is read by this one, with equal results.

`kept/` holds a run as version 0.1.0 left it before its modules moved: prepared data, checkpoints of
steps 10 and 20, metrics, scores and an exported folder; and what that version found with them.
"""

import json
import shutil
import tarfile
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from jina_jax.cli.main import main
from jina_jax.config.files import read_run
from jina_jax.feed.order import ORDER_VERSION
from jina_jax.feed.pipeline import feed_of_run
from jina_jax.inference.embedder import Embedder
from jina_jax.shards.manifest import FORMAT_VERSION, load_manifest
from tests.trainer import start

KEPT = Path(__file__).parent / "kept"
EXPECTED = json.loads((KEPT / "expected.json").read_text())


@pytest.fixture
def kept(tmp_path, monkeypatch):
    """The run in a folder of its own, with its sources and its config file."""
    for path in KEPT.iterdir():
        if path.suffix != ".xz":
            shutil.copy(path, tmp_path)
    with tarfile.open(KEPT / "kept.tar.xz") as archive:
        archive.extractall(tmp_path, filter="data")
    monkeypatch.chdir(tmp_path)
    return tmp_path / "kept"


def test_prepared_data_is_known_and_gives_batches_in_the_order_of_this_version(kept, capsys):
    assert main(["prepare", "config.py"]) == 0
    assert "is already prepared with this configuration" in capsys.readouterr().err
    config = read_run(kept)
    manifest = load_manifest(config.data_path)
    assert manifest.format_version < FORMAT_VERSION and manifest.guide is None
    batches = feed_of_run(config, manifest).batches
    assert EXPECTED["order"] == ORDER_VERSION, "a new version has other batches: write them down"
    assert [batch.fingerprint for batch in islice(batches, 20)] == EXPECTED["batches"]


@pytest.mark.parametrize("inner", ["", "export"])
def test_checkpoint_and_exported_folder_give_the_same_embeddings(kept, inner):
    texts = (KEPT / "texts.txt").read_text().splitlines()
    found = Embedder.load(kept / inner).encode(texts)
    np.testing.assert_allclose(found, EXPECTED["embeddings"], rtol=0, atol=1e-6)


def test_scores_are_the_same(kept):
    before = {n: json.loads((kept / n).read_text()) for n in ("evaluation.json", "negation.json")}
    for name in before:
        (kept / name).unlink()
    assert main(["evaluate", "config.py"]) == 0
    for name, scores in before.items():
        found = json.loads((kept / name).read_text())
        for task, systems in scores.items():
            for system, measured in systems.items():
                # Today's measures are more.
                assert measured.items() <= found[task][system].items()


def test_its_training_does_not_go_on_since_batches_come_in_another_order(kept):
    before = (kept / "metrics.jsonl").read_bytes()
    shutil.rmtree(kept / "checkpoints" / "20")
    process = start(kept.parent, "kept", devices=1)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 2, errors
    assert "holds step 10 of a run that an earlier version began, whose batches came" in errors
    assert f"--train.initial-weights={kept}" in errors
    assert (kept / "metrics.jsonl").read_bytes() == before
