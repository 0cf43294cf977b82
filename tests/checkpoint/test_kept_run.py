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
from jina_jax.feed.pipeline import feed_of_run
from jina_jax.inference.embedder import Embedder
from jina_jax.shards.manifest import load_manifest
from jina_jax.train.metrics.writer import read_metrics
from tests.trainer import finish, start

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


def test_prepared_data_is_known_and_gives_the_same_batches(kept, capsys):
    assert main(["prepare", "config.py"]) == 0
    assert "is already prepared with this configuration" in capsys.readouterr().err
    config = read_run(kept)
    batches = feed_of_run(config, load_manifest(config.data_path)).batches
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


def test_training_goes_on_with_the_same_losses(kept):
    lines = read_metrics(kept / "metrics.jsonl")
    shutil.rmtree(kept / "checkpoints" / "20")
    finish(start(kept.parent, "kept", devices=1))
    after = read_metrics(kept / "metrics.jsonl")
    assert [line["step"] for line in after] == list(range(1, 21))
    # That version let embeddings and position biases decay too.
    near = {"loss": 1e-4, "temperature": 1e-4, "gradient_norm": 1e-2}
    for old, new in zip(lines, after, strict=True):
        for name, tolerance in near.items():
            np.testing.assert_allclose(new[name], old[name], rtol=tolerance, err_msg=name)
