import pytest

from jina_jax.ablate.noise import Detection, detection, detections
from jina_jax.config import LanguageConfig
from jina_jax.shards.manifest import load_manifest
from tests.pairs import config, pair, run, write


def test_precision_is_of_what_was_dropped_and_recall_of_what_was_sought():
    dropped = {"clean": 10, "mismatched": 30, "foreign": 5}
    assert detection(dropped, "mismatched", 40) == Detection(
        10, 30, 5, "mismatched", 40, pytest.approx(35 / 45), 0.75
    )
    assert detection(dropped, "foreign", 20).recall == 0.25
    nothing = dict.fromkeys(dropped, 0)
    assert detection(nothing, "foreign", 0) == Detection(0, 0, 0, "foreign", 0, None, None)


def test_pairs_that_an_earlier_stage_dropped_are_not_sought(tmp_path):
    german = {"query": "Anna läuft heute über die Wiese.", "positive": "Danach schläft sie lange."}
    other = {"query": "Der Zug fährt um acht Uhr ab.", "positive": "Er kommt abends in Köln an."}
    rows = [pair(i) for i in range(60)] + [german, other, german]
    # Row 63 repeats row 61, so that deduplication drops one of them; row 2 is planted and kept.
    planted = {2: "mismatched", 61: "foreign", 62: "foreign", 63: "foreign"}
    data = config(
        write(tmp_path / "pairs.jsonl", rows), language=LanguageConfig(enabled=True), eval_pairs=5
    )
    run(data, tmp_path / "data")
    (source,) = load_manifest(tmp_path / "data").sources
    found = detections(tmp_path / "data", source, planted)["language"]
    assert vars(found) == {
        "clean": 0, "mismatched": 0, "foreign": 2, "kind": "foreign", "sought": 2,
        "precision": 1.0, "recall": 1.0,
    }  # fmt: skip
